"""What any norm-clipping threshold would have done to the recorded gradient norms, without retraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gradscope.diagnostics import ThresholdEffect, threshold_table
from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import lines, marks, style
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.reading.clip_calls import of_steps
from gradscope.reading.counted import read
from gradscope.reading.norms import raw_norms
from gradscope.reading.sweeps import final_value
from gradscope.words import few, given, percent

TITLE = "What a clipping threshold would have done"
NEEDS = "clipping through recorder.clip_grad_norm_ (or torch's own), or recorded parameter gradient norms"


def table(runs: Sequence[Any], *, thresholds: Sequence[float] | None = None, points: int = 61) -> pd.DataFrame:
    """One row per run and threshold.

    Parameters
    ----------
    runs : sequence of Run
    thresholds : sequence of float, optional
        By default ``points`` of them, evenly spaced in the logarithm across the norms of all runs.

    Returns
    -------
    DataFrame
        run, threshold; ``clipped``: share of the recorded norms above it; ``scale_mean`` and ``scale_p05`` to
        ``scale_p95``: of the factor min(1, c / (norm + 1e-6)); ``norm_median`` and ``norm_max`` after clipping; ``n``
        finite norms; ``used``: whether the run was clipped by its norm at this very threshold; ``diverged``: whether
        it did, so that its norms end there.

    Raises
    ------
    NotRecordedError
        No run has a gradient norm that is finite and positive.
    SettingError
        A threshold that is not positive.
    """
    found = {}
    for name, run in zip(select.run_names(runs), runs, strict=True):
        norms = raw_norms(run)["norm"]
        gone = final_value(run, "loss")[1] is not None
        found[name] = _positive(norms), norms.to_numpy(dtype=float), _used(run), gone
    every = np.concatenate([positive for positive, *_ in found.values()])
    if not every.size:
        paths = ", ".join(str(run.path) for run in runs)
        raise NotRecordedError(f"{paths}: no finite gradient norm was recorded. It comes from {NEEDS}.")
    if thresholds is not None and not all(c > 0 for c in thresholds):
        raise SettingError(f"thresholds must be positive, got {', '.join(map(str, thresholds))}.")
    frames = []
    for name, (positive, norms, used, gone) in found.items():
        if positive.size:
            at = sorted({*(thresholds or _grid(every, points)), *used})
            effects = threshold_table(norms, at)
            columns = {of.name: [getattr(effect, of.name) for effect in effects] for of in fields(ThresholdEffect)}
            frames.append(pd.DataFrame({"run": name, **columns, "used": np.isin(at, used), "diverged": gone}))
    data = pd.concat(frames, ignore_index=True)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no finite gradient norm")
    return data


def _positive(norms: pd.Series) -> np.ndarray:
    values = norms.to_numpy(dtype=float)
    return values[np.isfinite(values) & (values > 0)]


def _used(run: Any) -> tuple[float, ...]:
    """Thresholds of the run's own norm clipping; none if there are many (adaptive to the past)."""
    clips = of_steps(read(run).clips())
    values = {float(c) for c in clips["threshold"][clips["kind"] == "norm"] if 0 < c < np.inf} if len(clips) else set()
    return tuple(sorted(values)) if len(values) <= 3 else ()


def _grid(norms: np.ndarray, points: int) -> list[float]:
    low, high = np.log10(norms.min()) - 0.15, np.log10(norms.max()) + 0.15
    return [float(f"{10**e:.4g}") for e in np.linspace(max(low, -300), min(high, 300), points)]


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Share of steps clipped (solid) and median scale (dashed) against the threshold; a dot where the run clipped.

    With one run a band shows the middle half of the scale. More than a legend holds are their median and range.
    """
    ax = style.axes(ax, style=style_name)
    data = data.assign(run=data["run"].astype(str))
    if data["run"].nunique() > style.MAX_LEGEND:
        return _spread(ax, data, legend)
    runs = list(data.groupby("run", sort=False))
    looks = style.looks([str(name) for name, _ in runs])
    few, several = len(runs) <= style.MAX_BANDS, len(runs) > 1
    shares = {
        # Where no second kind of line needs the dash, it tells the runs apart in grey.
        name: {**look, "linestyle": "-" if few else look["linestyle"], "marker": look["marker"] if several else ""}
        for name, look in looks.items()
    }
    marks.log_x(ax, data["threshold"].min() / 1.1, data["threshold"].max() * 1.1)
    lines.draw(ax, data, shares, x="threshold", y="clipped", line="run", log=False)
    if few:
        scales = {
            name: {**look, "linestyle": (0, (4, 1.6)), "marker": shares[name]["marker"]} for name, look in looks.items()
        }
        lines.draw(ax, data, scales, x="threshold", y="scale_p50", line="run", log=False)
    for name, rows in runs:
        colour = looks[str(name)]["color"]
        if len(runs) == 1:
            marks.band(ax, rows["threshold"], rows["scale_p25"], rows["scale_p75"], colour)
        used = rows[rows["used"]]
        ax.plot(
            used["threshold"], used["clipped"], linestyle="none", marker="o", markersize=7, markeredgewidth=1.4,
            markerfacecolor="white", color=colour, label="_used", zorder=5,
        )  # fmt: skip
    _axes_of(ax, data)
    if legend:
        named = {name: label(name, style.name_limit(ax)) for name in looks}
        style.legend(ax, _handles(runs, data, lines.handles(shares, named)))
    return ax


def _spread(ax: Axes, data: pd.DataFrame, legend: bool) -> Axes:
    """Of so many runs that their lines would hide each other: median and range at the thresholds that all have."""
    runs = data["run"].nunique()
    shared = data[data.groupby("threshold")["run"].transform("nunique") == runs]
    shared = lines.pooled(shared)
    looks = style.looks(list(dict.fromkeys(shared["line"])))
    marks.log_x(ax, data["threshold"].min() / 1.1, data["threshold"].max() * 1.1)
    lines.draw(ax, shared, looks, x="threshold", y="clipped", line="line", band=True, log=False)
    used = data[data["used"]].drop_duplicates(["threshold", "clipped"])
    ax.plot(
        used["threshold"], used["clipped"], linestyle="none", marker="o", markersize=3, alpha=0.6,
        markerfacecolor="white", color=style.ALERT, label="_used", zorder=5,
    )  # fmt: skip
    _axes_of(ax, data)
    if legend:
        dot: dict[str, Any] = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "linestyle": "none"}
        named = [Line2D([], [], color=style.ALERT, label="used in training", **dot)] if len(used) else []
        style.legend(ax, [*lines.handles(looks), *named])
    return ax


def _axes_of(ax: Axes, data: pd.DataFrame) -> None:
    ax.set_ylim(-0.03, 1.05)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_xlabel("threshold of norm clipping")
    ax.set_ylabel("share of steps, scale" if data["run"].nunique() <= style.MAX_BANDS else "share of steps clipped")


def _handles(runs: list[Any], data: pd.DataFrame, named: list[Line2D]) -> list[Any]:
    colour = style.PALETTE[0] if len(runs) == 1 else style.GREY
    kinds = []
    if len(runs) <= style.MAX_BANDS:
        kinds.append(Line2D([], [], color=colour, label="steps clipped"))
        kinds.append(Line2D([], [], color=colour, linestyle=(0, (4, 1.6)), label="median scale"))
    if data["used"].any():
        look: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "white", "linestyle": "none"}
        kinds.append(Line2D([], [], color=colour, label="used in training", **look))
    return kinds + (named if len(runs) > 1 else [])


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    n = sorted(set(data["n"]))
    used = data[data["used"]]
    each = few([f"{row.run} {percent(row.clipped)} at {given(row.threshold)}" for row in used.itertuples()])
    curves = "(solid), median factor min(1, c/norm) (dashed; band: middle half, for a single run)"
    if data["run"].nunique() > style.MAX_BANDS:
        curves = "(a line for each run)"
    if (runs := data["run"].nunique()) > style.MAX_LEGEND:
        gone = data.drop_duplicates("run")["diverged"].sum()
        apart = f"; the {gone} that diverged apart" if 0 < gone < runs else ""
        curves = f"(median and range of {runs} runs, at the thresholds that all have{apart})"
    norms = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    said = (
        f"Share of recorded steps whose gradient norm lies above the threshold {curves}, from {norms} recorded "
        f"norms a run.{f' Clipped in training: {each}.' if each else ''} It describes the recorded training: with "
        "another threshold the training, and so the norms, would have gone another way."
    )
    return " ".join([said, *select.left_out_words(data)])
