"""A story told with measurements: chapters of text, tables, claims and figures before the runs of a report.

Any objects with the attributes below will do; what makes them need not know of reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from gradscope import plots
from gradscope.plots import style
from gradscope.plots.figures import figure_of
from gradscope.plots.saving import render as render_figure
from gradscope.report import figures, page


class Picture(Protocol):
    """A figure: ``plot`` is the name of a module of :mod:`gradscope.plots`, ``data`` what it draws."""

    @property
    def name(self) -> str: ...
    @property
    def plot(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def caption(self) -> str: ...
    @property
    def data(self) -> pd.DataFrame: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


class Chapter(Protocol):
    """Paragraphs, then tables, claims and pictures.

    A claim has ``statement``, ``outcome``, ``sentence`` and ``answers``; an answer ``asked.where``, ``asked.what``,
    ``range_words``, ``mean``, ``interval``, ``interval_words``, ``values`` and ``met``.
    """

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> Sequence[str]: ...
    @property
    def tables(self) -> Sequence[tuple[str, pd.DataFrame]]: ...
    @property
    def claims(self) -> Sequence[Any]: ...
    @property
    def pictures(self) -> Sequence[Picture]: ...


class Story(Protocol):
    """Opening paragraphs and chapters."""

    @property
    def opening(self) -> Sequence[str]: ...
    @property
    def chapters(self) -> Sequence[Chapter]: ...


_MET = {True: "met", False: "not met", None: "open"}
_TINT = {"confirmed": "preserved", "refuted": "exploding", "refined": "vanishing"}


def draw_all(story: Story, provenance: Mapping[str, Any]) -> list[figures.Drawn]:
    """Every picture of the story, in order."""
    return [_draw(picture, provenance) for chapter in story.chapters for picture in chapter.pictures]


def _draw(picture: Picture, provenance: Mapping[str, Any]) -> figures.Drawn:
    module = plots.load(picture.plot)
    with style.use("screen"):
        figure = figure_of(module, picture.data, "screen", **picture.options)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough: it is most of the cost of a file
        facts = {**provenance, "plot": picture.plot}
        files = {
            kind: render_figure(figure, kind, title=picture.title, provenance=facts, dpi=200)
            for kind in figures.FORMATS
        }
    return figures.Drawn(picture.name, picture.title, picture.caption, files, picture.data)


def render(story: Story, drawn: Sequence[figures.Drawn]) -> str:
    """The story as HTML: opening, overview of the claims, chapters. Figures are numbered from 1."""
    parts = ["".join(f"<p>{page.prose(words)}</p>" for words in story.opening), _overview(story)]
    position = 1
    for chapter in story.chapters:
        shown = drawn[position - 1 : position - 1 + len(chapter.pictures)]
        parts.append(page.section(chapter.title, _chapter(chapter, shown, position)))
        position += len(shown)
    return "\n".join(parts)


def _overview(story: Story) -> str:
    claims = [claim for chapter in story.chapters for claim in chapter.claims]
    if not claims:
        return ""
    counts = Counter(claim.outcome for claim in claims)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    rows = [[page.text(claim.statement), f"<b>{page.text(claim.outcome)}</b>"] for claim in claims]
    head = [("textbook statement", "text wrap wide"), ("outcome", "text")]
    return f"<p>Of {len(claims)} statements: {page.text(said)}.</p>{page.table(head, rows)}"


def _chapter(chapter: Chapter, drawn: Sequence[figures.Drawn], first: int) -> str:
    parts = [f"<p>{page.prose(words)}</p>" for words in chapter.text]
    for caption, data in chapter.tables:
        head = [(page.text(name), "text" if i == 0 else "") for i, name in enumerate(data.columns)]
        rows = [[_cell(cell) for cell in row] for row in data.itertuples(index=False)]
        parts.append(f'{page.table(head, rows)}<p class="soft">{page.prose(caption)}</p>')
    if chapter.claims:
        parts.append(f'<ul class="answers">{"".join(map(_claim, chapter.claims))}</ul>')
    parts += [page.figure(one, i) for i, one in enumerate(drawn, first)]
    return "\n".join(parts)


def _cell(value: object) -> str:
    """A table's cell; what follows a line break is printed smaller."""
    first, *rest = str(value).split("\n")
    return page.text(first) + "".join(f'<br><span class="soft">{page.text(line)}</span>' for line in rest)


def _claim(claim: Any) -> str:
    head = [
        ("condition", "text wrap"), ("measured", "text wrap"), ("asked", ""), ("mean", ""),
        ("95 % interval over seeds", ""), ("", "text"),
    ]  # fmt: skip
    rows = [
        [
            page.text(answer.asked.where), page.text(answer.asked.what), page.text(answer.range_words),
            page.text(answer.mean_words), page.text(answer.interval_words), _MET[answer.met],
        ]
        for answer in claim.answers
    ]  # fmt: skip
    return (
        f'<li class="{_TINT.get(claim.outcome, "undetermined")}">'
        f'<p class="said"><b>{page.text(claim.statement)}</b></p>'
        f"<p>{page.prose(claim.sentence)}</p>"
        f'<details class="more"><summary>What was asked and measured</summary>{page.table(head, rows)}</details></li>\n'
    )


def words(story: Story) -> list[dict[str, Any]]:
    """The text for ``summary.json``: the opening, then each chapter."""
    opening: list[dict[str, Any]] = [{"title": "", "text": list(story.opening)}]
    return opening + [{"title": chapter.title, "text": list(chapter.text)} for chapter in story.chapters]


def numbers(story: Story) -> list[dict[str, Any]]:
    """The claims for ``summary.json``."""
    return [
        {
            "chapter": chapter.title,
            "statement": claim.statement,
            "outcome": claim.outcome,
            "sentence": claim.sentence,
            "answers": [
                {
                    "where": answer.asked.where, "what": answer.asked.what,
                    "low": answer.asked.low, "high": answer.asked.high,
                    "values": list(answer.values), "mean": answer.mean, "interval": answer.interval, "met": answer.met,
                }
                for answer in claim.answers
            ],
        }
        for chapter in story.chapters
        for claim in chapter.claims
    ]  # fmt: skip
