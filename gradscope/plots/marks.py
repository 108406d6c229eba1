"""Logarithmic axes that tell the truth about zeros, and marks for what a line cannot show."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from gradscope.plots import style

# Beyond these a tick would be 0 or inf in float64.
_LOWEST, _HIGHEST = -307.5, 307.5
#: Marks on an edge stand at least so far apart, points: closer ones run into a bar.
_APART = 7.0
#: How many rows of them there may be, and how far apart, of the height of the axes.
_ROWS, _LIFT = 8, 0.025
# What marks, and lines along an edge, are of.
_OF: WeakKeyDictionary[Line2D, object] = WeakKeyDictionary()


def log_y(ax: Axes, values: Iterable[ArrayLike], *, decades: float = 1.0) -> None:
    """Logarithmic y axis around the positive finite ``values``, at least ``decades`` high, with readable powers.

    A constant curve still gets labelled ticks, and a curve over hundreds of decades stays inside float64.
    """
    arrays = [np.asarray(v, dtype=np.float64).ravel() for v in values]
    flat = np.concatenate(arrays) if arrays else np.empty(0)
    flat = flat[np.isfinite(flat) & (flat > 0)]
    ax.autoscale(False, axis="y")  # its margins overflow on hundreds of decades
    ax.set_yscale("log", nonpositive="mask")
    low, high = (np.log10(flat.min()), np.log10(flat.max())) if flat.size else (-1.0, 0.0)
    missing = max(0.0, decades - (high - low)) / 2
    pad = 0.05 * max(high - low, decades)
    low, high = max(low - missing - pad, _LOWEST), min(high + missing + pad, _HIGHEST)
    ax.set_ylim(10.0**low, 10.0**high)
    at = ticks(low, high)
    names = dict(zip(at, tick_labels(at), strict=True))
    ax.yaxis.set_major_locator(FixedLocator(at))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
    if high - low > 4:
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_minor_locator(LogLocator(base=10, subs=tuple(np.arange(0.2, 1.0, 0.1))))
        ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def over_decades(values: ArrayLike) -> bool:
    """Whether positive values lie so far apart that a linear axis would show one of them alone."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return bool(finite.size and finite.min() > 0 and finite.max() > 50 * finite.min())


def powers_y(ax: Axes, logs: Iterable[ArrayLike], *, decades: float = 1.0) -> None:
    """Linear y axis around finite decadic logarithms, labelled as powers of ten: reaches beyond float64's range."""
    flat = np.concatenate([np.asarray(v, dtype=np.float64).ravel() for v in logs])
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (-1.0, 0.0)
    missing, pad = max(0.0, decades - (high - low)) / 2, 0.05 * max(high - low, decades)
    low, high = low - missing - pad, high + missing + pad
    ax.set_ylim(low, high)
    step = _spacing(low, high)
    at = [e for e in range(int(np.ceil(low)), int(np.floor(high)) + 1) if e % step == 0]
    if len(at) > 1:
        ax.set_yticks(at, ["1" if e == 0 else f"$10^{{{e}}}$" for e in at])
    else:  # hardly a decade in view: label 2 and 5 as well
        around = [(m, e) for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in (1, 2, 5)]
        around = [(m, e) for m, e in around if low <= e + np.log10(m) <= high]
        digits = all(abs(e) <= 3 for _, e in around)
        names = [f"{m * 10.0**e:g}" if digits else rf"${m}\cdot10^{{{e}}}$" for m, e in around]
        ax.set_yticks([e + float(np.log10(m)) for m, e in around], names)


def log_x(ax: Axes, low: float, high: float) -> None:
    """Logarithmic x axis from ``low`` to ``high``, ticks labelled like those of :func:`log_y`."""
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    at = ticks(float(np.log10(low)), float(np.log10(high)))
    longest = max((len(name.strip("$")) for name in tick_labels(at)), default=1)
    room = 72 * style.width_of(ax) / (min(longest + 1.5, 6) * style.character() * style.small())
    at = at[:: max(1, int(np.ceil(len(at) / max(room, 1.0))))]
    ax.xaxis.set_major_locator(FixedLocator(at))
    names = dict(zip(at, tick_labels(at), strict=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def ticks(low: float, high: float) -> list[float]:
    """At most about seven positions, at powers whose spacing is 1, 2, 5, 10, 20 ... decades."""
    first, last = int(np.ceil(low)), int(np.floor(high))
    step = _spacing(low, high)
    exponents = [e for e in range(first, last + 1) if e % step == 0]
    if len(exponents) >= 3 or (len(exponents) == 2 and high - low > 1.9):
        return [10.0**e for e in exponents]
    # Hardly two powers of ten in view: label 2 and 5 as well.
    around = [m * 10.0**e for e in range(first - 1, last + 2) for m in (1, 2, 5)]
    around = [tick for tick in around if low <= np.log10(tick) <= high]
    if len(around) >= 2:
        return around
    even = MaxNLocator(nbins=4).tick_values(10.0**low, 10.0**high)  # so narrow that a linear scale reads the same
    return [float(tick) for tick in even if low <= np.log10(max(tick, 1e-300)) <= high]


def _spacing(low: float, high: float) -> int:
    """Decades between two labels, so that about seven fit."""
    whole = int(np.floor(high)) - int(np.ceil(low))
    return next(m * 10**e for e in range(12) for m in (1, 2, 5) if whole / (m * 10**e) <= 6)


def tick_labels(at: list[float]) -> list[str]:
    """Digits where all are short, else powers of ten: the two are not mixed on one axis."""
    digits = all(1e-3 <= tick < 1e5 for tick in at)
    return [f"{tick:.6g}" if digits else power(tick) for tick in at]


def power(value: float) -> str:
    """A tick label as a power of ten; 1 itself in digits, because it is what a relative curve starts from."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    mantissa = value / 10.0**exponent
    if abs(mantissa - 1) > 1e-6:
        return rf"${mantissa:.3g}\cdot10^{{{exponent}}}$"
    return "1" if exponent == 0 else f"$10^{{{exponent}}}$"


def whole_x(ax: Axes, values: ArrayLike) -> None:
    """x axis of whole numbers (lags, steps), tight around the data, with room where there is a single one."""
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    pad = 0.02 * (high - low) if high > low else 0.5
    ax.set_xlim(low - pad, high + pad)
    # As many labels as the panel's width has room for.
    size = style.size_of(ax)[0] * ax.get_position(original=True).width
    ax.xaxis.set_major_locator(
        MaxNLocator(nbins=int(np.clip(size * 2.6, 4, 8)), steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )


def thin_x(fig: Figure) -> None:
    """Leave out labels of x axes that would run into each other, where names beside the panels took their room.

    Call it when everything else stands in its place.
    """
    fig.draw_without_rendering()
    for ax in fig.axes:
        low, high = sorted(ax.get_xlim())
        ticks = [tick for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        ticks = [tick for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
        boxes = [tick.label1.get_window_extent().padded(0.02 * fig.dpi) for tick in ticks]
        every = 1
        while any(left.x1 > right.x0 for left, right in pairwise(boxes[::every])):
            every += 1
        if every > 1:
            ax.xaxis.set_major_locator(FixedLocator([tick.get_loc() for tick in ticks[::every]]))


def along_edge(
    ax: Axes, x: ArrayLike, where: ArrayLike, *, top: bool, color: Any, label: str, of: object = None
) -> None:
    """A mark on the edge wherever a stretch of ``x`` begins, and a line as far as the stretch goes.

    A mark at each of its positions would be as loud as a curve, and nothing is to be seen there. ``of`` as in
    :func:`at_edge`.
    """
    x, inside = np.asarray(x, dtype=np.float64), np.r_[0, np.asarray(where, dtype=np.int8), 0]
    firsts, ends = (np.flatnonzero(np.diff(inside) == way) for way in (1, -1))
    stretches = list(zip(x[firsts], x[ends - 1], strict=True))
    height = _height(ax, top, stretches, of)
    if stretches:
        _stand(ax, x[firsts], height, of, linestyle="none", marker="x" if top else "v", color=color, label=label)
    for stretch in stretches:
        _stand(ax, stretch, height, of, linewidth=0.9, solid_capstyle="butt", color=color, label=label)


def at_edge(ax: Axes, x: ArrayLike, *, top: bool, color: Any, label: str, marker: str = "", of: object = None) -> None:
    """Marks on the lower (exact zero, underflow) or upper (not finite) edge, where a log axis has no place for them.

    Neighbouring positions are thinned to what can be told apart at the width of the panel. Marks stand above those
    that stand there already, unless these are ``of`` the same.
    """
    x = np.asarray(x, dtype=np.float64)
    if not x.size:
        return
    low, high = ax.get_xlim()
    places = np.clip(style.width_of(ax) * 72 / _APART, 4, 48)
    slots = np.unique(np.floor((x - x.min()) / max(high - low, 1e-12) * places + 1e-9), return_index=True)[1]
    height = _height(ax, top, [(at, at) for at in x[slots]], of)
    marker = marker or ("x" if top else "v")
    _stand(ax, x[slots], height, of, linestyle="none", marker=marker, color=color, label=label)


def _stand(ax: Axes, x: ArrayLike, height: float, of: object, *, label: str, **look: Any) -> None:
    where: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 4}
    (drawn,) = ax.plot(x, np.full(np.size(x), height), markersize=3.6, label=f"_{label}", **where, **look)
    _OF[drawn] = of


def _height(ax: Axes, top: bool, spans: list[tuple[float, float]], of: object) -> float:
    """How high marks stand, of the axes' own height: in the row nearest to the edge that is free where they go."""
    low, high = ax.get_xlim()
    apart = _APART * (high - low) / (72 * style.width_of(ax))
    taken = set()
    for line in ax.get_lines():
        if line in _OF and (of is None or _OF[line] != of):
            x = np.asarray(line.get_xdata(), dtype=np.float64)
            standing = [(at, at) for at in x] if line.get_linestyle() == "None" else [(x[0], x[-1])]
            if any(a < last + apart and first < b + apart for first, last in standing for a, b in spans):
                taken.add(float(np.asarray(line.get_ydata())[0]))
    heights = [0.985 - _LIFT * row if top else 0.015 + _LIFT * row for row in range(_ROWS)]
    return next((height for height in heights if height not in taken), heights[-1])


def band_of(line: str) -> str:
    """Label of the band, or of the thin lines, around the line of this name; no legend shows it."""
    return f"_band {line}"


def band(ax: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, color: Any, line: str = "") -> None:
    """A translucent band around a line; of many points every n-th is enough and keeps files small."""
    x, low, high = (np.asarray(v, dtype=np.float64) for v in (x, low, high))
    every = max(1, x.size // 1000)
    keep = slice(None, None, every)
    ax.fill_between(x[keep], low[keep], high[keep], color=color, alpha=0.16, linewidth=0, zorder=1, label=band_of(line))
