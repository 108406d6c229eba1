"""What a run's clipping calls did to the updates, call by call: a call in the wrong place did nothing.

Functions of the table that ``run.clips()`` returns.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def acting(clips: pd.DataFrame) -> pd.DataFrame:
    """The calls whose clipped gradient an update used; all of them in a run that did not note it."""
    return _where(clips, clips["effective"].to_numpy() > 0) if "effective" in clips else clips


def _where(clips: pd.DataFrame, which: np.ndarray) -> pd.DataFrame:
    """Some of the calls; the table itself where it is all of them, as in most runs."""
    return clips if which.all() else clips[which]


def of_steps(clips: pd.DataFrame) -> pd.DataFrame:
    """The calls that are their steps' clipping: on the gradient that was applied, of all that are trained.

    Thresholds are in the units of the norms: one that met scaled gradients is divided by the loss scale.
    """
    kept = acting(clips)
    if "place" not in kept:
        return kept
    kept = _where(kept, (kept["place"].isin(["", "update"]) & (kept["part"] == "")).to_numpy())
    scales = kept["loss_scale"].to_numpy()
    return kept if (scales == 1).all() else kept.assign(threshold=kept["threshold"] / scales)


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
