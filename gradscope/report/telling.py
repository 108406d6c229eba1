"""What a page is made of, be it a report, the demo, a sweep or the lecture: figures, chapters, a story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope.report.tables import Table


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure before it is drawn.

    Attributes
    ----------
    name : str
        Of its files.
    plot : str
        A key of ``gradscope.plots.PLOTS``.
    title, caption : str
    data : DataFrame
        What is drawn, and written beside it.
    options : mapping
        Of the plot's ``draw``.
    gathered : mapping
        Options with which ``data`` were gathered, for the record.
    views : mapping of str to mapping
        Further ways to see it on the page, by name: options of the plot's ``draw`` in place of ``options``.
    thinned : str
        Which part of a very long table ``data`` is, in words.
    """

    name: str
    plot: str
    title: str
    caption: str
    data: pd.DataFrame
    options: Mapping[str, Any] = field(default_factory=dict)
    gathered: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    thinned: str = ""


@dataclass(frozen=True, eq=False)
class Chapter:
    """Paragraphs, then tables (caption and data), claims and pictures.

    A claim has ``statement``, ``outcome``, ``found`` (with its numbers), ``sentence`` and ``answers``; an answer has
    ``asked.where``, ``asked.what``, ``range_words``, ``mean``, ``interval``, ``interval_words``, ``values``, ``met``.
    """

    title: str
    text: tuple[str, ...]
    tables: tuple[tuple[str, pd.DataFrame], ...] = ()
    claims: tuple[Any, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, eq=False)
class Story:
    """Opening paragraphs, the pictures that belong to the first screen, and chapters.

    Attributes
    ----------
    opening : tuple of str
    chapters : tuple of Chapter
    cover : tuple of Picture
    lead : str
        The opening in one sentence: it then stands on the first screen, and the opening below.
    table : Table, optional
        Beside the cover.
    recorded : int
        Runs that the story speaks of, where the page shows fewer in full.
    """

    opening: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    cover: tuple[Picture, ...] = ()
    lead: str = ""
    table: Table | None = None
    recorded: int = 0

    @property
    def claims(self) -> list[Any]:
        """Every claim, in order."""
        return [claim for chapter in self.chapters for claim in chapter.claims]

    @property
    def pictures(self) -> list[Picture]:
        """Every picture, in order."""
        return [*self.cover, *(picture for chapter in self.chapters for picture in chapter.pictures)]
