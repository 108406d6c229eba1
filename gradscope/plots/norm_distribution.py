"""How the raw gradient norms are distributed, with the thresholds that were used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import marks, style
from gradscope.reading import select, sweeps
from gradscope.reading.norms import raw_norms

TITLE = "Distribution of gradient norms before clipping"
NEEDS = "clipping through recorder.clip_grad_norm_ (or torch's own), or recorded parameter gradient norms"


def table(runs: Sequence[Any], *, thresholds: Sequence[float | None] | None = None) -> pd.DataFrame:
    """One row per run and step: ``run, threshold, step, norm``; threshold inf is no clipping.

    Raises
    ------
    NotRecordedError, SettingError
    """
    if thresholds is not None and len(thresholds) != len(runs):
        raise SettingError(f"one threshold per run: got {len(thresholds)} for {len(runs)} runs.")
    frames = []
    for i, (name, run) in enumerate(zip(select.run_names(runs), runs, strict=True)):
        given = sweeps.threshold_of(run) if thresholds is None else thresholds[i]
        norms = raw_norms(run)
        head = {"run": name, "threshold": float("inf") if given is None else float(given)}
        frames.append(pd.DataFrame({**head, "step": norms["step"], "norm": norms["norm"]}))
    data = pd.concat(frames, ignore_index=True)
    if not (np.isfinite(data["norm"]) & (data["norm"] > 0)).any():
        paths = ", ".join(str(run.path) for run in runs)
        raise NotRecordedError(f"{paths}: no finite gradient norm was recorded. It comes from {NEEDS}.")
    return data


def draw(
    data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", bins: int = 36, legend: bool = True
) -> Axes:
    """A histogram (share of steps, logarithmic norm) per threshold; dotted: that threshold, in the same colour."""
    ax = style.axes(ax, style=style_name, aspect=0.5)
    usable = data[np.isfinite(data["norm"]) & (data["norm"] > 0)]
    thresholds = sorted(set(data["threshold"]))
    limits = [t for t in thresholds if np.isfinite(t)]
    low, high = min([usable["norm"].min(), *limits]), max([usable["norm"].max(), *limits])
    edges = np.geomspace(low / 1.4, high * 1.4, bins + 1)
    for i, threshold in enumerate(thresholds):
        look = style.look(i)
        norms = usable["norm"][usable["threshold"] == threshold]
        total = int((data["threshold"] == threshold).sum())
        counts, _ = np.histogram(norms, edges)
        missing = total - len(norms)
        name = sweeps.name_of(threshold) + (f" ({missing} zero or not finite)" if missing else "")
        ax.stairs(
            counts / max(total, 1), edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.3, label=name
        )
        if np.isfinite(threshold):
            ax.axvline(threshold, color=look["color"], linestyle=":", linewidth=1.2)
    marks.log_x(ax, edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("gradient norm before clipping")
    ax.set_ylabel("share of steps")
    if legend:
        style.legend(ax, list(ax.patches), title="clipping threshold (dotted line)")
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    per = data.groupby("threshold").size()
    return (
        f"Share of steps by total gradient norm before clipping, for each threshold ({per.min()} to {per.max()} norms "
        "each); dotted: the threshold itself. Norms under different thresholds come from different trainings."
    )
