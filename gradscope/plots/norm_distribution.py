"""How the raw gradient norms are distributed, with the thresholds that were used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import lines, marks, style
from gradscope.plots.story import looks_of_thresholds
from gradscope.reading import select, sweeps
from gradscope.reading.norms import raw_norms
from gradscope.words import counted_span

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
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no gradient norm was recorded")
    return data


def draw(
    data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", bins: int = 36, legend: bool = True
) -> Axes:
    """A histogram (share of steps, logarithmic norm) per threshold; dotted: that threshold, in the same colour."""
    import seaborn

    ax = style.axes(ax, style=style_name, aspect=0.5)
    usable = data[np.isfinite(data["norm"]) & (data["norm"] > 0)]
    thresholds = sorted(set(data["threshold"]))
    limits = [t for t in thresholds if np.isfinite(t)]
    low, high = min([usable["norm"].min(), *limits]), max([usable["norm"].max(), *limits])
    edges = np.geomspace(low / 1.4, high * 1.4, bins + 1)
    looks = looks_of_thresholds(data.assign(line=[sweeps.line_of(t) for t in data["threshold"]]))
    fill = len(looks) <= 2
    total = data.groupby("threshold")["norm"].transform("size").loc[usable.index]
    shown = usable.assign(line=[sweeps.line_of(t) for t in usable["threshold"]], share=1 / total)
    seaborn.histplot(
        shown, x="norm", hue="line", weights="share", hue_order=list(looks)[::-1], log_scale=True,
        bins=bins, binrange=tuple(np.log10(edges[[0, -1]])), element="step", fill=fill, alpha=0.14,
        palette={name: look["color"] for name, look in looks.items()}, legend=False, ax=ax,
    )  # fmt: skip
    drawn = ax.collections if fill else ax.get_lines()
    for artist, name in zip(drawn, looks, strict=False):  # seaborn draws the last hue first
        artist.set(linestyle=looks[name]["linestyle"], linewidth=1.3, **({} if fill else {"alpha": 1.0}))
    for threshold in limits:
        colour = looks[sweeps.line_of(threshold)]["color"]
        ax.axvline(threshold, color=colour, linestyle=":", linewidth=1.2, label="_threshold")
    missing = data["threshold"][~data.index.isin(usable.index)].value_counts()
    names = {
        sweeps.line_of(t): sweeps.line_of(t) + (f" ({missing[t]} zero or not finite)" if t in missing else "")
        for t in thresholds
    }
    marks.log_x(ax, edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("gradient norm before clipping")
    ax.set_ylabel("share of steps")
    if legend:
        handles = lines.handles({name: {**look, "marker": ""} for name, look in looks.items()}, names)
        style.legend(ax, handles, title="dotted: the threshold")
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    per = data.groupby("threshold").size()
    known = counted_span(int(per.min()), int(per.max()), "norm")
    apart = "" if len(per) == 1 else " Norms under different thresholds come from different trainings."
    said = (
        f"Share of steps by total gradient norm before clipping, for each threshold "
        f"({known}{' each' if len(per) > 1 else ''}); dotted: the threshold itself.{apart}"
    )
    return " ".join([said, *select.left_out_words(data)])
