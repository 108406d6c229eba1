"""The page: the values of :mod:`gradscope.report.view` in the templates beside this file, every name escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gradscope._version import __version__
from gradscope.plots.text import visible
from gradscope.reading.facts import RunFacts
from gradscope.report import story, view
from gradscope.report.drawing import Drawn
from gradscope.report.svg import inline
from gradscope.report.telling import Story

TITLE = "How far back does the gradient reach?"

#: More runs than this are counted, not named, under the title.
_MAX_NAMED = 6
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class View:
    """One way to see a figure: its drawing, and what the page's script needs to read values off it (JSON)."""

    name: str
    svg: Markup
    axes: str
    lines: bool


@dataclass(frozen=True)
class Figure:
    """A figure on the page."""

    number: int
    name: str
    title: str
    caption: str
    kinds: tuple[str, ...]
    views: tuple[View, ...]
    thinned: str


def render(
    facts: Sequence[RunFacts],
    drawn: Sequence[Drawn],
    missing: Mapping[str, str],
    title: str = "",
    told: Story | None = None,
    chapters: Sequence[Drawn] = (),
) -> str:
    """The whole page.

    Parameters
    ----------
    facts : sequence of RunFacts
    drawn : sequence of Drawn
        Figures of the runs; without a story, the first stands on the first screen.
    missing : mapping of str to str
        Title of each figure that is not shown, to what it needs.
    title : str, optional
    told : Story, optional
        Stands before the runs.
    chapters : sequence of Drawn
        The pictures of the story, in its order.
    """
    figures = [_figure(one, i) for i, one in enumerate([*chapters, *drawn], 1)]
    of_story, of_runs = figures[: len(chapters)], figures[len(chapters) :]
    n_cover = len(told.cover) if told is not None else 1
    cover = of_story[:n_cover] if told is not None else of_runs[:n_cover]
    rest = of_runs if told is not None else of_runs[n_cover:]
    shown = [] if told is None else story.chapters(told, of_story[n_cover:])
    boxes, unboxed = view.boxes(facts)
    settings, unset = view.settings(facts)
    return _environment().get_template("page.html").render(
        version=__version__,
        title=title or TITLE,
        byline=_byline(facts, 0 if told is None else told.recorded),
        lead=[view.lead(facts)] if told is None else [told.lead] if told.lead else list(told.opening),
        opening=list(told.opening) if told is not None and told.lead else [],
        cover=cover,
        beside=None if told is None else told.table,
        overview=None if told is None else story.overview(told),
        comparison=view.comparison(facts),
        contents=_contents(shown, bool(rest), bool(missing)),
        chapters=shown,
        boxes=boxes,
        unboxed=unboxed,
        figures=rest,
        clipping=view.clipping(facts),
        coverage=view.coverage(facts),
        losses=view.losses(facts),
        missing=list(missing.items()),
        settings=settings,
        unset=unset,
        css=_asset("style.css"),
        script=_asset("script.js"),
    )  # fmt: skip


def _byline(facts: Sequence[RunFacts], recorded: int) -> str:
    if recorded > len(facts):
        return f"{recorded} runs, {len(facts)} of them told in full below. Written by gradscope {__version__}"
    names = f": {', '.join(found.name for found in facts)}" if len(facts) <= _MAX_NAMED else ""
    count = "1 run" if len(facts) == 1 else f"{len(facts)} runs"
    return f"{count}{names}. Written by gradscope {__version__}"


def _contents(chapters: Sequence[Mapping[str, Any]], figures: bool, missing: bool) -> list[dict[str, str]]:
    found = [(str(chapter["id"]), str(chapter["title"])) for chapter in chapters]
    found.append(("runs", "The recorded runs"))
    found += [("figures", "Figures")] if figures else []
    found += [
        ("clipping", "Clipping, run by run"),
        ("reading", "How to read these numbers"),
        ("coverage", "What was recorded"),
    ]
    found += [("missing", "Not shown")] if missing else []
    return view.contents([*found, ("settings", "Settings and versions")])


def _figure(one: Drawn, position: int) -> Figure:
    views = []
    for i, (name, (svg, hover)) in enumerate(one.views.items()):
        prefix = f"figure-{position}-drawing" + (f"-{i}" if i else "")
        drawing = Markup(inline(svg, prefix, one.title, f"caption-{position}"))
        views.append(View(name, drawing, json.dumps(hover, separators=(",", ":")), bool(hover["lines"])))
    return Figure(position, one.name, one.title, one.caption, tuple(sorted(one.files)), tuple(views), one.thinned)


# --- templates -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _environment() -> Environment:
    made = Environment(
        autoescape=True,
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["prose"] = prose
    made.filters["breakable"] = breakable
    return made


@lru_cache(maxsize=2)
def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _shown(value: Any) -> Any:
    """A name or message with its control characters made visible; it is escaped afterwards."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(visible, value.split("\n")))
    return value


def breakable(name: str) -> Markup:
    """A name that breaks between its parts, where it has to: not within a number such as 0.05."""
    return Markup(re.sub(r"([_/:]|(?<!\d)\.|\.(?!\d))(?=\w)", r"\1<wbr>", str(escape(visible(name)))))


#: A power of ten, or a range of numbers: what a line could break within.
_UNBROKEN = re.compile(r"[-−]?[\d.]+(e-?\d+)?–[-−]?[\d.]+(e-?\d+)?|[-−]?[\d.]+e-?\d+")


def prose(words: str) -> Markup:
    """A sentence whose numbers do not break at their minus sign, nor ranges of them at their dash."""
    return Markup(_UNBROKEN.sub(r'<span class="n">\g<0></span>', str(escape(visible(words)))))
