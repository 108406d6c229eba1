"""Loss against step for each clipping threshold, over seeds; runs that diverged are shown as diverged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import marks, style
from gradscope.plots.norms import running_median, smoothing
from gradscope.plots.text import label
from gradscope.reading import sweeps

TITLE = "Loss against step for each clipping threshold"
NEEDS = "a logged loss: recorder.log(loss=loss)"


def table(
    runs: Sequence[Any], *, metric: str = "loss", thresholds: Sequence[float | None] | None = None
) -> pd.DataFrame:
    """One row per run and step: ``run, threshold, step, value, diverged, metric``; threshold inf is no clipping.

    Raises
    ------
    NotRecordedError, SettingError
    """
    return sweeps.traces(runs, metric, thresholds).assign(metric=metric)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Median over the runs of a threshold (running median along the steps), band from lowest to highest run.

    A run that diverged leaves the median there; a cross marks its last finite value.
    """
    ax = style.axes(ax, style=style_name)
    marks.whole_x(ax, data["step"])
    smooth = _smooth(data)
    for i, threshold in enumerate(sorted(set(data["threshold"]))):
        _group(ax, smooth[smooth["threshold"] == threshold], threshold, i)
    finite = smooth["smooth"][np.isfinite(smooth["smooth"])]
    if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        marks.log_y(ax, [finite])
    if finite.empty:
        ax.set_yticks([])
        style.note(ax, "no run was finite at any step")
    ax.set_xlabel("training step")
    ax.set_ylabel(label(str(data["metric"].iloc[0])))
    if legend:
        style.legend(ax, title="clipping threshold")
    return ax


def _smooth(data: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for _, rows in data.groupby("run", sort=False):
        value = rows["value"].where(~rows["diverged"]).to_numpy(dtype=float)
        parts.append(rows.assign(smooth=running_median(value, smoothing(int(np.isfinite(value).sum())))))
    return pd.concat(parts)


def _group(ax: Axes, rows: pd.DataFrame, threshold: float, i: int) -> None:
    look = style.look(i)
    by_step = rows.groupby("step")["smooth"]
    middle, low, high = by_step.median(), by_step.min(), by_step.max()
    n, gone = rows["run"].nunique(), rows[rows["diverged"]]["run"].nunique()
    name = sweeps.name_of(threshold) + (f" ({gone} of {n} diverged)" if gone else "")
    ax.plot(middle.index, middle, label=name, markevery=style.mark_every(len(middle), i), **look)
    if n > 1:
        marks.band(ax, middle.index, low, high, look["color"])
    for _, run in rows.groupby("run", sort=False):
        finite = run[np.isfinite(run["smooth"])]
        if run["diverged"].any():
            if finite.empty:
                marks.at_edge(ax, run["step"].iloc[:1], top=True, color=look["color"], label="diverged")
            else:
                ax.plot(
                    finite["step"].iloc[-1], finite["smooth"].iloc[-1], marker="x", markersize=8, markeredgewidth=2,
                    color=look["color"], linestyle="none", label="_diverged", zorder=5,
                )  # fmt: skip


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    per = data.groupby("threshold")["run"].nunique()
    gone = data[data["diverged"]]["run"].nunique()
    over = (
        "a running median of each run"
        if per.max() == 1
        else f"{_span(per)} runs each: median over runs of a running median, band from lowest to highest run"
    )
    crosses = f"Crosses: {gone} of {per.sum()} runs diverged there." if gone else "No run diverged."
    return (
        f"{_upper(str(data['metric'].iloc[0]))} against training step for {len(per)} thresholds of norm clipping "
        f"(none: no clipping), {over}. {crosses}"
    )


def _upper(text: str) -> str:
    return label(text[:1].upper() + text[1:])


def _span(per: pd.Series) -> str:
    return f"{per.min()}" if per.min() == per.max() else f"{per.min()} to {per.max()}"
