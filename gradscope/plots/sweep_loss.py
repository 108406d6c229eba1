"""Loss against step for each clipping threshold, over seeds; runs that diverged are shown as diverged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import lines, marks, style
from gradscope.plots.norms import smoothed, smoothing
from gradscope.plots.story import looks_of_thresholds, loss_limits, middle_at
from gradscope.plots.text import metric_words
from gradscope.reading import select, sweeps
from gradscope.words import capital, counted, counted_span, number

TITLE = "Loss against step for each clipping threshold"
NEEDS = "a logged loss: recorder.log(loss=loss)"


def table(
    runs: Sequence[Any], *, metric: str = "loss", thresholds: Sequence[float | None] | None = None
) -> pd.DataFrame:
    """One row per run and step: ``run, threshold, step, value, diverged, chance, metric``; threshold inf: no clipping.

    ``chance`` is the label ``chance_<metric>`` of the run, NaN without.

    Raises
    ------
    NotRecordedError, SettingError
    """
    data = sweeps.traces(runs, metric, thresholds).assign(metric=metric)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), f"{metric!r} was not logged")
    return data


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Median over the runs of a threshold (running median along the steps), each run as a thin line.

    Of many runs the middle half is a band. A run that diverged is in no median, unless all of its threshold did; a
    cross marks its last finite value.
    """
    own, ax = ax is None, style.axes(ax, style=style_name)
    data = data.assign(line=[sweeps.line_of(t) for t in data["threshold"]])
    kept = data.assign(value=data["value"].where(~data["diverged"]))
    smooth = lines.set_aside(smoothed(kept, "value"))
    looks = looks_of_thresholds(data)
    marks.whole_x(ax, data["step"])
    if not np.isfinite(smooth["value"]).any():
        ax.set_yticks([])
        style.note(ax, "no run was finite at any step")
        return _labelled(ax, data)
    top = loss_limits(ax, [rows["value"] for _, rows in smooth.groupby("run")], _chance(data))
    several = bool(data.groupby("line")["run"].nunique().max() > 1)
    lines.draw(ax, smooth, looks, x="step", y="value", line="line", band="runs" if several else False, log=False)
    for chance in _chance(data):
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=0.9, zorder=1, label="_chance")
    _strayed(ax, smooth, looks, top)
    if legend:
        ends = middle_at(smooth[~smooth["aside"]].assign(x=smooth["step"]), "last")
        named = {name: f"{name}{_gone(*lines.parted(data)[name])}" for name in looks}
        renamed = {named[name]: look for name, look in looks.items()}
        lines.name(ax, renamed, {named[n]: ends.get(n, np.inf) for n in looks}, beside=own)
    return _labelled(ax, data)


def _labelled(ax: Axes, data: pd.DataFrame) -> Axes:
    ax.set_xlabel("training step")
    ax.set_ylabel(metric_words(str(data["metric"].iloc[0])))
    return ax


def _chance(data: pd.DataFrame) -> list[float]:
    return list(dict.fromkeys(data["chance"].dropna()))[:1] if "chance" in data else []


def _gone(gone: int, n: int) -> str:
    """How many runs of a threshold diverged."""
    return f" ({gone} of {n} diverged)" if gone else ""


def _strayed(ax: Axes, smooth: pd.DataFrame, looks: dict[str, dict[str, Any]], top: float) -> None:
    """Crosses where runs diverged, triangles where they leave the axis."""
    for _, run in smooth.groupby("run", sort=False):
        line, finite = run["line"].iloc[0], run[np.isfinite(run["value"])]
        colour = looks[line]["color"]
        over = finite["step"][finite["value"] > top]
        marks.at_edge(ax, over[:1], top=True, color=colour, label="leaves the axis", marker="^", of=line)
        if run["diverged"].any():
            last = finite.iloc[-1] if len(finite) else None
            if last is None or last["value"] > top:
                at = run["step"].iloc[:1] if last is None else [last["step"]]
                marks.at_edge(ax, at, top=True, color=colour, label="diverged", of=line)
            else:
                ax.plot(
                    last["step"], last["value"], marker="x", markersize=8, markeredgewidth=2, color=colour,
                    linestyle="none", label="_diverged", zorder=5,
                )  # fmt: skip


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    per = data.groupby("threshold")["run"].nunique()
    gone = data[data["diverged"]]["run"].nunique()
    steps = data[np.isfinite(data["value"])].groupby("run").size()
    median = len(steps) and smoothing(int(steps.max())) > 1
    over = (
        ("a running median of each run" if median else "one run each")
        if per.max() == 1
        else f"{counted_span(per.min(), per.max(), 'run')} each: median over the runs that did not diverge"
        f"{', of a running median' if median else ''}; {lines.around_words(int(per.max()))}"
    )
    crosses = f"Crosses: {gone} of {counted(per.sum(), 'run')} diverged there." if gone else "No run diverged."
    strayed = set(data["run"][data["diverged"]])
    at_end = data[~data["run"].isin(strayed) & np.isfinite(data["value"])].sort_values("step")
    at_end = at_end.groupby(["threshold", "run"])["value"]
    ends = at_end.apply(lambda values: values.iloc[-max(1, len(values) // 20) :].mean()).groupby("threshold").median()
    each = ", ".join(
        f"{sweeps.name_of(float(t))} {number(ends[t]) if t in ends else 'diverged'}" for t in per.index
    )  # fmt: skip
    metric = metric_words(str(data["metric"].iloc[0]))
    said = (
        f"{capital(metric)} against training step for {counted(len(per), 'threshold')} of norm "
        f"clipping (none: no clipping by norm), {over}. {f'At the end: {each}. ' if each else ''}{crosses} The axis "
        "ends a third beyond where training starts; triangles: there a run leaves it."
    )
    return " ".join([said, *select.left_out_words(data)])
