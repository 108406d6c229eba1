"""The gradient norm through training, with the clipping threshold and, below it, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.plots import lines, marks, style
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.reading.labelled import seeds_together
from gradscope.reading.norms import norms_by_step
from gradscope.reading.sweeps import diverged_from
from gradscope.words import given, number

TITLE = "Gradient norm through training"
NEEDS = "clipping through recorder.clip_grad_norm_ (or torch's own), or recorded parameter gradient norms"

#: A norm below this fraction of the usual one leaves the axis.
FLOOR = 1e-8


def table(runs: Sequence[Any]) -> pd.DataFrame:
    """One row per run and step.

    Returns
    -------
    DataFrame
        run, ``line`` (of which the runs are the seeds), step; ``norm``: total gradient norm before clipping;
        ``clipped``: after; ``threshold`` and ``kind`` of the clipping call (NaN and empty without one); ``loss`` (NaN
        where it was not logged); ``diverged``: whether the loss or the norm was never finite again.

    Raises
    ------
    NotRecordedError
        No run has a gradient norm.
    EmptyRunError
        No run has a step.
    """
    found = [(name, norms_by_step(run)) for name, run in zip(select.run_names(runs), runs, strict=True)]
    of_seed = seeds_together(runs)
    frames = [
        frame.assign(run=name, line=of_seed[name], diverged=_diverged(run, frame))[
            ["run", "line", *frame.columns, "diverged"]
        ]
        for (name, frame), run in zip(found, runs, strict=True)
        if len(frame)
    ]
    paths = ", ".join(str(run.path) for run in runs)
    if not frames:
        raise EmptyRunError(f"{paths}: no step yet, so there is nothing to draw.")
    data = pd.concat(frames, ignore_index=True)
    if data["norm"].isna().all() and not (data["norm_state"] == "non-finite").any():
        raise NotRecordedError(f"{paths}: no gradient norm was recorded. It comes from {NEEDS}.")
    known = set(data["run"][data["norm"].notna() | (data["norm_state"] == "non-finite")])
    data.attrs["left_out"] = select.left_out(runs, known, "no gradient norm was recorded")
    return data


def _diverged(run: Any, frame: pd.DataFrame) -> np.ndarray:
    steps, loss = (frame[column].to_numpy() for column in ("step", "loss"))
    return np.asarray(steps >= diverged_from(run, steps, loss))


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
        narrow = style.preset(style_name).width < 4.5
        aspect = (0.95 if narrow else 0.72) if has_loss else 0.5
        _, grid = style.figure(style_name, rows=2 if has_loss else 1, aspect=aspect)
        ax, loss_ax = (grid[0], grid[1]) if has_loss else (grid, None)
        if loss_ax is not None:
            ax.sharex(loss_ax)
            ax.tick_params(labelbottom=False)
    data = data if "line" in data else data.assign(line=data["run"])
    if data["line"].nunique() > style.MAX_LEGEND:
        data = lines.pooled(data)
    looks = style.looks(list(dict.fromkeys(data["line"])))
    marks.whole_x(ax, data["step"])
    thresholds = _thresholds(ax, data, looks)
    usual = data["norm"][data["norm"] > 0]
    curves = [rows["norm"] for _, rows in data.groupby("run", sort=False)]
    lines.limits(ax, [*curves, thresholds], start=float(usual.median()) if len(usual) else 1.0, floor=FLOOR)
    _traces(ax, data, "norm", looks)
    _non_finite(ax, data, looks, data["norm_state"] == "non-finite")
    _name_thresholds(ax)
    ax.set_ylabel("gradient norm")
    (loss_ax or ax).set_xlabel("training step")
    if loss_ax is not None:
        _loss(loss_ax, data, looks)
    if legend and data["run"].nunique() > 1:
        named = {name: label(name, style.name_limit(ax)) for name in looks}
        style.legend(ax, lines.handles(looks, named))
    return ax


def _traces(ax: Axes, data: pd.DataFrame, column: str, looks: dict[str, dict[str, Any]]) -> None:
    """The raw traces faint, their running medians strong: single steps scatter over decades."""
    strong = smoothed(data, column)
    if data["run"].nunique() <= style.MAX_LEGEND and len(looks) <= 4 and not strong[column].equals(data[column]):
        for _, rows in data.groupby("run", sort=False):
            colour = looks[rows["line"].iloc[0]]["color"]
            ax.plot(rows["step"], rows[column], color=colour, linewidth=0.5, alpha=0.35, label="_raw")
    several = bool(data.groupby("line")["run"].nunique().max() > 1)
    # Bands of many lines would hide each other, and the lines.
    band = ("runs" if len(looks) > style.MAX_BANDS else True) if several else False
    lines.draw(ax, strong, looks, x="step", y=column, line="line", band=band, log=ax.get_yscale() == "log")


def smoothed(data: pd.DataFrame, column: str) -> pd.DataFrame:
    """Every run's running median along its steps."""
    parts = []
    for _, rows in data.groupby("run", sort=False):
        value = rows[column].to_numpy(dtype=float)
        parts.append(rows.assign(**{column: running_median(value, smoothing(int(np.isfinite(value).sum())))}))
    return pd.concat(parts)


def smoothing(n: int) -> int:
    """Window of the running median: none below 60 points, then about a thirtieth of the training."""
    return 1 if n < 60 else max(5, n // 30) | 1


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """Centred running median that ignores values that are not finite and stays NaN where the value itself is."""
    clean = pd.Series(np.where(np.isfinite(y), y, np.nan))
    smooth = clean.rolling(window, center=True, min_periods=1).median().to_numpy()
    return np.where(np.isnan(clean), np.nan, smooth)


def _thresholds(ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> np.ndarray:
    """A line per norm-clipping threshold; one that changes through training (adaptive) is a curve."""
    drawn: list[float] = []
    for _, rows in data.groupby("run", sort=False):
        rows = rows[(rows["kind"] == "norm") & np.isfinite(rows["threshold"])]
        values = sorted(set(rows["threshold"]))
        if len(values) == 1 and values[0] not in drawn:
            name = f"_threshold {values[0]:g}"
            ax.axhline(values[0], color=style.ALERT, linestyle=":", linewidth=1.1, label=name)
        elif len(values) > 1:
            colour = looks[rows["line"].iloc[0]]["color"] if len(looks) > 1 else style.ALERT
            ax.plot(rows["step"], rows["threshold"], color=colour, linestyle=":", linewidth=1.1, label="_threshold")
        drawn += values
    return np.array(drawn)


def _name_thresholds(ax: Axes) -> None:
    """The constant ones beside the axes, where no curve runs through their names."""
    at = [float(np.asarray(line.get_ydata())[0]) for line in ax.get_lines()
          if str(line.get_label()).startswith("_threshold ")]  # fmt: skip
    at = [value for value in at if ax.get_ylim()[0] < value < ax.get_ylim()[1]][: lines.MAX_ENDS]
    look = {"color": style.ALERT, "linestyle": ":"}
    said = "threshold\n" if len(at) == 1 else "c = "
    lines.name_ends(ax, [(value, f"{said}{given(value)}", look) for value in at])


def _non_finite(ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]], where: pd.Series) -> None:
    for name, rows in data[where].groupby("line", sort=False):
        marks.at_edge(ax, rows["step"], top=True, color=looks[str(name)]["color"], label="not finite")


def _loss(ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    marks.whole_x(ax, data["step"])
    finite = data["loss"][np.isfinite(data["loss"])]
    if marks.over_decades(finite):
        lines.limits(ax, [rows["loss"] for _, rows in data.groupby("run", sort=False)], start=float(finite.median()))
    _traces(ax, data, "loss", looks)
    last = data[data["loss"].notna()].groupby("run")["step"].max()
    behind = data["step"] > data["run"].map(last).fillna(-1)
    _non_finite(ax, data, looks, np.isinf(data["loss"]) | (data["loss"].isna() & behind & (data["norm_state"] != "")))
    ax.set_ylabel("loss")


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    thresholds = sorted(set(data["threshold"][(data["kind"] == "norm") & np.isfinite(data["threshold"])]))
    listed = ", ".join(map(given, thresholds[:6]))
    clipping = f" Dotted: norm-clipping threshold c ({listed})." if thresholds else " No norm clipping was recorded."
    smooth = " Strong lines are running medians." if data.groupby("run").size().max() >= 60 else ""
    loss = ", and the loss" if data["loss"].notna().any() else ""
    finite = data["norm"][np.isfinite(data["norm"])]
    spread = f" Median {number(finite.median())}, largest {number(finite.max())}." if len(finite) else ""
    said = (
        f"Total 2-norm of the parameter gradients before clipping at each step ({data['step'].min()} to "
        f"{data['step'].max()}){loss}.{spread}{clipping}{smooth} Crosses on the upper edge: not finite."
    )
    return " ".join([said, *select.left_out_words(data)])
