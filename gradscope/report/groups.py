"""What many sites of one run have in common, in a sentence for each verdict instead of one for each site."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from gradscope import reasons
from gradscope.diagnostics import DecayFit
from gradscope.plots.naming import short_sites
from gradscope.reading.answers import SiteAnswer
from gradscope.words import number

#: More sites than this are told together.
MANY = 6
#: Why sites have no verdict, without the numbers of each.
_CAUSES = {
    reasons.FEW_LAGS: "too few lags",
    reasons.NO_GRADIENT: "no gradient that can be represented",
    reasons.NOT_FINITE: "gradients that are not finite",
    reasons.ONE_STEP: "the gradient reaches one step alone",
    reasons.ENTERS: "level or growing, where a gradient enters at every step",
    reasons.ENTRY_UNKNOWN: "level or growing, and what enters from above was not recorded",
    reasons.STEPS_DIFFER: "the recorded steps differ",
    reasons.NO_CHANGE: "the interval of the rate includes no change at all",
    reasons.TOO_CLOSE: "the change is too close to a factor of 10 to tell",
    reasons.TURNS: "the curve turns",
}


def grouped(answers: Sequence[SiteAnswer]) -> list[tuple[str, str]]:
    """Of each verdict and its cause, most sites first: the sentence, and its small print."""
    short = short_sites([answer.site for answer in answers])
    groups: dict[tuple[str, str], list[SiteAnswer]] = {}
    for answer in answers:
        groups.setdefault((answer.late.verdict, answer.late.cause), []).append(answer)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        (_sentence(verdict, group, len(answers), short), _before(group, short)) for (verdict, _), group in ordered
    ]  # fmt: skip


def _sentence(verdict: str, group: Sequence[SiteAnswer], of: int, short: dict[str, str]) -> str:
    names = ", ".join(short[answer.site] for answer in group[:2])
    who = f"{len(group)} of {of} sites ({names}{', ...' if len(group) > 2 else ''})"
    who = f"All {of} sites" if len(group) == of else who
    reason = _reason(group) if verdict == "undetermined" else ""
    what = f"no verdict: {reason}" if verdict == "undetermined" else f"{verdict}{_lives(group)}"
    left = _left([(short[answer.site], answer.late) for answer in group])
    return f"{who}: {what}.{f' {left}' if left else ''}"


def _lives(group: Sequence[SiteAnswer]) -> str:
    half = [answer.late.half_life for answer in group if answer.late.half_life is not None]
    where = f" at {len(half)} of them" if len(half) < len(group) else ""
    return f", half-lives of {_span(half)} steps{where}" if half else ""


def _reason(group: Sequence[SiteAnswer]) -> str:
    """Why there is no verdict: in full where all sites have the same numbers, else the cause alone."""
    found = {answer.late.reason for answer in group}
    return found.pop() if len(found) == 1 else _CAUSES.get(group[0].late.cause, "each for its own reason")


def _left(fits: Sequence[tuple[str, DecayFit]]) -> str:
    """How much of the gradient is left at the last lag, from least to most."""
    known = sorted(((_reach(fit), name) for name, fit in fits if math.isfinite(fit.reach)), key=lambda one: one[0])
    if not known:
        return ""
    (least, low), (most, high) = known[0], known[-1]
    if len(known) == 1 or number(least) == number(most):
        return f"Of the gradient where it enters {number(most)} is left at the last lag."
    return (
        f"Of the gradient where it enters {number(least)} ({low}) to {number(most)} ({high}) is left at the last lag."
    )


def _before(group: Sequence[SiteAnswer], short: dict[str, str]) -> str:
    """The same at the beginning of training, and what is to be kept in mind."""
    said = []
    if any(answer.early_steps != answer.late_steps for answer in group):
        known = [_reach(answer.early) for answer in group if math.isfinite(answer.early.reach)]
        first = min(answer.early_steps[0] for answer in group)
        said += [f"At step {first}: {_span(known)}."] if known else []
    for caveat, n in Counter(answer.caveat for answer in group if answer.caveat).most_common():
        said.append(f"Note{'' if n == len(group) else f', at {n} of them'}: {caveat}.")
    return " ".join(said)


def _reach(fit: DecayFit) -> float:
    return 0.0 if fit.lost_from is not None else fit.reach


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
