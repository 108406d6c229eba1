"""The one way from a picture to its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope import plots
from gradscope.plots import marks, style
from gradscope.plots.figures import figure_of
from gradscope.plots.saving import render
from gradscope.report.telling import Picture

FORMATS = ("pdf", "png", "svg")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure as files: bytes per format, the table behind it, and words.

    ``views`` are the drawings for the page, by name: SVG, and where its axes and lines are (:func:`places`).
    ``thinned`` says which part of a very long table is there.
    """

    name: str
    title: str
    caption: str
    files: dict[str, bytes]
    data: pd.DataFrame
    views: dict[str, tuple[bytes, dict[str, Any]]] = field(default_factory=dict)
    thinned: str = ""


def draw(picture: Picture, provenance: Mapping[str, Any]) -> Drawn:
    """Draw a picture in every format; ``provenance`` goes into the files."""
    facts = {**provenance, "plot": picture.plot, "options": {**picture.gathered, **picture.options}}
    with style.use("screen"):
        figure, hover = _laid_out(picture, picture.options)
        files = {kind: render(figure, kind, title=picture.title, provenance=facts, dpi=200) for kind in FORMATS}
        views = {"relative" if picture.views else "figure": (files["svg"], hover)}
        for name, options in picture.views.items():
            other, places_of = _laid_out(picture, {**picture.options, **options})
            views[name] = (render(other, "svg", title=picture.title), places_of)
    return Drawn(picture.name, picture.title, picture.caption, files, picture.data, views, picture.thinned)


def _laid_out(picture: Picture, options: Mapping[str, Any]) -> tuple[Figure, dict[str, Any]]:
    figure = figure_of(plots.load(picture.plot), picture.data, "screen", **options)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # once is enough for all formats, and they agree
    return figure, places(figure)


def places(figure: Figure) -> dict[str, Any]:
    """Where axes and named lines are in the SVG, for a page that reads values off them.

    Returns
    -------
    dict
        ``axes``: of each its ``box`` (left, top, right, bottom; points from the upper left corner), ends of ``x`` and
        ``y`` with whether they are logarithmic, and the ``label`` of x; ``lines``: id, name and index into ``axes``.
        The lines are given these ids, and bands of the same label theirs with ``-band`` behind.
    """
    axes: list[dict[str, Any]] = []
    found: list[tuple[str, str, int]] = []
    for ax in figure.axes:
        named = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        for line in named:
            gid = f"line-{len(found)}"
            line.set_gid(gid)
            for band in ax.collections:
                if band.get_label() == marks.band_of(str(line.get_label())):
                    band.set_gid(f"{gid}-band")
            found.append((gid, str(line.get_label()).replace(r"\$", "$"), len(axes)))
        if named:
            axes.append(_place(ax, figure))
    return {"axes": axes, "lines": found}


def _place(ax: Axes, figure: Figure) -> dict[str, Any]:
    scale, height = 72 / figure.dpi, figure.get_size_inches()[1] * 72
    box = ax.get_window_extent()
    corners = (box.x0 * scale, height - box.y1 * scale, box.x1 * scale, height - box.y0 * scale)
    label = ax.get_xlabel().split(" (")[0].split("\n")[0]
    return {
        "box": [round(float(corner), 2) for corner in corners],
        "x": [*map(float, ax.get_xlim()), ax.get_xscale() == "log"],
        "y": [*map(float, ax.get_ylim()), ax.get_yscale() == "log"],
        "label": "" if "$" in label else label,
    }
