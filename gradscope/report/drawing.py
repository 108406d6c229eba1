"""The one way from a picture to its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gradscope import plots
from gradscope.plots import style
from gradscope.plots.figures import figure_of
from gradscope.plots.saving import render
from gradscope.report.telling import Picture

FORMATS = ("pdf", "png", "svg")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure as files: bytes per format, the table behind it, and words."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]
    data: pd.DataFrame


def draw(picture: Picture, provenance: Mapping[str, Any]) -> Drawn:
    """Draw a picture in every format; ``provenance`` goes into the files."""
    facts = {**provenance, "plot": picture.plot, "options": {**picture.gathered, **picture.options}}
    with style.use("screen"):
        figure = figure_of(plots.load(picture.plot), picture.data, "screen", **picture.options)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough for all formats, and they agree
        files = {kind: render(figure, kind, title=picture.title, provenance=facts, dpi=200) for kind in FORMATS}
    return Drawn(picture.name, picture.title, picture.caption, files, picture.data)
