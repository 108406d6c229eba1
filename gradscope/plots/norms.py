"""The gradient norm through training, with the clipping threshold and, below it, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.plots import marks, style
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.reading.norms import norms_by_step

TITLE = "Gradient norm through training"
NEEDS = "clipping through recorder.clip_grad_norm_ (or torch's own), or recorded parameter gradient norms"


def table(runs: Sequence[Any]) -> pd.DataFrame:
    """One row per run and step.

    Returns
    -------
    DataFrame
        run, step; ``norm``: total gradient norm before clipping; ``clipped``: after; ``threshold`` and ``kind`` of the
        clipping call (NaN and empty without one); ``loss`` (NaN where it was not logged).

    Raises
    ------
    NotRecordedError
        No run has a gradient norm.
    EmptyRunError
        No run has a step.
    """
    found = [(name, norms_by_step(run)) for name, run in zip(select.run_names(runs), runs, strict=True)]
    frames = [frame.assign(run=name)[["run", *frame.columns]] for name, frame in found if len(frame)]
    paths = ", ".join(str(run.path) for run in runs)
    if not frames:
        raise EmptyRunError(f"{paths}: no step yet, so there is nothing to draw.")
    data = pd.concat(frames, ignore_index=True)
    if data["norm"].isna().all() and not (data["norm_state"] == "non-finite").any():
        raise NotRecordedError(f"{paths}: no gradient norm was recorded. It comes from {NEEDS}.")
    return data


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    loss_ax: Axes | None = None,
    style_name: str = "screen",
    legend: bool = True,
) -> Axes:
    """Norms on a logarithmic axis, thresholds as dotted lines, the loss on ``loss_ax`` below.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax, loss_ax : Axes, optional
        Without ``ax`` a figure with both panels is made; with ``ax`` alone the loss is left out.

    Notes
    -----
    Steps whose norm is not finite are crosses on the upper edge; a loss that is not finite likewise.
    """
    if ax is None:
        has_loss = np.isfinite(data["loss"]).any()
        _, grid = style.figure(style_name, rows=2 if has_loss else 1, aspect=0.72 if has_loss else 0.5)
        ax, loss_ax = (grid[0], grid[1]) if has_loss else (grid, None)
        if loss_ax is not None:
            ax.sharex(loss_ax)
            ax.tick_params(labelbottom=False)
    runs = list(data.groupby("run", sort=False))
    marks.whole_x(ax, data["step"])
    for i, (name, rows) in enumerate(runs):
        _trace(ax, rows, "norm", i, label(str(name), style.name_limit(ax)), len(runs))
    thresholds = _thresholds(ax, runs)
    marks.log_y(ax, [data["norm"], thresholds])
    _non_finite(ax, runs, lambda rows: rows["norm_state"] == "non-finite")
    ax.set_ylabel("gradient norm")
    (loss_ax or ax).set_xlabel("training step")
    if loss_ax is not None:
        _loss(loss_ax, data, runs)
    if legend and len(runs) > 1:
        style.legend(ax)
    return ax


def _trace(ax: Axes, rows: pd.DataFrame, column: str, i: int, name: str, n_lines: int) -> None:
    """The raw trace faint, its running median strong: single steps scatter over decades."""
    look = style.look(i)
    step, y = rows["step"].to_numpy(), rows[column].to_numpy(dtype=float)
    window = smoothing(np.isfinite(y).sum())
    if window > 1:
        if n_lines <= 4:
            ax.plot(step, y, color=look["color"], linewidth=0.5, alpha=0.35, label="_raw")
        y = running_median(y, window)
    ax.plot(step, y, label=name, markevery=style.mark_every(step.size, i), **look)


def smoothing(n: int) -> int:
    """Window of the running median: none below 60 points, then about a thirtieth of the training."""
    return 1 if n < 60 else max(5, n // 30) | 1


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """Centred running median that ignores values that are not finite and stays NaN where the value itself is."""
    clean = pd.Series(np.where(np.isfinite(y), y, np.nan))
    smooth = clean.rolling(window, center=True, min_periods=1).median().to_numpy()
    return np.where(np.isnan(clean), np.nan, smooth)


def _thresholds(ax: Axes, runs: list[tuple[Any, pd.DataFrame]]) -> np.ndarray:
    """A line per norm-clipping threshold; one that changes through training (adaptive) is a curve."""
    drawn: list[float] = []
    for i, (_, rows) in enumerate(runs):
        rows = rows[(rows["kind"] == "norm") & np.isfinite(rows["threshold"])]
        values = sorted(set(rows["threshold"]))
        colour = style.look(i)["color"] if len(runs) > 1 else style.ALERT
        if len(values) == 1 and values[0] not in drawn:
            ax.axhline(values[0], color=colour, linestyle=":", linewidth=1.1, label=f"_threshold {values[0]:g}")
            ax.annotate(
                f"threshold {values[0]:g}", (1.0, values[0]), xycoords=ax.get_yaxis_transform(),
                ha="right", va="bottom", color=colour, fontsize="small", xytext=(0, 1), textcoords="offset points",
                bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )  # fmt: skip
        elif len(values) > 1:
            ax.plot(rows["step"], rows["threshold"], color=colour, linestyle=":", linewidth=1.1, label="_threshold")
        drawn += values
    return np.array(drawn)


def _non_finite(ax: Axes, runs: list[tuple[Any, pd.DataFrame]], where: Any) -> None:
    for i, (_, rows) in enumerate(runs):
        marks.at_edge(ax, rows["step"][where(rows)], top=True, color=style.look(i)["color"], label="not finite")


def _loss(ax: Axes, data: pd.DataFrame, runs: list[tuple[Any, pd.DataFrame]]) -> None:
    marks.whole_x(ax, data["step"])
    for i, (name, rows) in enumerate(runs):
        _trace(ax, rows, "loss", i, label(str(name), style.name_limit(ax)), len(runs))
        logged = rows["loss"].notna()
        last = rows["step"][logged].max() if logged.any() else -1
        bad = np.isinf(rows["loss"]) | (rows["loss"].isna() & (rows["step"] > last) & (rows["norm_state"] != ""))
        marks.at_edge(ax, rows["step"][bad], top=True, color=style.look(i)["color"], label="not finite")
    finite = data["loss"][np.isfinite(data["loss"])]
    if len(finite) and finite.min() > 0 and finite.max() > 50 * finite.min():
        marks.log_y(ax, [finite])
    ax.set_ylabel("loss")


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    thresholds = sorted(set(data["threshold"][(data["kind"] == "norm") & data["threshold"].notna()]))
    listed = ", ".join(f"{t:g}" for t in thresholds[:6])
    clipping = f" Dotted: norm-clipping threshold ({listed})." if thresholds else " No norm clipping was recorded."
    smooth = " Strong lines are running medians." if data.groupby("run").size().max() >= 60 else ""
    return (
        f"Total 2-norm of the parameter gradients before clipping at each step ({data['step'].min()} to "
        f"{data['step'].max()}), and the loss.{clipping}{smooth} Crosses on the upper edge: not finite."
    )
