"""A heatmap of magnitudes over many decades, with zeros and missing values told apart from small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from numpy.typing import NDArray

from gradscope.plots import marks, style

#: More decades than this hide every difference; what is smaller is drawn like the smallest shown.
MAX_DECADES = 12.0
#: More cells than this on a side are averaged (in the logarithm) before drawing: print cannot show them.
MAX_CELLS = 200

Floats = NDArray[np.float64]


def draw(
    ax: Axes,
    values: Floats,
    *,
    left: float,
    top: float,
    width: float = 1.0,
    height: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> Any:
    """Cells of ``values`` (row, column) with logarithmic colour; white is nothing.

    Hatched cells are exactly zero (grey) or not finite (red).
    ``left`` and ``top`` are the coordinates of the first cell's centre; ``width`` and ``height`` of one cell.

    Returns
    -------
    QuadMesh
        For :func:`bar`.
    """
    values, across, down = _thinned(values)
    rows, columns = values.shape
    x = left - width / 2 + width * np.arange(columns + 1) * across
    y = top - height / 2 + height * np.arange(rows + 1) * down
    low, high = limits or color_limits(values)
    ax.grid(False)
    for where, colour in ((values == 0, style.FAINT), (np.isinf(values), style.ALERT)):
        if where.any():
            _flat(ax, x, y, where, colour)
    shown = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    return ax.pcolormesh(
        x, y, shown, cmap=colormaps[style.MAGNITUDE], norm=LogNorm(low, high), rasterized=True, zorder=2
    )


def color_limits(values: Floats) -> tuple[float, float]:
    """Smallest and largest positive value, at most ``MAX_DECADES`` and at least one apart."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 0.1, 1.0
    high = float(positive.max())
    low = max(float(positive.min()), high * 10**-MAX_DECADES)
    return (low, high) if low < high else (high / 10, high)


def _flat(ax: Axes, x: Floats, y: Floats, where: NDArray[np.bool_], colour: str) -> None:
    """Cells without a place on the scale: hatched, so that grey print does not take them for small ones."""
    flat = np.ma.masked_where(~where, np.ones(where.shape))
    ax.pcolormesh(x, y, flat, cmap=ListedColormap([colour]), rasterized=True, zorder=1)
    for row, column, width in _stretches(where):
        ax.fill_between(
            [x[column], x[column + width]], y[row], y[row + 1], facecolor="none", edgecolor="white", linewidth=0,
            hatch="////", zorder=1.5,
        )  # fmt: skip


def _stretches(where: NDArray[np.bool_], most: int = 200) -> list[tuple[int, int, int]]:
    """Row, first column and width of every run of cells; the widest, where there are many."""
    padded = np.pad(where, ((0, 0), (1, 1)))
    edges = np.diff(padded.astype(np.int8), axis=1)
    rows, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]
    found = sorted(zip(rows.tolist(), first.tolist(), (last - first).tolist(), strict=True), key=lambda run: -run[2])
    return found[:most]


def _thinned(values: Floats) -> tuple[Floats, int, int]:
    """Cells joined so that neither side has more than ``MAX_CELLS``: geometric mean of what is positive."""
    down, across = (max(1, -(-n // MAX_CELLS)) for n in values.shape)
    if down == across == 1:
        return values, 1, 1
    rows, columns = -(-values.shape[0] // down), -(-values.shape[1] // across)
    padded = np.full((rows * down, columns * across), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    cells = padded.reshape(rows, down, columns, across).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    usable = np.isfinite(cells) & (cells > 0)
    logs = np.where(usable, np.log(np.where(usable, cells, 1.0)), 0.0).sum(-1)
    count = usable.sum(-1)
    joined = np.exp(logs / np.maximum(count, 1))
    empty = np.where((cells == 0).any(-1), 0.0, np.where(np.isinf(cells).any(-1), np.inf, np.nan))
    return np.where(count > 0, joined, empty), across, down


def bar(axes: list[Axes], mesh: Any, text: str) -> None:
    """A colour bar for these axes, with powers of ten like a logarithmic axis."""
    shown = np.ma.compressed(mesh.get_array())
    below, above = (shown.size and bool((shown < mesh.norm.vmin * 0.999).any()),
                    shown.size and bool((shown > mesh.norm.vmax * 1.001).any()))  # fmt: skip
    ends = "both" if below and above else "min" if below else "max" if above else "neither"
    drawn = axes[0].figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30, extend=ends, extendfrac=0.02)
    drawn.outline.set_visible(False)
    if drawn.solids is not None:
        drawn.solids.set_rasterized(True)  # as the map itself: whoever turns the picture dark treats both alike
    low, high = np.log10([mesh.norm.vmin, mesh.norm.vmax])
    ticks = marks.ticks(low, high)
    room = style.size_of(axes[0])[1] * sum(ax.get_position().height for ax in axes)  # a label takes 0.2 inches
    ticks = ticks[:: max(1, round(0.25 * len(ticks) / room))]
    drawn.set_ticks(ticks)
    drawn.set_ticklabels(marks.tick_labels(ticks))
    drawn.ax.minorticks_off()
    drawn.set_label(text)
