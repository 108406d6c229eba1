"""One look for every figure: palette, lines that survive grey print, paper widths, legends.

Nothing here touches pyplot or the user's rcParams: a style is a context, a figure is an object. To write a figure
to a file see :mod:`gradscope.plots.saving`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from gradscope.errors import UnknownNameError
from gradscope.plots.text import label
from gradscope.plots.titles import evenly

#: Okabe & Ito (2008), without yellow (too pale for a line), ordered so that neighbours differ in lightness as well.
PALETTE = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.4, 1.2, 1.4)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
FAINT = "#C8C8C8"
ALERT = "#B2182B"

#: One hue from early (light) to late (dark); the light end is still visible on white paper.
EARLY_TO_LATE = LinearSegmentedColormap.from_list(
    "gradscope_early_to_late", ["#A6CEE8", "#5BA3D0", "#2272B4", "#0B4A86", "#06264F"]
)
#: Lines that have an order, light to dark, all visible on white paper: blue to brown, so that hue helps as well.
ORDERED = LinearSegmentedColormap.from_list(
    "gradscope_ordered", ["#56B4E9", "#0072B2", "#7A3B69", "#A63A00", "#4A1B00"]
)
#: Sequential map for magnitudes: lightness rises evenly, so it reads in grey and for every kind of colour vision.
MAGNITUDE = "cividis"

#: No figure is taller, inches: a caption has to fit on the page as well.
PAGE = 8.2

_OWN = "gradscope-figure"  # marks figures made here: only their size may be changed

#: A legend has at most this many rows and entries; of more lines, whose order is their colour, some are named.
MAX_LEGEND, MAX_ROWS, MAX_SHADES = 12, 10, 6
#: Mean width of a character of a name, em: of Times-like and of sans serif text.
_SERIF, _SANS = 0.49, 0.55

#: More lines than this are drawn without bands, which would hide each other.
MAX_BANDS = 6


@dataclass(frozen=True)
class Preset:
    """Width (inches) a figure has on the page, and the size of its text (points).

    Attributes
    ----------
    width : float
        Text or column width of the class file, inches.
    size : float
        Axis labels; ticks and legends are one point smaller.
    serif : bool
        Times-like text (STIX, ships with matplotlib), to match the paper's body.
    """

    width: float
    size: float
    serif: bool = True


#: Text or column widths that the classes set and their instructions to authors state: ICLR and NeurIPS 33 picas,
#: ICML 6.75 in with columns of 3.25 in, JMLR 6 in, IEEEtran 252 and 516 pt (72.27 to the inch; IEEE's own guide rounds
#: up to 3.5 and 7.16 in), AAAI 7 in with a gutter of 0.375 in between two columns.
PRESETS: dict[str, Preset] = {
    "aaai": Preset(3.3125, 8.0),  # one of two columns
    "iclr": Preset(5.5, 9.0),
    "icml": Preset(3.25, 8.0),  # one of two columns
    "icml2": Preset(6.75, 8.0),
    "ieee": Preset(252 / 72.27, 8.0),  # one of two columns
    "ieee2": Preset(516 / 72.27, 8.0),
    "jmlr": Preset(6.0, 9.0),
    "neurips": Preset(5.5, 9.0),
    "screen": Preset(5.2, 9.5, serif=False),  # still readable at the width of a phone
}


def preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises
    ------
    UnknownNameError
    """
    if name not in PRESETS:
        raise UnknownNameError("style", name, PRESETS)
    return PRESETS[name]


@contextmanager
def use(name: str = "screen") -> Iterator[Preset]:
    """Draw in this style inside the block; starts from matplotlib's defaults, so a user's own rcParams change nothing.

    Raises
    ------
    UnknownNameError
    """
    chosen = preset(name)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(chosen))  # type: ignore[arg-type, unused-ignore]
        yield chosen


def _settings(chosen: Preset) -> dict[str, Any]:
    size = chosen.size
    # DejaVu Sans behind STIX: glyphs that one lacks come from the other.
    family = ["STIXGeneral", "DejaVu Sans"] if chosen.serif else ["DejaVu Sans"]
    return {
        "font.family": family,
        "mathtext.fontset": "stix" if chosen.serif else "dejavusans",
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "legend.fontsize": size - 1,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.5,
        "xtick.major.width": 0.7,
        "ytick.major.width": 0.7,
        "xtick.direction": "out",
        "lines.linewidth": 1.3,
        "lines.markersize": 3.6,
        "patch.linewidth": 0.6,
        "pdf.fonttype": 42,  # TrueType, which submission systems demand
        "ps.fonttype": 42,
        "svg.fonttype": "path",  # looks the same where the font is missing
        "svg.hashsalt": "gradscope",  # else every save draws new random ids
        "savefig.dpi": 300,
        "figure.dpi": 100,
        "image.interpolation": "nearest",
    }


class ShownFigure(Figure):
    """A figure that a notebook shows where it is returned: once, for pyplot, which shows its own, does not hold it."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", bbox_inches="tight")
        return content.getvalue()


def figure(
    style: str = "screen", *, aspect: float = 0.55, rows: int = 1, columns: int = 1, exact: bool = False,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:  # fmt: skip
    """An empty figure of the style's paper width with one Axes (or an array of them). Call it inside :func:`use`.

    Parameters
    ----------
    style : str
        A key of ``PRESETS``.
    aspect : float
        Height / width of the whole figure.
    exact : bool
        Keep that height even in a narrow column, which otherwise gets room for its labels.
    heights : sequence of float, optional
        Of the rows, in proportion to each other.
    """
    chosen = preset(style)
    # A narrow column keeps enough height for its labels.
    height = max(chosen.width * aspect, min(2.1, chosen.width)) if rows == 1 and not exact else chosen.width * aspect
    height = min(height, PAGE)
    fig = ShownFigure(figsize=(chosen.width, height), layout="constrained")
    fig.set_gid(_OWN)
    return fig, fig.subplots(rows, columns, height_ratios=heights)


def fitting(style: str, height: float) -> float:
    """Aspect of a figure of this height (inches), at most that of the page."""
    return min(height, PAGE) / preset(style).width


def axes(ax: Axes | None, *, style: str = "screen", aspect: float = 0.55) -> Axes:
    """``ax`` itself, or that of a new figure in the given style."""
    if ax is not None:
        return ax
    return figure(style, aspect=aspect)[1]


def look(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the ``index``-th line: no two of the first 35 agree in all of them."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[(index + index // len(PALETTE)) % len(DASHES)],
        "marker": MARKERS[(index + index // (len(PALETTE) * len(DASHES))) % len(MARKERS)],
    }


def looks(names: list[str]) -> dict[str, dict[str, Any]]:
    """The look of each line; above ``MAX_LEGEND`` their order is their colour, and they are thin."""
    if len(names) <= MAX_LEGEND:
        return {name: look(i) for i, name in enumerate(names)}
    shades = [to_hex(ORDERED(i / (len(names) - 1))) for i in range(len(names))]
    return {name: {**look(i), "color": shade} for i, (name, shade) in enumerate(zip(names, shades, strict=True))}


def mark_every(n_points: int, index: int, marks: int = 8) -> tuple[int, int]:
    """About ``marks`` markers on a line of ``n_points``, shifted line by line so that they do not sit on each other."""
    every = max(1, n_points // marks)
    return (index * every // 3) % every if every > 1 else 0, every


def early_to_late(first: float, last: float) -> Normalize:
    """Scale from a training step to a colour of ``EARLY_TO_LATE``; a single step is as dark as the last."""
    return Normalize(first, last) if last > first else Normalize(first - 1, first)


def legend(ax: Axes, handles: list[Any] | None = None, *, title: str | None = None) -> None:
    """A legend above the axes that never covers data, never grows wider than them, and stops at ``MAX_ROWS``."""
    handles = [h for h in (ax.get_lines() if handles is None else handles) if not str(h.get_label()).startswith("_")]
    if not handles:
        return
    shown = min(MAX_LEGEND, MAX_ROWS * _columns(ax, [str(h.get_label()) for h in handles]))
    # Lines that are told apart by their look all have a name, and what their kinds mean stands behind them.
    if len(handles) > max(shown, MAX_LEGEND + 2):
        kept = evenly(len(handles), min(shown, MAX_SHADES))
        more = Line2D([], [], color="none", label=f"{len(handles) - len(kept)} between: see CSV")
        handles = [*(handles[i] for i in kept), more]
    names = [str(h.get_label()) for h in handles]
    columns = _columns(ax, names)
    make_room(ax, -(-len(names) // columns) + (1 if title else 0))
    ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.4,
        handletextpad=0.6,
        title=label(title, 60) if title else None,
        alignment="left",
    )


def make_room(ax: Axes, rows: int) -> None:
    """Let a figure of ours grow by the rows of its legend, so that they do not squeeze the axes."""
    fig = ax.get_figure()
    if isinstance(fig, Figure) and fig.get_gid() == _OWN:
        width, height = fig.get_size_inches()
        fig.set_size_inches(width, min(height + rows * 1.45 * small() / 72, PAGE))


def small() -> float:
    """Size of the text of legends and ticks, points."""
    size = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    return float(size)


def least() -> float:
    """Size of what is read last, points: never below 6, which print still shows."""
    return max(6.0, float(FontProperties(size="x-small").get_size_in_points()))


def character() -> float:
    """Mean width of a character in the style at hand, em."""
    return _SERIF if matplotlib.rcParams["font.family"][0].startswith("STIX") else _SANS


def _columns(ax: Axes, names: list[str]) -> int:
    """How many entries fit side by side, from the mean width of a character and that of a handle (4.5 em)."""
    entry = (max(len(name) for name in names) * character() + 4.5) * small()
    return max(1, min(len(names), int(_room(ax) // entry), 4))


def width_of(ax: Axes) -> float:
    """Width that the axes have of their figure, inches."""
    return size_of(ax)[0] * float(ax.get_position(original=True).width)


def _room(ax: Axes) -> float:
    """Width of the axes in points, less what its own labels take."""
    return float(size_of(ax)[0] * min(ax.get_position(original=True).width, 0.82) * 72)


def size_of(ax: Axes) -> tuple[float, float]:
    """Width and height of the figure, or part of one, that holds the axes, inches."""
    part: Any = ax.figure
    return float(part.bbox.width / part.dpi), float(part.bbox.height / part.dpi)


def name_limit(ax: Axes, most: int = 60) -> int:
    """Longest name (characters) that fits into a legend or title as wide as the axes."""
    return int(min(most, max(12, _room(ax) / small() / character() - 4.5 / character())))


def not_drawn(names: list[str]) -> str:
    """A line below the label of an axis on what a figure has no room for; empty where it shows all."""
    return f"\n{len(names)} more not drawn: see CSV" if names else ""


def note(ax: Axes, text: str) -> None:
    """A remark inside the axes, for what a curve cannot show (nothing to draw, points left out)."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY, wrap=True,
    )  # fmt: skip


def distinct(names: list[str]) -> dict[str, int]:
    """Position of each distinct name in order of appearance."""
    index = count()
    found: dict[str, int] = {}
    for name in names:
        if name not in found:
            found[name] = next(index)
    return found
