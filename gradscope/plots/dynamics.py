"""How the dynamics change with training: largest Lyapunov exponents, and how unevenly directions fare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscope.errors import SettingError
from gradscope.plots import lines, marks, style
from gradscope.words import number

TITLE = "Lyapunov exponents and Jacobian condition through training"
NEEDS = "gradscope.spectrum(model, x) at several steps of training, saved with spectrum.save(path, step=...)"
FROM_RUNS = False
PROBES = "Spectrum"


def table(spectra: Mapping[Any, Any], *, lag: int | None = None) -> pd.DataFrame:
    """One row per model and step of training.

    Parameters
    ----------
    spectra : mapping
        Step to :class:`gradscope.Spectrum`; or name of a model to such a mapping.
    lag : int, optional
        Of the Jacobian ∂s_T/∂s_{T−lag}; the smallest from 1 on that all hold when not given.

    Returns
    -------
    DataFrame
        run, step; ``exponent``, ``low``, ``high``: largest Lyapunov exponent (ln per step), mean and range over the
        sequences; lag; ``condition``: log10 of the largest over the smallest singular value, median over the sequences
        (``inf`` where a direction is destroyed).

    Raises
    ------
    SettingError
        Nothing to draw, or no such lag.
    """
    named = spectra if all(isinstance(value, Mapping) for value in spectra.values()) else {"": spectra}
    every = [one for of_model in named.values() for one in of_model.values()]
    if not every:
        raise SettingError("no spectra to draw: pass a mapping of steps to what gradscope.spectrum measured.")
    at = _lag(every, lag)
    rows = [_row(str(name), int(step), one, at) for name, of in named.items() for step, one in sorted(of.items())]
    return pd.DataFrame(rows)


def _lag(every: list[Any], lag: int | None) -> int:
    common = set.intersection(*({int(each) for each in one.lags} for one in every))
    if lag is None:
        lag = min((each for each in common if each >= 1), default=-1)
    if lag not in common:
        raise SettingError(f"the spectra hold no common lag {'from 1 on' if lag < 0 else lag}.")
    return lag


def _row(name: str, step: int, one: Any, lag: int) -> dict[str, Any]:
    per = np.asarray(one.exponents_per_sequence, dtype=np.float64)
    largest = per.max(axis=1) if per.size else np.array([np.nan])
    logs = np.asarray(one.log_singular_values[list(one.lags).index(lag)], dtype=np.float64) / np.log(10)
    known = logs[~np.isnan(logs).any(axis=-1)]
    with np.errstate(invalid="ignore"):
        condition = float(np.median(known.max(-1) - known.min(-1))) if known.size else np.nan
    ends = {"exponent": float(largest.mean()), "low": float(largest.min()), "high": float(largest.max())}
    return {"run": name, "step": step, **ends, "lag": lag, "condition": condition}


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", column: str = "exponent") -> Axes:
    """One of the two quantities against the training step, a line per model; at an exponent of 0 nothing is lost.

    Raises
    ------
    SettingError
        A column other than ``exponent`` and ``condition``.
    """
    if column not in ("exponent", "condition"):
        raise SettingError(f"column must be exponent or condition, got {column!r}.")
    own, ax = ax is None, style.axes(ax, style=style_name)
    looks = style.looks(list(dict.fromkeys(data["run"])))
    marks.whole_x(ax, data["step"])
    if column == "condition":
        marks.powers_y(ax, [data["condition"]])
    lines.draw(ax, data, looks, x="step", y=column, line="run", log=False)
    for name, rows in data.groupby("run", sort=False):
        colour = looks[str(name)]["color"]
        if column == "exponent" and len(looks) <= style.MAX_BANDS:
            marks.band(ax, rows["step"], rows["low"], rows["high"], colour)
        gone = rows["step"][np.isinf(rows[column])]
        marks.at_edge(ax, gone, top=column == "condition", color=colour, label="destroyed")
    if column == "exponent":
        ax.axhline(0.0, color=style.GREY, linewidth=0.8, linestyle=":", label="_preserved", zorder=1)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if not np.isfinite(data[column]).any():
        style.note(ax, "a direction is destroyed at every step" if np.isinf(data[column]).any() else "not measured")
    elif len(looks) > 1:
        ends = data[np.isfinite(data[column])].groupby("run")[column].last().to_dict()
        lines.name(ax, looks, ends, beside=own)
    ax.set_xlabel("training step")
    lag = int(data["lag"].iloc[0])
    condition = rf"$\sigma_{{max}}/\sigma_{{min}}$ of $\partial s_T/\partial s_{{T-{lag}}}$"
    ax.set_ylabel("largest exponent (ln per step)" if column == "exponent" else condition)
    return ax


def panels(data: pd.DataFrame, *, style_name: str = "screen") -> Figure:
    """Exponent and condition below each other."""
    fig, grid = style.figure(style_name, rows=2, aspect=0.8 if style.preset(style_name).width > 4.5 else 1.2)
    for ax, column in zip(grid, ("exponent", "condition"), strict=True):
        draw(data, ax, style_name=style_name, column=column)
    grid[0].set_xlabel("")
    if data["run"].nunique() > 1 and grid[1].get_legend() is not None and grid[0].get_legend() is not None:
        grid[1].get_legend().remove()
    return fig


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    each = []
    for name, rows in data.groupby("run", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        whose = f"{name}: " if name else ""
        ends = [f"{number(row['exponent'])} at step {row['step']}" for row in (first, last)]
        each.append(f"{whose}{', '.join(dict.fromkeys(ends))}")
    return (
        f"Largest Lyapunov exponent of the joint state (ln per step; band: over the sequences): {'; '.join(each)}. "
        f"Below, ratio of the largest to the smallest singular value of the Jacobian over {data['lag'].iloc[0]} "
        "recurrent steps, median over the sequences; crosses: a direction is destroyed."
    )
