"""The page: pieces of HTML, every name from a user escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pandas as pd

from gradscope._version import __version__
from gradscope.diagnostics import ThresholdSuggestion
from gradscope.plots.text import visible
from gradscope.reading.answers import SiteAnswer, advice_of
from gradscope.reading.facts import RunFacts
from gradscope.report.drawing import Drawn
from gradscope.report.svg import inline
from gradscope.report.template import PAGE, READING, STYLE
from gradscope.words import clip_sentence, correlation, number, percent, sentence, within

#: More runs than this are counted, not named, under the title.
_MAX_NAMED = 12

TITLE = "How far back does the gradient reach?"


def render(
    facts: Sequence[RunFacts],
    drawn: Sequence[Drawn],
    missing: dict[str, str],
    title: str = "",
    opening: str = "",
    first: int = 1,
) -> str:
    """The whole page; ``opening`` is HTML that stands before the runs, ``first`` the number of their first figure."""
    sections = [
        opening,
        section("The recorded runs", answers(facts)) if opening else answers(facts),
        section("Comparison", comparison(facts)),
        section("Figures", "".join(figure(one, i) for i, one in enumerate(drawn, first))) if drawn else "",
        section("Clipping", clipping(facts)),
        section("How to read these numbers", READING),
        section("What was recorded", coverage(facts)),
        section("Not shown", not_shown(missing)) if missing else "",
        section("Settings and versions", settings(facts)),
    ]
    few = len(facts) <= _MAX_NAMED and not opening  # a story names its runs itself, in its own words
    names = f": {', '.join(text(found.name) for found in facts)}" if few else ""
    count = "1 run" if len(facts) == 1 else f"{len(facts)} runs"
    return PAGE.substitute(
        version=escape(__version__),
        title=text(title or TITLE),
        style=STYLE,
        byline=f"{count}{names}. Written by gradscope {escape(__version__)}; the numbers are in "
        '<a href="summary.json">summary.json</a>, the figures in <code>figures/</code>, the data behind them in '
        "<code>data/</code>.",
        body="\n".join(filter(None, sections)),
    )


def text(value: object) -> str:
    """A name or message as HTML: escaped, control characters made visible."""
    return escape(visible(str(value)), quote=True)


def prose(words: str) -> str:
    """A sentence as HTML whose numbers do not break at their minus sign."""
    return re.sub(r"-?[\d.]+e-?\d+", r'<span class="n">\g<0></span>', text(words))


def section(title: str, body: str) -> str:
    """A section with its heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(head: Iterable[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls on narrow screens; ``head`` pairs a title with a CSS class, cells are HTML already."""
    head = list(head)
    top = "".join(f'<th class="{kind}">{title}</th>' for title, kind in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{cell}</td>' for cell, (_, kind) in zip(row, head, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


# --- the answer ------------------------------------------------------------------------------------------------------


def answers(facts: Sequence[RunFacts]) -> str:
    """One sentence per run and site, with what it was at the beginning."""
    items = []
    for found in facts:
        items += [_answer(found, said) for said in found.answers]
        now = "".join(f'<p class="more">{text(line[:1].upper() + line[1:])}.</p>' for line in advice_of(found.answers))
        items += [f'<li><p class="said"><b>{text(found.name)}</b></p>{now}</li>\n'] if now else []
    for found in facts:
        if not found.answers:
            why = "; ".join(found.silent.values()) or "the run holds no record"
            items.append(f'<li><p class="said"><b>{text(found.name)}</b>: no answer: {text(why)}</p></li>')
    return f'<ul class="answers">\n{"".join(items)}</ul>'


def _answer(found: RunFacts, said: SiteAnswer) -> str:
    fit = said.late
    counted = int(fit.curve.active.any(axis=1).sum())
    more = [f"Measured on {text(said.quantity)} at {_steps(said.late_steps)}, {counted} sequences."]
    if said.early_steps != said.late_steps:
        more.append(f"At {_steps(said.early_steps)}: {prose(sentence(said.early))}.")
    if said.caveat:
        more.append(f"Note: {text(said.caveat)}.")
    words = sentence(fit)
    # The sentence already names most verdicts; one that it does not is put behind it.
    verdict = "" if fit.verdict in words or "no verdict" in words else f" <b>{fit.verdict.capitalize()}.</b>"
    return (
        f'<li class="{escape(fit.verdict)}"><p class="said"><b>{text(found.name)}</b> '
        f'<span class="name">{text(said.site)}</span>: {prose(words)}.{verdict}</p>'
        f'<p class="more">{" ".join(more)}</p></li>\n'
    )


def _steps(span: tuple[int, int]) -> str:
    return f"step {span[0]}" if span[0] == span[1] else f"steps {span[0]}–{span[1]}"


# --- comparison ------------------------------------------------------------------------------------------------------


def comparison(facts: Sequence[RunFacts]) -> str:
    """A row per run and site, at the end of training."""
    head = [
        ("run", "text wrap"), ("site", "text wrap"), ("para&shy;meters", ""), ("final<br>loss", ""),
        ("rate, log<sub>10</sub><br>per step", ""), ("half-life,<br>steps", ""), ("R²", ""), ("lags", ""),
        ("horizon,<br>lag", ""), ("verdict", "text"),
    ]  # fmt: skip
    rows = [_comparison_row(found, said) for found in facts for said in found.answers]
    fractions = sorted({said.late.horizon_fraction for found in facts for said in found.answers})
    note = (
        '<p class="soft">At the end of training (last tenth of the recorded steps). Horizon: first lag where the '
        f"gradient is below {' or '.join(percent(f) for f in fractions) or 'a stated fraction'} of that where it "
        "enters. Brackets: 95 % interval over recorded steps, or over the sequences of a single one; where those share "
        "the course of their curves, a wide one from that course, or none.</p>"
    )
    return table(head, rows) + note


def _comparison_row(found: RunFacts, said: SiteAnswer) -> list[str]:
    fit, cell = said.late, found.sites[said.site].cell
    site = (
        f'<span class="name">{text(said.site)}</span><br><span class="soft">{text(cell)}, {text(said.quantity)}</span>'
    )
    lags = "–" if fit.lag_range is None else f"{fit.lag_range[0]:g}–{fit.lag_range[1]:g}"
    rate = "–" if fit.rate != fit.rate else f"{signed(fit.rate)}{_bounds(fit.interval)}"
    half = "–" if fit.half_life is None else _under(*within(fit.half_life, fit.half_life_interval))
    horizon = "beyond" if fit.horizon is None and fit.last_lag is not None else str(fit.horizon or "–")
    count = "–" if found.parameters is None else f"{found.parameters:,}"
    return [
        text(found.name), site, count, loss(found.final_loss), rate, half,
        correlation(fit.r2) if math.isfinite(fit.r2) else "–", lags, horizon, text(fit.verdict),
    ]  # fmt: skip


def _bounds(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else _under("", f"({signed(bounds[0])} to {signed(bounds[1])})")


def _under(value: str, small: str) -> str:
    return f'{value}<br><span class="soft">{small}</span>' if small else value


def signed(value: float) -> str:
    """A rate with its sign, four decimals, and a real minus."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def loss(value: float | None) -> str:
    """A final loss; a run that diverged says so."""
    if value is None:
        return "–"
    return number(value, 3) if math.isfinite(value) else "diverged"


# --- figures ---------------------------------------------------------------------------------------------------------


def figure(one: Drawn, position: int) -> str:
    """A figure with its caption and links to its files."""
    links = ", ".join(f'<a href="figures/{one.name}.{kind}">{kind.upper()}</a>' for kind in sorted(one.files))
    picture = inline(one.files["svg"], f"figure-{position}", one.title)
    return (
        f"<figure>\n{picture}\n<figcaption><b>Figure {position}. {text(one.title)}.</b> {text(one.caption)} "
        f'<span class="soft">{links}, <a href="data/{one.name}.csv">data</a></span></figcaption>\n</figure>\n'
    )


# --- clipping --------------------------------------------------------------------------------------------------------


def clipping(facts: Sequence[RunFacts]) -> str:
    """Per run what clipping did, what other thresholds would have done, and what that is worth."""
    return "".join(_clipping(found, unfolded=len(facts) <= 4) for found in facts)


_SOURCES = {
    "clips": "norms measured by the clipping calls",
    "steps": "the logged grad_norm",
    "parameters": "per-parameter norms of the recorded steps",
}


def _clipping(found: RunFacts, unfolded: bool) -> str:
    said = [f"{words[0].upper()}{words[1:]}." for words in map(clip_sentence, found.clips)]
    if not said and not found.remarks:
        said = ["No clipping call was recorded."]
    parts = [f"<h3>{text(found.name)}</h3>", *(f"<p><b>{text(line)}</b></p>" for line in found.remarks)]
    parts += [f"<p>{text(line)}</p>" for line in said]
    parts += [f"<p><b>What now:</b> {text(line)}.</p>" for line in found.what_now]
    for one in found.parts:
        parts += [f"<h4>{text(one.part)}</h4>", _advice(one.thresholds, one.suggestion, "clips", unfolded)]
    if found.parts and len(found.thresholds):
        parts.append("<h4>All parameters together</h4>")
    parts.append(_advice(found.thresholds, found.suggestion, found.norm_source, unfolded))
    return "\n".join(parts)


def _advice(thresholds: pd.DataFrame, suggestion: ThresholdSuggestion | None, source: str, unfolded: bool) -> str:
    parts = []
    if len(thresholds):
        parts.append(
            f"<details{' open' if unfolded else ''}><summary>What other thresholds would have done</summary>"
            f"{_thresholds(thresholds, source)}</details>"
        )
    if suggestion is not None:
        line = suggestion.words or f"No threshold is suggested: {suggestion.reason}."
        basis = f" (Range: {suggestion.reason}.)" if suggestion.words else ""
        parts.append(f'<p class="soft">{text(line + basis)}</p>')
    return "\n".join(parts)


def _thresholds(table_of: pd.DataFrame, source: str) -> str:
    head = [
        ("threshold", ""), ("steps clipped", ""), ("median scale", ""), ("5 % to 95 % of scales", ""),
        ("largest norm left", ""),
    ]  # fmt: skip
    rows = [
        [
            "none" if effect.threshold == float("inf") else number(effect.threshold), percent(effect.clipped),
            number(effect.scale_p50), f"{number(effect.scale_p05)}–{number(effect.scale_p95)}", number(effect.norm_max),
        ]
        for effect in table_of.itertuples()
    ]  # fmt: skip
    n = int(table_of["n"].iloc[0])
    note = f'<p class="soft">From {n} norms: {_SOURCES.get(source, source)}.</p>'
    return table(head, rows) + note


# --- coverage, what is missing, settings -----------------------------------------------------------------------------


def coverage(facts: Sequence[RunFacts]) -> str:
    """What was seen and what was not, and what was lost."""
    rows = [
        [text(found.name), f'<span class="name">{text(line.site)}</span>', text(line.status), str(line.count),
         text(line.reason) or "–"]
        for found in facts
        for line in found.coverage
    ]  # fmt: skip
    head = [("run", "text"), ("module or site", "text"), ("status", "text"), ("steps", ""), ("reason", "text wrap")]
    parts = [table(head, rows) if rows else "<p>No coverage was written.</p>"]
    for found in facts:
        if found.lost:
            listed = ", ".join(f"{count} ({text(reason)})" for reason, count in sorted(found.lost.items()))
            parts.append(f"<p><b>{text(found.name)}</b>: lost records: {listed}.</p>")
        if not found.run.sealed:
            parts.append(
                f"<p><b>{text(found.name)}</b>: the run is not sealed; it is still growing, or was killed.</p>"
            )
    if not any(found.lost for found in facts):
        parts.append("<p>Nothing was lost.</p>")
    return "\n".join(parts)


def not_shown(missing: dict[str, str]) -> str:
    """What to record to get the other figures."""
    items = "".join(f"<li><b>{text(title)}</b> needs {text(needs)}.</li>" for title, needs in missing.items())
    return f'<ul class="plain">{items}</ul>'


def settings(facts: Sequence[RunFacts]) -> str:
    """What each run was recorded with."""
    parts = []
    for found in facts:
        meta = found.run.meta
        described: dict[str, Any] = {
            "path": str(found.run.path),
            "created_at": meta.created_at,
            "gradscope": meta.gradscope_version,
            "torch": meta.torch_version,
            "attempts": len({m.attempt for m in found.run.metas}),
            "ranks": meta.world_size,
            "records": found.n_records,
            "settings": meta.settings,
            "model": meta.model,
            "environment": meta.environment,
        }
        shown = escape(json.dumps(described, indent=2, sort_keys=False, default=str, ensure_ascii=True))
        parts.append(f"<details><summary>{text(found.name)}</summary><pre>{shown}</pre></details>")
    return "\n".join(parts)
