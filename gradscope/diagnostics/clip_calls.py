"""What a run's clipping calls did to the updates, call by call: a call in the wrong place did nothing.

Functions of the table that ``run.clips()`` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.words import number

#: A norm after clipping and the norm that was applied are of the same gradient when they differ by less.
_SAME = 1e-2

_MISPLACED = {
    "after": (
        "came after the update: the gradient that they clipped had been applied already. Call it between backward() "
        "and optimizer.step()"
    ),
    "before": (
        "came before the pass of their step: what backward() then added was not clipped. Call it after backward()"
    ),
    "dropped": "were on a gradient that was zeroed before any update",
    "skipped": "were in steps whose update was skipped",
}

_OF_SUMS = (
    "Clipping ran {each} times a step while gradients were accumulated: {count} of {of} calls were on partial sums, to "
    "which later passes added. Clip once, after the last pass of the step."
)
_OF_SINGLE_PASSES = (
    "Clipping ran {each} times a step, {count} of {of} calls on the gradient of a single pass, which the script then "
    "combined with others: what they saw is not the norm of the update."
)


def acting(clips: pd.DataFrame) -> pd.DataFrame:
    """The calls whose clipped gradient an update used; all of them in a run that did not note it."""
    return clips[clips["effective"] > 0] if "effective" in clips else clips


def of_steps(clips: pd.DataFrame) -> pd.DataFrame:
    """The calls that are their steps' clipping: on the gradient that was applied, of all that are trained.

    Thresholds are in the units of the norms: one that met scaled gradients is divided by the loss scale.
    """
    kept = acting(clips)
    if "place" not in kept:
        return kept
    kept = kept[kept["place"].isin(["", "update"]) & (kept["part"] == "")]
    return kept.assign(threshold=kept["threshold"] / kept["loss_scale"])


def parts(clips: pd.DataFrame) -> tuple[str, ...]:
    """The sets of parameters that were clipped, in order; the empty name is all that are trained."""
    return tuple(dict.fromkeys(clips["part"])) if "part" in clips and len(clips) else ("",)


def norms_before(clips: pd.DataFrame, part: str = "") -> pd.DataFrame:
    """The norm of a part's gradient before clipping, once a step: ``step, norm``.

    Left out are calls on partial sums, on gradients that were not applied, and calls after the first of a step. A call
    after the update saw what was applied.
    """
    if not len(clips):
        return pd.DataFrame({"step": np.empty(0, np.int64), "norm": np.empty(0)})
    kept = clips["kind"] != "timestep"
    if "place" in clips:
        kept &= clips["place"].isin(["", "update", "after"]) & (clips["part"] == part)
    found = clips[kept].drop_duplicates([name for name in ("attempt", "rank", "step") if name in clips])
    return pd.DataFrame({"step": found["step"].to_numpy(), "norm": found["norm_before"].to_numpy(dtype=float)})


def clip_remarks(clips: pd.DataFrame) -> list[str]:
    """What a reader must know before any number on clipping, the calls without effect first.

    Examples
    --------
    "25 of 25 clipping calls came after the update: the gradient that they clipped had been applied already. Call it
    between backward() and optimizer.step()."
    """
    if not len(clips) or "place" not in clips:
        return []
    said = [_share(clips, clips["place"] == place, words) for place, words in _MISPLACED.items()]
    return [line for line in (*said, *_lost_updates(clips), _scaled(clips), *_partial(clips), _changed(clips)) if line]


def _share(clips: pd.DataFrame, which: Any, words: str) -> str:
    count, of = int(which.sum()), len(clips)
    if not count:
        return ""
    # Between recorded steps a clip by value is not noted: its norms would have to be measured.
    by_value = " (those by value: in recorded steps)" if (clips["kind"] == "value").any() else ""
    return f"{count} of {of} clipping calls{by_value} {words}." if of > 1 else f"The clipping call {words}."


def _lost_updates(clips: pd.DataFrame) -> Sequence[str]:
    lost = acting(clips)[lambda c: c["overflow"] > 0]
    if not len(lost):
        return []
    steps = sorted(set(lost["step"]))
    which = f"Step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, the first of them step {steps[0]},"
    return [
        f"{which} lost the update: the gradients were finite, their total norm overflowed, and clipping by it set them "
        "all to 0. Make the loss smaller, or clip in float64."
    ]


def _scaled(clips: pd.DataFrame) -> str:
    scaled = clips[(clips["loss_scale"] != 1) & (clips["kind"] != "timestep")]
    if not len(scaled):
        return ""
    first = scaled.iloc[0]
    true = first["threshold"] / first["loss_scale"]
    words = (
        f"were on gradients still multiplied by the loss scale: at a scale of {number(first['loss_scale'])} the "
        f"threshold {number(first['threshold'])} stands for {number(true, 3)}. Call scaler.unscale_(optimizer) before "
        "clipping; norms here are in true units"
    )
    return _share(clips, clips.index.isin(scaled.index), words)


def _partial(clips: pd.DataFrame) -> Sequence[str]:
    by = [name for name in ("attempt", "rank", "step", "part") if name in clips]
    calls = clips[clips["place"].isin(["partial", "update"])]
    steps = calls.assign(partial=calls["place"] == "partial").groupby(by)
    partial, passes = steps["partial"].transform("sum"), steps["passes"].transform("max")
    # No call saw a sum: each pass was clipped by itself, and its gradient taken away for the script to combine.
    apart = (partial > 1) & (passes <= 1)
    said = []
    for kept, words in (((partial > 0) & ~apart, _OF_SUMS), (apart, _OF_SINGLE_PASSES)):
        if kept.any():
            each = calls[kept].groupby(by).size().median()
            count = int((calls[kept]["place"] == "partial").sum())
            said.append(words.format(each=f"{each:.0f}", count=count, of=len(clips)))
    return said


def _changed(clips: pd.DataFrame) -> str:
    """Calls whose gradient was changed again before it was applied, other than by a later call."""
    last = clips[clips["place"] == "update"].drop_duplicates(
        [name for name in ("attempt", "rank", "step", "part") if name in clips], keep="last"
    )
    alone = last.groupby([name for name in ("attempt", "rank", "step") if name in last])["part"].transform("size") == 1
    known = last[alone & np.isfinite(last["applied"]) & np.isfinite(last["norm_after"])]
    off = known[(known["applied"] - known["norm_after"]).abs() > _SAME * known["norm_after"].clip(lower=1e-12)]
    words = (
        f"were not the last word: the gradient was changed again before the update, first at step {off['step'].min()}"
    )
    return _share(clips, clips.index.isin(off.index), words)
