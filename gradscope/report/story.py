"""A story told with measurements: for the page before its runs, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gradscope.report.tables import Cell, Column, Table, data_table
from gradscope.report.telling import Chapter, Story

_MET = {True: "met", False: "not met", None: "open"}
_TINT = {"confirmed": "preserved", "refuted": "exploding", "refined": "vanishing"}


def overview(story: Story) -> dict[str, Any] | None:
    """Every statement with what was found; None where nothing was stated."""
    if not story.claims:
        return None
    counts = Counter(claim.outcome for claim in story.claims)
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    rows = tuple((Cell(claim.statement), Cell(claim.found)) for claim in story.claims)
    columns = (Column("statement", "text wrap"), Column("what was found", "text wrap"))
    return {
        "words": f"Of {len(story.claims)} statements: {said}.",
        "table": Table("Statements and what was found", columns, rows),
    }


def chapters(story: Story, figures: Sequence[Any]) -> list[dict[str, Any]]:
    """Every chapter with its figures, which come in the order of its pictures."""
    shown, position = [], 0
    for i, chapter in enumerate(story.chapters, 1):
        own = figures[position : position + len(chapter.pictures)]
        position += len(own)
        shown.append(_chapter(i, chapter, own))
    return shown


def _chapter(position: int, chapter: Chapter, figures: Sequence[Any]) -> dict[str, Any]:
    return {
        "id": f"chapter-{position}",
        "title": chapter.title,
        "text": chapter.text,
        "tables": [data_table(f"{chapter.title}, table {i}", *one) for i, one in enumerate(chapter.tables, 1)],
        "claims": [_claim(claim) for claim in chapter.claims],
        "figures": figures,
    }


def _claim(claim: Any) -> dict[str, Any]:
    columns = (
        Column("condition", "text wrap"), Column("measured", "text wrap"), Column("asked"), Column("mean"),
        Column("95 % interval over seeds"), Column("outcome", "text"),
    )  # fmt: skip
    rows = tuple(
        tuple(
            map(
                Cell,
                (
                    answer.asked.where, answer.asked.what, answer.range_words, answer.mean_words,
                    answer.interval_words, _MET[answer.met],
                ),
            )
        )
        for answer in claim.answers
    )  # fmt: skip
    return {
        "statement": claim.statement,
        "sentence": claim.sentence,
        "tint": _TINT.get(claim.outcome, "undetermined"),
        "table": Table(f"What was asked and measured: {claim.statement}", columns, rows),
    }


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
            "found": claim.found,
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
