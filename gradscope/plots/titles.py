"""Names above panels that fit them, and which panels stand for the others where not all have room."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from gradscope.plots.text import alike, label, visible, without_beginning

#: Characters of a line, however wide a panel is.
_LONGEST = 60
#: Where a name may go on in the next line: not within a number such as 0.1 or 1e-3.
BREAKS = re.compile(r"[ :_/]|(?<![0-9])[.,]|[.,](?![0-9])|(?<![0-9]e)-")


def titles(fig: Figure, names: Mapping[Axes, str]) -> None:
    """Names above panels, none wider than its own: on several lines, or without their middle, where they need to be.

    Call it when everything else stands in its place: the width that is left to a panel is that of the layout.
    """
    for ax in names:
        ax.set_title("M", loc="left")
    layout = fig.get_layout_engine()
    if layout is not None:
        layout.execute(fig)
    size = FontProperties(size=matplotlib.rcParams["axes.titlesize"])
    rooms = {ax: ax.get_position().width * fig.bbox.width / fig.dpi * 72 for ax in names}
    found = {ax: _broken(name, rooms[ax], size) for ax, name in names.items()}
    for same in alike({name: found[ax] for ax, name in names.items()}):
        told = without_beginning(same, _LONGEST)
        found |= {ax: _broken(told[name], rooms[ax], size) for ax, name in names.items() if name in told}
    for ax, text in found.items():
        ax.set_title(text, loc="left", linespacing=1.0)


def _broken(name: str, room: float, size: FontProperties) -> str:
    """A name within some points of width: on two lines, or three where a site is named as well."""

    def fits(text: str) -> bool:
        # A path of nothing cannot be made.
        return not text.strip() or TextPath((0, 0), text, prop=size).get_extents().width <= room

    whole = label(name, _LONGEST)
    if fits(whole):
        return whole
    plain = visible(name)
    breaks = [at.end() for at in BREAKS.finditer(plain) if at.end() < len(plain) <= 2 * _LONGEST]
    # Between run and site first, else near the middle.
    for at in sorted(breaks, key=lambda at: (plain[at - 1 : at + 1] != ": ", abs(at - len(plain) / 2))):
        parts = [label(part.strip(), _LONGEST) for part in (plain[:at], plain[at:])]
        if all(map(fits, parts)):
            return "\n".join(parts)
    # A run and its site each lose their own middle, if need be: one line of both would leave little of the run.
    run, between, site = plain.rpartition(": ")
    if not between:
        return _fitted(plain, fits)
    for at in sorted((at.end() for at in BREAKS.finditer(run)), key=lambda at: abs(at - len(run) / 2)):
        parts = [run[:at].strip(), f"{run[at:].strip()}:", site]
        if all(map(fits, parts)):
            return "\n".join(parts)
    return f"{_fitted(f'{run}:', fits)}\n{_fitted(site, fits)}"


def _fitted(part: str, fits: Callable[[str], bool]) -> str:
    most = min(len(part), _LONGEST)
    while most > 8 and not fits(label(part, most)):
        most -= 1
    return label(part, most)


def chosen(keys: Sequence[tuple[str, str, str]], limit: int) -> list[int]:
    """Positions of at most ``limit`` of the panels (line, run, site) that show all lines before the rest of one.

    Of a line of several seeds its first run stands for it; of more sites than have room those at even distances.
    """
    if len(keys) <= limit:
        return list(range(len(keys)))
    of_line: dict[str, list[int]] = {}
    for i, (line, run, _) in enumerate(keys):
        if keys[of_line.setdefault(line, [i])[0]][1] == run and i not in of_line[line]:
            of_line[line].append(i)
    lines = [list(of_line.values())[at] for at in evenly(len(of_line), limit)]
    share, more = divmod(limit, len(lines))
    kept = [at[i] for n, at in enumerate(lines) for i in evenly(len(at), share + (n < more))]
    return sorted(kept)


def evenly(n: int, most: int) -> list[int]:
    """At most so many of ``range(n)``, at even distances, first and last included."""
    positions: list[int] = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()
    return positions
