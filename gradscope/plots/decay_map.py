"""Decay curves of very many sites or runs: a row each, lag to the right, what is left as its colour."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.plots import heatmap, marks, style
from gradscope.plots.text import label

#: More sites or lines than this are drawn as a map.
MAX_SITES, MAX_LINES = 6, 12
#: More rows than this in a map are not named.
MAX_ROWS = 48
#: Height of those, inches.
UNNAMED = 3.4


def is_map(named: pd.DataFrame) -> bool:
    """Whether these are too many for lines."""
    return named["site"].nunique() > MAX_SITES or named["name"].nunique() > MAX_LINES


def draw(
    data: pd.DataFrame,
    ax: Axes | None,
    style_name: str,
    shown_as: str,
    *,
    across: str = "lag (recurrent steps back from the last)",
    arrives: str = "last",
) -> Axes:
    """A row per line, lag to the right, logarithmic colour; too many rows are sorted by what arrives, and not named.

    Parameters
    ----------
    data : DataFrame
        Rows of :func:`gradscope.plots.decay.table`, with the ``name`` of their line and what is ``shown``.
    ax : Axes, optional
    style_name, shown_as : str
        ``shown_as`` stands beside the colours.
    across : str
        What the column ``lag`` is called.
    arrives : {"last", "first"}
        At which of them the gradient has come furthest.
    """
    grid = data.groupby(["name", "lag"], sort=False)["shown"].median().unstack("lag")
    lost = (data["n_zero"] + data["n_below_normal"] > data["n_sequences"]).groupby([data["name"], data["lag"]]).any()
    grid = grid.where(grid.notna() | ~lost.unstack("lag").reindex_like(grid).fillna(False).astype(bool), 0.0)
    named = len(grid) <= MAX_ROWS
    if not named:
        end = grid.ffill(axis=1).iloc[:, -1] if arrives == "last" else grid.bfill(axis=1).iloc[:, 0]
        grid = grid.loc[end.sort_values(ascending=False, kind="stable").index]
    ax = style.axes(
        ax, style=style_name, aspect=style.fitting(style_name, 0.9 + (0.17 * len(grid) if named else UNNAMED))
    )
    lags = grid.columns.to_numpy()
    mesh = heatmap.draw(ax, grid.to_numpy(), left=float(lags[0]), top=0, limits=_colours(grid.to_numpy()))
    marks.whole_x(ax, lags)
    ax.set_ylim(len(grid) - 0.5, -0.5)
    ax.set_xlim(lags[0] - 0.5, lags[-1] + 0.5)
    if named:
        names = _short([str(name) for name in grid.index], 24 if style.size_of(ax)[0] < 4.5 else 40)
        ax.set_yticks(range(len(grid)), names)
        taken = max(map(len, names)) * style.character() * style.small() / 72
        if style.size_of(ax)[0] - taken < 2.0:  # inches, of which the colours and their name take most of one
            ax.xaxis.set_major_locator(MaxNLocator(nbins=2, integer=True, min_n_ticks=1))
    ax.set_ylabel("" if named else f"{len(grid)} lines, by what arrives at the {arrives} {across.split()[0]}")
    ax.set_xlabel(across)
    heatmap.bar([ax], mesh, shown_as)
    return ax


def _short(names: list[str], most: int) -> list[str]:
    """Names of rows, shortened unless that makes two of them one: without their quantity first, then in the middle."""
    plain = [name.split(", ∂L/∂")[0] for name in names]
    kept = plain if max(map(len, names)) > most and len(set(plain)) == len(names) else names
    short = [label(name, most) for name in kept]
    return short if len(set(short)) == len(short) else [label(name, 36) for name in kept]


def _colours(grid: np.ndarray) -> tuple[float, float]:
    """Ends of the colours: a few lines that explode, or collapse, have the last one instead of squeezing the others."""
    low, high = heatmap.color_limits(grid)
    positive = np.where(np.isfinite(grid) & (grid > 0), grid, np.nan)
    rows = positive[~np.isnan(positive).all(axis=1)]
    if len(rows) < 3:
        return low, high
    high = min(high, 10 * float(np.quantile(np.nanmax(rows, axis=1), 0.75)))
    usual = float(np.quantile(np.nanmin(rows, axis=1), 0.25)) / 10
    low = max(float(np.nanmin(rows)), usual, high * 10**-heatmap.MAX_DECADES)
    return (low, high) if low < high else (high / 10, high)
