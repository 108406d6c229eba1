"""What the page shows, as values without markup: tables, a box per run, clipping, coverage, settings."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope.diagnostics import DecayFit
from gradscope.reading.answers import SiteAnswer, advice_of
from gradscope.reading.facts import RunFacts
from gradscope.report import groups
from gradscope.report.tables import Cell, Column, Table
from gradscope.words import capital, clip_sentence, correlation, number, percent, sentence, suggestion_sentence, within

#: Beyond so many runs a page tells what clipping did in a sentence each, and leaves settings to the summary.
MANY = 24


@dataclass(frozen=True)
class Said:
    """What is said of one site: a sentence, its verdict where the sentence has not named it, and the small print."""

    site: str
    words: str
    verdict: str
    more: str


@dataclass(frozen=True)
class Box:
    """What is said of one run; of very many sites ``groups`` say what they have in common, and ``said`` is folded."""

    id: str
    name: str
    verdict: str
    said: tuple[Said, ...]
    remarks: tuple[str, ...] = ()
    now: tuple[str, ...] = field(default=())
    groups: tuple[Said, ...] = ()


def upper(words: str) -> str:
    """A sentence from words: a capital, and a full stop."""
    return capital(words) + ("" if words.endswith(".") else ".")


# --- the answer ------------------------------------------------------------------------------------------------------


def lead(facts: Sequence[RunFacts]) -> str:
    """The answer in one sentence."""
    said = [(found, answer) for found in facts for answer in found.answers]
    if not said:
        return "No site has a curve against lag: there is no answer yet."
    if len(said) == 1:
        return upper(sentence(said[0][1].late))
    counts = Counter(answer.late.verdict for _, answer in said)
    whole = _verdicts(counts)
    known = [(found, answer) for found, answer in said if math.isfinite(answer.late.reach)]
    if len(known) < 2:
        return f"{whole}."
    least, most = (pick(known, key=lambda one: _reach(one[1])) for pick in (min, max))
    alone = len(facts) == 1
    ends = f"most is left in {_left(*most, alone)}, least in {_left(*least, alone)}"
    return f"{whole}; of the gradient where it enters, {ends}."


def _verdicts(counts: Counter[str]) -> str:
    """How many sites have which verdict; a single one is said of them all."""
    of, (only, *others) = counts.total(), counts
    if others:
        each = ", ".join(f"{verdict} at {n}" for verdict, n in counts.most_common())
        return f"Of {of} sites: {each}"
    return f"None of {of} sites has a verdict" if only == "undetermined" else f"All {of} sites: {only}"


def _reach(answer: SiteAnswer) -> float:
    return 0.0 if answer.late.lost_from is not None else answer.late.reach


def _left(found: RunFacts, answer: SiteAnswer, alone: bool) -> str:
    name = answer.site if alone else found.name + (f", {answer.site}" if len(found.answers) > 1 else "")
    fit = answer.late
    lag = "" if fit.last_lag is None else f" at lag {fit.last_lag:g}"
    lag = lag if fit.lost_from is None else f" from lag {fit.lost_from:g} on"
    return f"{name} ({number(_reach(answer))}{lag})"


def boxes(facts: Sequence[RunFacts]) -> tuple[list[Box], str]:
    """A box for each run that has something to say, and a sentence on the others."""
    found = [_box(i, one) for i, one in enumerate(facts, 1)]
    kept = [box for box in found if box is not None]
    silent = len(found) - len(kept)
    words = "" if not silent else f"{silent} more {'run is' if silent == 1 else 'runs are'} undetermined: in the table."
    return kept, words


def _box(position: int, found: RunFacts) -> Box | None:
    said = tuple(map(_said, found.answers))
    now = tuple(map(upper, advice_of(found.answers)))
    if not said:
        why = "; ".join(found.silent.values()) or "the run holds no record"
        said = (Said("", f"no answer: {why}", "", ""),)
    elif not now and not found.remarks and found.verdicts <= {"undetermined"}:
        return None
    verdicts = found.verdicts
    strongest = next((v for v in ("exploding", "vanishing", "preserved") if v in verdicts), "undetermined")
    many = groups.grouped(found.answers) if len(found.answers) > groups.MANY else []
    together = tuple(Said("", words, "", more) for words, more in many)
    return Box(f"run-{position}", found.name, strongest, said, tuple(map(upper, found.remarks)), now, together)


def _said(answer: SiteAnswer) -> Said:
    fit, words = answer.late, sentence(answer.late)
    counted = int(fit.curve.active.any(axis=1).sum())
    more = [f"Measured on {answer.quantity} at {_steps(answer.late_steps)}, {counted} sequences."]
    if answer.early_steps != answer.late_steps:
        more.append(f"At {_steps(answer.early_steps)}: {sentence(answer.early)}.")
    if answer.caveat:
        more.append(f"Note: {answer.caveat}.")
    # The sentence already names most verdicts; one that it does not is put behind it.
    verdict = "" if fit.verdict in words or "no verdict" in words else f"{fit.verdict.capitalize()}."
    return Said(answer.site, f"{words}.", verdict, " ".join(more))


def _steps(span: tuple[int, int]) -> str:
    return f"step {span[0]}" if span[0] == span[1] else f"steps {span[0]}–{span[1]}"


def comparison(facts: Sequence[RunFacts]) -> Table:
    """A row per run and site, at the end of training; what was asked comes first, a phone shows no more."""
    columns = (
        Column("run", "text wrap"), Column("site", "text wrap"), Column("verdict", "text"), Column("left at last lag"),
        Column("half-life, steps"), Column("rate, log₁₀ per step"), Column("horizon, lag"), Column("final loss"),
        Column("parameters"),
    )  # fmt: skip
    rows = tuple(_comparison_row(found, said) for found in facts for said in found.answers)
    fractions = sorted({said.late.horizon_fraction for found in facts for said in found.answers})
    note = (
        "At the end of training (last tenth of the recorded steps). Horizon: first lag where the gradient is below "
        f"{' or '.join(percent(f) for f in fractions) or 'a stated fraction'} of that where it enters. Brackets: 95 % "
        "interval over recorded steps, or over the sequences of a single one; where those share the course of their "
        "curves, a wide one from that course, or none."
    )
    return Table("The runs compared", columns, rows, note, sortable=True)


def _comparison_row(found: RunFacts, said: SiteAnswer) -> tuple[Cell, ...]:
    fit, nan = said.late, math.nan
    half, around = ("–", "") if fit.half_life is None else within(fit.half_life, fit.half_life_interval)
    horizon = "beyond" if fit.horizon is None and fit.last_lag is not None else str(fit.horizon or "–")
    known = found.final_loss is not None and math.isfinite(found.final_loss)
    return (
        Cell(found.name),
        Cell(said.site, (f"{found.sites[said.site].cell}, {said.quantity}",), name=True),
        Cell(fit.verdict),
        Cell(number(_reach(said)) if math.isfinite(fit.reach) else "–", sort=_reach(said)),
        Cell(half, (around,) if around else (), fit.half_life or nan),
        Cell("–", sort=nan)
        if fit.rate != fit.rate
        else Cell(signed(fit.rate, _decimals(fit)), _evidence(fit), fit.rate),
        Cell(horizon, sort=nan if fit.horizon is None else fit.horizon),
        Cell(loss(found.final_loss), sort=found.final_loss if known else nan),
        Cell("–" if found.parameters is None else f"{found.parameters:,}", sort=found.parameters or nan),
    )  # fmt: skip


def _evidence(fit: DecayFit) -> tuple[str, ...]:
    """What a rate is worth: its interval, how straight the curve is, over which lags."""
    interval: tuple[str, ...] = ()
    if fit.interval is not None and any(map(math.isfinite, fit.interval)):  # one without ends says nothing
        low, high = (signed(end, _decimals(fit)) for end in fit.interval)
        interval = (f"({low} to {high})",)
    straight = f"R² {correlation(fit.r2)}" if math.isfinite(fit.r2) else ""
    lags = "" if fit.lag_range is None else f"lags {fit.lag_range[0]:g}–{fit.lag_range[1]:g}"
    return (*interval, ", ".join(filter(None, (straight, lags))))


def _decimals(fit: DecayFit) -> int:
    """Four, or six where thousands of steps make a small rate count."""
    return 6 if abs(fit.rate) < 5e-3 else 4


def signed(value: float, decimals: int = 4) -> str:
    """A rate with its sign and a real minus."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}").replace("inf", "\N{INFINITY}")


def loss(value: float | None) -> str:
    """A final loss; a run that diverged says so."""
    if value is None:
        return "–"
    return number(value, 3) if math.isfinite(value) else "diverged"


# --- clipping --------------------------------------------------------------------------------------------------------

_SOURCES = {
    "clips": "norms measured by the clipping calls",
    "steps": "the logged grad_norm",
    "parameters": "per-parameter norms of the recorded steps",
}


def clipping(facts: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """Per run what clipping did, what other thresholds would have done, and what that is worth."""
    return [_clipping(i, found, len(facts)) for i, found in enumerate(facts, 1)]


def _clipping(position: int, found: RunFacts, runs: int) -> dict[str, Any]:
    said = [upper(words) for words in map(clip_sentence, found.clips)]
    if not said and not found.remarks:
        said = ["No clipping call was recorded."]
    said += [f"What now: {line}." for line in found.what_now]
    named = [(one.part, one.thresholds, one.suggestion, "clips") for one in found.parts]
    whole = "All parameters together" if found.parts and len(found.thresholds) else ""
    parts = []
    for i, (title, thresholds, suggestion, source) in enumerate(
        [*named, (whole, found.thresholds, found.suggestion, found.norm_source)]
    ):
        shown = (
            _thresholds(thresholds, source, f"{found.name}{', ' * bool(title)}{title}")
            if len(thresholds) and runs <= MANY
            else None
        )
        part = {"id": f"clipping-{position}-{i}", "title": title, "table": shown, "open": runs <= 4}
        parts.append({**part, "words": "" if suggestion is None else suggestion_sentence(suggestion)})
    remarks = [upper(line) for line in found.remarks]
    return {"id": f"clipping-{position}", "name": found.name, "remarks": remarks, "said": said, "parts": parts}


def _thresholds(table_of: pd.DataFrame, source: str, whose: str) -> Table:
    titles = ("threshold", "steps clipped", "median scale", "5 % to 95 % of scales", "largest norm left")
    rows = tuple(
        tuple(
            map(
                Cell,
                (
                    "none" if effect.threshold == math.inf else number(effect.threshold), percent(effect.clipped),
                    number(effect.scale_p50), f"{number(effect.scale_p05)}–{number(effect.scale_p95)}",
                    number(effect.norm_max),
                ),
            )
        )
        for effect in table_of.itertuples()
    )  # fmt: skip
    note = f"From {int(table_of['n'].iloc[0])} norms: {_SOURCES.get(source, source)}."
    return Table(f"What other thresholds would have done to {whose}", tuple(map(Column, titles)), rows, note)


# --- coverage, settings ----------------------------------------------------------------------------------------------


def coverage(facts: Sequence[RunFacts]) -> Table:
    """What was seen and what was not."""
    columns = (
        Column("run", "text"), Column("module or site", "text"), Column("status", "text"), Column("steps"),
        Column("reason", "text wrap"),
    )  # fmt: skip
    rows = tuple(
        (Cell(found.name), Cell(line.site, name=True), Cell(line.status), Cell(str(line.count), sort=line.count),
         Cell(line.reason or "–"))
        for found in facts
        for line in found.coverage
    )  # fmt: skip
    return Table("Coverage", columns, rows, sortable=True)


def losses(facts: Sequence[RunFacts]) -> list[dict[str, str]]:
    """What was lost, and which runs are not sealed."""
    lines = []
    for found in facts:
        if found.lost:
            listed = ", ".join(f"{count} ({reason})" for reason, count in sorted(found.lost.items()))
            lines.append({"name": found.name, "words": f"lost records: {listed}."})
        if not found.run.sealed:
            words = "the run is not sealed; it is still growing, or was killed, and lacks the seconds before."
            lines.append({"name": found.name, "words": words})
    known = all(found.run.sealed and not found.lost for found in facts)
    return [*lines, {"name": "", "words": "Nothing was lost."}] if known else lines


def settings(facts: Sequence[RunFacts]) -> tuple[list[dict[str, str]], str]:
    """What each run was recorded with, and a sentence where not all are shown."""
    shown = [{"name": found.name, "json": _described(found)} for found in facts[:MANY]]
    more = len(facts) - len(shown)
    return shown, f"The settings of {more} more runs are in summary.json." if more else ""


def _described(found: RunFacts) -> str:
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
    return json.dumps(described, indent=2, sort_keys=False, default=str, ensure_ascii=True)


def contents(ids: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Entries of the list of contents, from (id, title)."""
    return [{"id": each, "title": title} for each, title in ids]
