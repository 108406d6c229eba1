"""A story told with measurements, as HTML before the runs of a report and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gradscope.report import page
from gradscope.report.drawing import Drawn
from gradscope.report.telling import Chapter, Story

_MET = {True: "met", False: "not met", None: "open"}
_TINT = {"confirmed": "preserved", "refuted": "exploding", "refined": "vanishing"}


def render(story: Story, drawn: Sequence[Drawn]) -> str:
    """The story as HTML: opening, cover, overview of the claims, chapters. Figures are numbered from 1."""
    parts = ["".join(f"<p>{page.prose(words)}</p>" for words in story.opening)]
    parts += [page.figure(one, i) for i, one in enumerate(drawn[: len(story.cover)], 1)]
    parts.append(_overview(story))
    position = 1 + len(story.cover)
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
    rows = [[page.text(claim.statement), page.prose(claim.found)] for claim in claims]
    head = [("statement", "text wrap"), ("what was found", "text wrap wide")]
    return f"<p>Of {len(claims)} statements: {page.text(said)}.</p>{page.table(head, rows)}"


def _chapter(chapter: Chapter, drawn: Sequence[Drawn], first: int) -> str:
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
