"""What trainings at several clipping thresholds came to, compared over seeds, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.diagnostics.difference import MeanDifference, compare_means
from gradscope.errors import SettingError
from gradscope.words import capital, given, number


@dataclass(frozen=True)
class Outcome:
    """What the runs (seeds) at one threshold came to.

    ``threshold`` is inf without clipping; ``values`` are those of the runs that did not diverge; ``versus`` is the
    difference to the runs without clipping, None for those themselves and where there are none.
    """

    threshold: float
    runs: int
    diverged: int
    values: tuple[float, ...]
    versus: MeanDifference | None = None

    @property
    def mean(self) -> float:
        """Mean of ``values``; NaN without any."""
        return float(np.mean(self.values)) if self.values else float("nan")


def outcomes_by_threshold(
    thresholds: Sequence[float],
    values: Sequence[float],
    diverged: Sequence[bool],
    *,
    confidence: float = 0.95,
) -> tuple[Outcome, ...]:
    """Group runs by their threshold, lowest first, and compare each group with the runs without clipping.

    Parameters
    ----------
    thresholds, values : sequence of float
        One per run: the threshold (inf without clipping) and what it came to.
    diverged : sequence of bool
        Runs whose value counts for nothing.
    confidence : float
        Of all differences together: each interval is Welch's at ``1 - (1 - confidence) / number of differences``
        (Bonferroni), because who looks at several is likely to find one.

    Raises
    ------
    SettingError
        Sequences of different lengths, or ``confidence`` out of range.
    """
    if not len(thresholds) == len(values) == len(diverged):
        raise SettingError(f"one of each per run: got {len(thresholds)}, {len(values)} and {len(diverged)}.")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, got {confidence}.")
    runs = list(zip(map(float, thresholds), map(float, values), map(bool, diverged), strict=True))
    groups = {
        threshold: tuple(value for t, value, gone in runs if t == threshold and not gone and np.isfinite(value))
        for threshold in sorted({t for t, _, _ in runs})
    }
    without, others = groups.get(np.inf), len(groups) - 1
    found = []
    for threshold, kept in groups.items():
        versus = None
        if without is not None and threshold != np.inf:
            versus = compare_means(kept, without, confidence=1 - (1 - confidence) / others)
        mine = [gone for t, _, gone in runs if t == threshold]
        found.append(Outcome(threshold, len(mine), sum(mine), kept, versus))
    return tuple(found)


def findings(outcomes: Sequence[Outcome], measured: str, *, higher_is_better: bool, at: float = 0.95) -> list[str]:
    """What was found, in sentences: which thresholds the runs can tell from none, then each threshold's values.

    Parameters
    ----------
    outcomes : sequence of Outcome
        From :func:`outcomes_by_threshold`.
    measured : str
        What the values are, e.g. "held-out accuracy".
    higher_is_better : bool
    at : float
        The ``confidence`` given to :func:`outcomes_by_threshold`, to be named.

    Examples
    --------
    "With threshold 0.5, held-out accuracy ended at 0.66–0.73 (mean 0.69) over 5 runs."
    """
    said = [_one(outcome, measured) for outcome in outcomes]
    compared = [outcome for outcome in outcomes if outcome.versus is not None]
    if not compared:
        return said
    said.insert(0, _verdict(compared, higher_is_better))
    known = [
        f"{_threshold(outcome)}: {_difference(outcome.versus.difference, outcome.versus.interval)}"
        for outcome in compared
        if outcome.versus is not None and outcome.versus.interval is not None
    ]
    if known:
        together = f"{100 * at:g} % intervals" + (" that hold together" if len(known) > 1 else "")
        said.append(f"Difference of the means to no clipping ({together}): {', '.join(known)}.")
    if any(outcome.diverged for outcome in outcomes):
        said.append(
            "Means and differences are of the runs that did not diverge: where some did, they flatter that threshold."
        )
    return said


def _one(outcome: Outcome, measured: str) -> str:
    name = "Without clipping" if np.isinf(outcome.threshold) else f"With threshold {_threshold(outcome)}"
    runs = "1 run" if outcome.runs == 1 else f"{outcome.runs} runs"
    gone = "" if not outcome.diverged else f"{outcome.diverged} of {runs} diverged"
    if outcome.diverged == outcome.runs:
        return f"{name}, {'all ' if outcome.runs > 1 else 'the '}{runs} diverged."
    if not outcome.values:
        return f"{name}, no {measured} is known{'; ' if gone else ''}{gone}."
    low, high = _shown(min(outcome.values)), _shown(max(outcome.values))
    span = low if low == high else f"{low}–{high} (mean {_shown(outcome.mean)})"
    of = f"{len(outcome.values)} that did not" if gone else runs
    return f"{name}, {gone}{'; ' if gone else ''}{measured} ended at {span} over {'the ' if gone else ''}{of}."


def _verdict(compared: Sequence[Outcome], higher_is_better: bool) -> str:
    """Sort thresholds into better, worse, not told apart, and not comparable."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "open": [], "unknown": []}
    for outcome in compared:
        versus = outcome.versus
        if versus is None or versus.distinguishable is None:
            kind = "unknown"
        elif not versus.distinguishable:
            kind = "open"
        else:
            kind = "better" if (versus.difference > 0) == higher_is_better else "worse"
        groups[kind].append(_threshold(outcome))
    reasons = sorted({o.versus.reason for o in compared if o.versus is not None and o.versus.reason})
    parts = [
        f"{_listed(groups[kind])} {words}"
        for kind, words in (
            ("better", "ended better than no clipping by more than the spread of the runs explains"),
            ("worse", "ended worse than no clipping by more than the spread of the runs explains"),
            ("open", "cannot be told from no clipping with these runs"),
            ("unknown", f"cannot be compared with no clipping ({'; '.join(reasons)})"),
        )
        if groups[kind]
    ]
    return f"{capital('; '.join(parts))}."


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"threshold {names[0]}"
    return f"thresholds {', '.join(names[:-1])} and {names[-1]}"


def _threshold(outcome: Outcome) -> str:
    return given(outcome.threshold)


def _difference(difference: float, interval: tuple[float, float]) -> str:
    return f"{_signed(difference)} ({_signed(interval[0])} to {_signed(interval[1])})"


def _shown(value: float) -> str:
    short = 0.005 <= abs(value) < 100 or value == 0
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if short else number(value)


def _signed(value: float) -> str:
    sign = "+" if value >= 0 else "\N{MINUS SIGN}"
    return f"{sign}{_shown(abs(value))}"
