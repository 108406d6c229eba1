"""What a report can be told around its runs: chapters of text, tables, claims and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope.lab.claims import Claim


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure: ``plot`` is the name of a module of :mod:`gradscope.plots`, ``data`` what it draws."""

    name: str
    plot: str
    title: str
    caption: str
    data: pd.DataFrame
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Chapter:
    """Paragraphs, then tables (caption and data), claims and pictures."""

    title: str
    text: tuple[str, ...]
    tables: tuple[tuple[str, pd.DataFrame], ...] = ()
    claims: tuple[Claim, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, eq=False)
class Story:
    """Opening paragraphs and chapters."""

    opening: tuple[str, ...]
    chapters: tuple[Chapter, ...]

    @property
    def claims(self) -> list[Claim]:
        """Every claim, in order."""
        return [claim for chapter in self.chapters for claim in chapter.claims]
