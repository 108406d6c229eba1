"""Curves by seaborn on an axis of ours: a floor for those that leave it, names at their ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import Bbox, ScaledTranslation

from gradscope.plots import marks, style
from gradscope.plots.text import label, powers
from gradscope.plots.titles import evenly

#: A curve that falls below this fraction of where the curves begin leaves the axis: nothing adds to 1 there in float64.
FLOOR = 1e-16
#: One that rises beyond this leaves it at the top.
CEILING = 1e6
#: More points than this on a line are thinned: no page shows them.
MAX_POINTS = 400
#: So many runs are shown one by one around their median; of more, the middle half as a band.
MAX_SEEDS = 5
#: More lines than this are not named at their ends.
MAX_ENDS = 8
#: Nor are longer names.
MAX_NAME = 26

# What stands for an exact zero on a logarithmic axis: the line leaves the axis instead of ending in the air.
_ZERO = 1e-300

Looks = Mapping[str, Mapping[str, Any]]


#: What the marks of :func:`leaving` say, for a caption.
EDGE = (
    "Triangles on the edge: there a curve leaves the axis, or is zero, as far as a line goes; crosses on the upper "
    "edge: it is not finite."
)


def draw(
    ax: Axes, data: pd.DataFrame, looks: Looks, *, x: str, y: str, line: str, band: bool | str = False, log: bool = True
) -> None:
    """One line for each value of a column, in its look; several rows at one ``x`` are their median, with their range.

    Parameters
    ----------
    ax : Axes
        Its scale is set already (:func:`limits`).
    data : DataFrame
    looks : mapping
        Value of ``line`` to ``color``, ``linestyle`` and ``marker``, in the order of drawing.
    x, y, line : str
        Columns.
    band : bool or str
        Several rows at one ``x`` are aggregated: their median with the range; "mean", without, or "mean and range"; or
        "runs": the median with each run (column ``run``) as a thin line, of more than ``MAX_SEEDS`` their middle half.
        The range of a few runs speaks of the one that went astray; thin lines show that it was one. Rows that are set
        ``aside`` (:func:`set_aside`) are shown as thin lines alone.
    log : bool
        Zeros leave the axis downwards; else they are drawn.
    """
    import seaborn

    shown = thinned(data, x, line)
    value = shown[y].where(np.isfinite(shown[y]))
    shown = shown.assign(**{y: value.mask(value == 0, _ZERO) if log else value})
    if not shown[y].notna().any():
        return
    steady = shown[~shown["aside"]] if "aside" in shown else shown
    before, around = len(ax.get_lines()), len(ax.collections)
    labels = {"xlabel": ax.get_xlabel(), "ylabel": ax.get_ylabel()}
    per_line = max(1, int(steady.groupby(line, sort=False)[x].nunique().max()))
    middle = "mean" if band in ("mean", "mean and range") else "median"
    runs = _most_runs(shown, line) if band == "runs" else 0
    spread = None if band == "mean" or 0 < runs <= MAX_SEEDS else ("pi", 50 if runs else 100)
    aggregated: dict[str, Any] = {"estimator": middle, "errorbar": spread} if band else {"estimator": None}
    seaborn.lineplot(
        steady, x=x, y=y, hue=line, style=line, hue_order=list(looks), style_order=list(looks),
        palette={name: look["color"] for name, look in looks.items()},
        dashes={name: _dash(look["linestyle"]) for name, look in looks.items()},
        markers={name: look["marker"] for name, look in looks.items()},
        markevery=max(1, per_line // 7), markeredgewidth=0, markersize=3.2, legend=False, ax=ax,
        err_kws={"alpha": 0.13, "linewidth": 0}, **aggregated,
    )  # fmt: skip
    ax.set(**labels)
    there = dict(iter(steady[steady[y].notna()].groupby(line, sort=False)))
    for artist, name in zip(ax.get_lines()[before:], [name for name in looks if name in there], strict=False):
        artist.set_label(name)
        if not band:  # seaborn took the logarithm and back, which costs the last digits
            rows = there[name].sort_values(x, kind="stable")
            artist.set_data(rows[x].to_numpy(), rows[y].to_numpy())
    for area, name in zip(ax.collections[around:], [name for name in looks if name in there], strict=False):
        area.set_label(marks.band_of(name))
    if 1 < runs <= MAX_SEEDS:
        for name, rows in shown[shown[y].notna()].groupby(line, sort=False):
            _thin(ax, rows, str(name), looks[str(name)]["color"], x, y)


def set_aside(data: pd.DataFrame, line: str = "line") -> pd.DataFrame:
    """With ``aside``: the runs that diverged, of lines of which others did not.

    A median over those that are left would jump where one leaves, although none of them did.
    """
    gone = data["diverged"].eq(True).groupby(data["run"]).transform("any")
    return data.assign(aside=gone & ~gone.groupby(data[line]).transform("all"))


def parted(data: pd.DataFrame, line: str = "line") -> dict[str, tuple[int, int]]:
    """Of each line, how many runs diverged, and how many there are."""
    gone = data["diverged"].eq(True).groupby([data[line], data["run"]], sort=False).any()
    return {str(name): (int(of.sum()), len(of)) for name, of in gone.groupby(level=0, sort=False)}


def pooled(data: pd.DataFrame) -> pd.DataFrame:
    """One ``line`` where so many would hide each other, and behind it one of the runs that diverged."""
    gone = data["diverged"].eq(True).groupby(data["run"]).transform("any")
    runs, left = data["run"].nunique(), data["run"][~gone].nunique()
    names = {False: f"median and range of {left or runs} runs", True: f"of {runs - left} that diverged"}
    named = data.assign(line=gone.map(names) if left else names[False])
    return named.iloc[np.argsort(gone.to_numpy(), kind="stable")]


def _most_runs(data: pd.DataFrame, line: str) -> int:
    return int(data.groupby(line, sort=False)["run"].nunique().max())


def around_words(runs: int) -> str:
    """What "runs" draws around the median of so many runs, in words."""
    return "thin lines: each run" if runs <= MAX_SEEDS else "band: the middle half of the runs"


def _thin(ax: Axes, rows: pd.DataFrame, name: str, color: Any, x: str, y: str) -> None:
    """Every run of a line, behind it."""
    each = [of_run.sort_values(x, kind="stable")[[x, y]].to_numpy(float) for _, of_run in rows.groupby("run")]
    thin = LineCollection(each, colors=[color], linewidths=0.6, alpha=0.45, zorder=1.5, label=marks.band_of(name))
    ax.add_collection(thin, autolim=False)


def thinned(data: pd.DataFrame, x: str, line: str) -> pd.DataFrame:
    """At most about ``MAX_POINTS`` positions, first and last included."""
    at = np.sort(data[x].unique())
    if len(at) <= MAX_POINTS or line not in data:
        return data
    kept = at[evenly(len(at), MAX_POINTS)]
    ends = data.groupby(line, sort=False)[x].agg(["min", "max"])
    return data[data[x].isin(np.union1d(kept, ends.to_numpy().ravel()))]


def _dash(linestyle: Any) -> Any:
    """A dash of matplotlib's as seaborn wants it."""
    return "" if linestyle == "-" else linestyle[1]


def limits(
    ax: Axes, curves: Sequence[Any], *, start: float = 1.0, floor: float = FLOOR, bands: Sequence[Any] = ()
) -> None:
    """A logarithmic y axis that no single curve squeezes.

    What lies below ``floor`` or above ``CEILING`` times ``start`` is out of view, unless every curve goes there; one
    that drops out within its first tenth does not make the others flat. ``bands`` are the edges of bands around curves.
    """
    marks.log_y(ax, [view(curves, start=start, floor=floor, bands=bands)])


def view(curves: Sequence[Any], *, start: float = 1.0, floor: float = FLOOR, bands: Sequence[Any] = ()) -> np.ndarray:
    """Lowest and highest value in view; empty where no curve has a positive one."""
    ends, drops = [], []
    for curve in curves:
        values, every = _positive(curve), np.size(curve)
        if values.size:
            ends.append((values.min(), values.max()))
            drops.append(np.count_nonzero(values >= floor * start) <= max(1, every // 10) < every)
    if not ends:
        return np.empty(0)
    lowest, highest = np.array(ends).T
    if not all(drops):
        lowest = lowest[~np.array(drops)]
    low = max(lowest.min(), min(floor * start, lowest.max()))
    high = min(highest.max(), max(CEILING * start, highest.min()))
    seen = (low, high) if low < high else (lowest.min(), highest.max())
    return np.array(_with_bands(*seen, _positive(np.concatenate([[], *map(np.ravel, bands)])), floor * start))


def _positive(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    return values[np.isfinite(values) & (values > 0)]


def _with_bands(low: float, high: float, edges: np.ndarray, floor: float) -> tuple[float, float]:
    """The view with the bands, which take at most half its height more, or a decade, on either side."""
    if not edges.size:
        return low, high
    more = 10.0 ** max(1.0, 0.5 * (np.log10(high) - np.log10(low)))
    return min(low, max(edges.min(), low / more, floor)), max(high, min(edges.max(), high * more))


def leaving(ax: Axes, x: Any, y: Any, color: Any, *, of: object = None) -> None:
    """A triangle where a curve first leaves the axis, or is zero; a cross where it is not finite.

    Marks do not stand on those of other curves, unless these are ``of`` the same.
    """
    x, y, of = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), of or object()
    low, high = ax.get_ylim()
    below, above = (y > 0) & (y < low), np.isfinite(y) & (y > high)
    seen = (y >= low) & (y <= high)
    leaves = _border(x, y, below, seen, low)
    marks.at_edge(ax, leaves, top=False, color=color, label="leaves the axis", of=of)
    marks.along_edge(ax, x, y == 0, top=False, color=color, label="zero", of=of)
    leaves = _border(x, y, above, seen, high)
    marks.at_edge(ax, leaves, top=True, color=color, label="leaves the axis", marker="^", of=of)
    marks.along_edge(ax, x, np.isinf(y), top=True, color=color, label="not finite", of=of)


def _border(x: np.ndarray, y: np.ndarray, outside: np.ndarray, seen: np.ndarray, edge: float) -> list[float]:
    """Where a logarithmic line crosses the edge of the axis at its first stretch outside, out of or into view."""
    at = np.flatnonzero(outside)
    if not at.size:
        return []
    first = int(at[0])
    inside = np.flatnonzero(~outside[first:])
    last = first + int(inside[0]) - 1 if inside.size else len(outside) - 1
    for out, near in ((first, first - 1), (last, last + 1)):
        if 0 <= near < len(seen) and seen[near]:
            way = np.log(edge / y[near]) / np.log(y[out] / y[near])
            return [float(x[near] + way * (x[out] - x[near]))]
    return [float(x[first])]


def handles(looks: Looks, names: Mapping[str, str] | None = None) -> list[Line2D]:
    """Entries of a legend, in the order of the looks."""
    return [Line2D([], [], label=powers((names or {}).get(name, name)), **look) for name, look in looks.items()]


def name(ax: Axes, looks: Looks, ends: Mapping[str, float], *, beside: bool, title: str | None = None) -> None:
    """Names beside the ends of the lines where they fit there (``beside``: the figure makes room), else a legend."""
    longest = max(len(each) for each in looks)
    taken = 16 + 0.5 * longest * style.small()
    if not beside or len(looks) > MAX_ENDS or longest > MAX_NAME or taken > 0.28 * 72 * style.width_of(ax):
        named = {each: label(each, style.name_limit(ax)) for each in looks}
        style.legend(ax, handles(looks, named), title=title)
        return
    name_ends(ax, [(ends.get(each, np.nan), label(each, MAX_NAME), look) for each, look in looks.items()])


def name_ends(ax: Axes, ends: Sequence[tuple[float, str, Mapping[str, Any]]]) -> None:
    """Names beside the right end of the lines, apart from each other, led to by the line's own dash.

    Parameters
    ----------
    ax : Axes
        With its final scale and limits.
    ends : sequence of (y, text, look)
        Height in data coordinates; NaN at the lower edge.
    """
    if not ends:
        return
    height = style.size_of(ax)[1] * ax.get_position(original=True).height * 72 * 0.8
    size = style.small()
    wanted = sorted(((_fraction(ax, y), text, look) for y, text, look in ends), key=lambda end: end[0])
    rows = np.array([text.count("\n") + 1 for _, text, _ in wanted]) * size * 1.12 / height
    at = within(apart(np.array([y for y, _, _ in wanted]), rows), rows)
    beside = ax.transAxes + ScaledTranslation(12 / 72, 0, ax.figure.dpi_scale_trans)
    for height_of, (y, text, look) in zip(at, wanted, strict=True):
        ax.annotate(
            powers(text), (1.0, y), xycoords="axes fraction", xytext=(1.0, float(height_of)), textcoords=beside,
            ha="left", va="center", color=look["color"], fontsize=size, linespacing=1.0, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.0,
                        "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def crosses(ax: Axes, x: float, y: float, width: float, height: float) -> bool:
    """Whether a line or the outline of a band runs through a box, all in fractions of the axes."""
    to, box = ax.transScale + ax.transLimits, Bbox.from_bounds(x, y, width, height).padded(0.01)
    drawn = [line.get_xydata() for line in ax.get_lines() if line.get_transform() == ax.transData]
    drawn += [path.vertices for area in ax.collections for path in area.get_paths()]
    for found in drawn:
        points = np.asarray(found, dtype=float)
        points = points[np.isfinite(points).all(axis=1) & (points[:, 1] > 0)]
        if len(points) and Path(to.transform(points)).intersects_bbox(box, filled=False):
            return True
    return False


def _fraction(ax: Axes, y: float) -> float:
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log":
        low, high = np.log10([low, high])
        y = np.log10(y) if y > 0 else -np.inf
    if np.isnan(y):
        return 0.0
    return float(np.clip((y - low) / (high - low), 0.0, 1.0))


def apart(at: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Sorted positions moved so that neighbours stay half the sum of their heights apart."""
    gaps = np.concatenate([[0.0], np.cumsum((height[1:] + height[:-1]) / 2)])
    level = at - gaps  # must not decrease: between the lowest sequence above it that does not and the highest below
    return gaps + (np.maximum.accumulate(level) + np.minimum.accumulate(level[::-1])[::-1]) / 2


def within(at: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Positions pushed down from the upper end of the axes, then up from the lower one, still in order and apart."""
    moved = at.copy()
    for i in range(len(moved) - 1, -1, -1):
        above = 1.0 if i == len(moved) - 1 else moved[i + 1] - height[i + 1] / 2
        moved[i] = min(moved[i], above - height[i] / 2)
    for i in range(len(moved)):
        below = 0.0 if i == 0 else moved[i - 1] + height[i - 1] / 2
        moved[i] = max(moved[i], below + height[i] / 2)
    return moved
