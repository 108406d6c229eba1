"""What a reader must know of a run before any number: clipping calls without effect, gradients that are not finite.

The only place where such remarks are phrased. What clipping did to the updates is in
:mod:`gradscope.reading.clip_calls`, as tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.reading.clip_calls import acting
from gradscope.reading.norms import parameter_columns
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
    if not (clips["place"] == "partial").any():
        return []
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
    known = last[np.isfinite(last["applied"]) & np.isfinite(last["norm_after"])]
    off = known[(known["applied"] - known["norm_after"]).abs() > _SAME * known["norm_after"].clip(lower=1e-12)]
    if not len(off):
        return ""
    alone = last.groupby([name for name in ("attempt", "rank", "step") if name in last])["part"].transform("size") == 1
    off = off[alone[off.index]]
    words = (
        f"were not the last word: the gradient was changed again before the update, first at step {off['step'].min()}"
    )
    return _share(clips, clips.index.isin(off.index), words)


# --- gradients that are not finite -----------------------------------------------------------------------------------


def first_nonfinite(run: Any) -> str:
    """One sentence, or nothing where every recorded gradient is finite.

    A gradient runs from lag 0 back: at a site it entered at the smallest lag at which it is not finite. A run that
    records one step in ten sees it there at the next recorded step; a clipping call sees its norm at every step.

    Parameters
    ----------
    run : Run
    """
    found = [*_at_sites(run), *_in_parameters(run), *_in_clips(run)]
    if not found:
        return ""
    step = min(at for at, _ in found)
    where = [words for at, words in found if at == step]
    return f"The first recorded gradient that is not finite is at step {step}: {where[0]}."


def _at_sites(run: Any) -> list[tuple[int, str]]:
    found = []
    for site in run.sites:
        records = run.records(site).reset_index(drop=True)
        bad = records[records["nonfinite"] > 0]
        for quantity in ("cell", "hidden", "input"):
            if not len(bad) or quantity not in run.quantities(site):
                continue
            first = int(bad["step"].idxmin())
            norms, lengths = run.array(site, quantity)[first], run.lengths(site)[first]
            inside = np.arange(norms.shape[1]) < lengths[:, None]
            sequences, lags = np.nonzero(inside & ~np.isfinite(norms))
            if lags.size:
                lag = int(lags.min())
                entered = "it comes from above, at the last step" if lag == 0 else f"it arises at lag {lag}"
                said = f"{site} ({quantity}), {len(set(sequences))} sequences, {entered}"
                found.append((int(bad["step"].min()), said))
                break
    return found


def _in_parameters(run: Any) -> list[tuple[int, str]]:
    table = run.parameters()
    names = parameter_columns(table)
    if not names:
        return []
    bad = np.isinf(table[names].to_numpy(dtype=float))
    rows = np.flatnonzero(bad.any(axis=1))
    if not rows.size:
        return []
    first = rows[int(np.argmin(table["step"].to_numpy()[rows]))]
    listed = [name for name, is_bad in zip(names, bad[first], strict=True) if is_bad]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return [(int(table["step"].iloc[first]), f"in the gradient of {', '.join(listed[:3])}{more}")]


def _in_clips(run: Any) -> list[tuple[int, str]]:
    clips = run.clips()
    if not len(clips) or "overflow" not in clips:
        return []
    bad = clips[~np.isfinite(clips["norm_before"]) & (clips["overflow"] == 0) & (clips["kind"] == "norm")]
    if not len(bad):
        return []
    part = f" of {bad['part'].iloc[0]}" if bad["part"].iloc[0] else ""
    return [(int(bad["step"].min()), f"the norm{part} that a clipping call measured")]
