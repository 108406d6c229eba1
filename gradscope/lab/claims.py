"""A statement of a textbook or a paper, what would confirm or refute it, and what the measurement says.

What is asked is fixed before anything is measured; the outcome and its wording follow from the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from gradscope.words import number as few_digits

CONFIDENCE = 0.95
OUTCOMES = ("confirmed", "refined", "refuted", "undetermined")


@dataclass(frozen=True)
class Asked:
    """One numeric question: does ``measure`` lie between ``low`` and ``high`` under the condition ``where``?

    Attributes
    ----------
    where : str
        The condition, as the end of a sentence: ``"at initialisation on the digits"``.
    what : str
        The quantity that is measured.
    measure : callable
        ``measure(results)`` gives one value per seed.
    low, high : float
        The statement asks for a value strictly between them.
    log : bool
        A ratio: averaged, and its interval taken, in its logarithm.
    margin : float
        The smallest difference that would matter, in the units of ``measure`` (a factor, where ``log``). An interval
        that lies within it, on both sides of the one finite bound, decides that there is no difference. 0: none would
        be too small to matter.
    reads : str
        How the number is read, with ``{}`` for it: ``"{} of the gradient arrives"``.
    at : tuple of str
        The parts of ``where`` that differ between the conditions of a statement, such as network, moment and data.
    """

    where: str
    what: str
    measure: Callable[[Any], Sequence[float]]
    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    margin: float = 0.0
    reads: str = "{}"
    at: tuple[str, ...] = ()

    def put_to(self, results: Any) -> Answered:
        """Measure."""
        return Answered(self, tuple(float(value) for value in self.measure(results)))


@dataclass(frozen=True)
class Answered:
    """A question with the values measured for it, one per seed."""

    asked: Asked
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds; of a ratio the geometric mean."""
        return self._back(float(np.mean(self._scaled()))) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean over seeds; None for a single seed or values that are no numbers.

        A bootstrap of five seeds would be too narrow; seeds are independent, so the t interval holds.
        """
        scaled = self._scaled()
        if scaled.size < 2 or np.isnan(scaled).any():
            return None
        if np.all(scaled == scaled[0]):
            return self._back(scaled[0]), self._back(scaled[0])
        if not np.isfinite(scaled).all():
            return None
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, scaled.size - 1) * scaled.std(ddof=1) / math.sqrt(scaled.size)
        return self._back(scaled.mean() - reach), self._back(scaled.mean() + reach)

    @property
    def met(self) -> bool | None:
        """Whether the whole interval lies inside what was asked (True), outside (False), or across (None).

        An interval across the bound, but within ``margin`` of it on both sides, is not met: there is no difference.
        """
        if self.interval is None:
            return None
        low, high = self.interval
        if self.asked.low < low and high < self.asked.high:
            return True
        return False if high <= self.asked.low or low >= self.asked.high or self.same else None

    @property
    def same(self) -> bool:
        """Whether the interval reaches across the bound and stays within ``margin`` of it: no difference."""
        if self.interval is None or not self.asked.margin:
            return False
        low, high = self.interval
        bound = self.asked.low if math.isfinite(self.asked.low) else self.asked.high
        if not low <= bound <= high:
            return False
        if self.asked.log:
            return bound / self.asked.margin < low and high < bound * self.asked.margin
        return bound - self.asked.margin < low and high < bound + self.asked.margin

    @property
    def mean_words(self) -> str:
        """The mean, to three figures."""
        return number(self.mean)

    @property
    def range_words(self) -> str:
        """What was asked, in words."""
        low, high = self.asked.low, self.asked.high
        if math.isinf(low):
            return f"below {number(high)}"
        return f"above {number(low)}" if math.isinf(high) else f"between {number(low)} and {number(high)}"

    @property
    def interval_words(self) -> str:
        """The interval, or how many seeds there were."""
        if self.interval is None:
            return f"no interval from {len(self.values)} seed{'s' * (len(self.values) != 1)}"
        low, high = map(number, self.interval)
        return "in every seed" if low == high else f"{low} to {high}"

    def _scaled(self) -> np.ndarray:
        values = np.array(self.values, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log10(values) if self.asked.log else values

    def _back(self, value: float) -> float:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.power(10.0, value)) if self.asked.log else float(value)


@dataclass(frozen=True)
class Statement:
    """What is said, and the questions that decide it; all of them must be met to confirm it."""

    text: str
    asked: tuple[Asked, ...]

    def put_to(self, results: Any) -> Claim:
        """Measure every question."""
        return Claim(self.text, tuple(question.put_to(results) for question in self.asked))


@dataclass(frozen=True)
class Claim:
    """A statement with its measured answers."""

    statement: str
    answers: tuple[Answered, ...]

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``.

        *confirmed*: it holds under every condition. *refined*: under some; the others are not met or open. *refuted*:
        it is decided against somewhere and holds nowhere. *undetermined*: nothing is decided.
        """
        met = [answer.met for answer in self.answers]
        if met and all(met):
            return "confirmed"
        if True in met:
            return "refined"
        return "refuted" if False in met else "undetermined"

    @property
    def found(self) -> str:
        """What was found, in the fewest conditions that say it, each with its number."""
        said = []
        for head, chosen in (
            ("holds", [a for a in self.answers if a.met]),
            ("makes no difference", [a for a in self.answers if a.same]),
            ("does not hold", [a for a in self.answers if a.met is False and not a.same]),
            ("is open", [a for a in self.answers if a.met is None]),
        ):
            if chosen:
                said.append(" ".join(filter(None, [head, self._conditions(chosen)])))
        words = "; ".join(said)
        return f"{words[:1].upper()}{words[1:]}."

    @property
    def sentence(self) -> str:
        """The outcome, and what was found."""
        return f"{self.outcome.capitalize()}. {self.found}"

    def _conditions(self, chosen: Sequence[Answered]) -> str:
        parts, reads = [], ""
        for where, answers in conditions(chosen, self.answers):
            # The unit once, as long as it stays the same.
            unit = answers[0].asked.reads if answers[0].asked.reads != reads else "{}"
            reads = answers[0].asked.reads
            parts.append(" ".join(filter(None, [where, f"({unit.format(_span(answers))}{_open(answers)})"])))
        return _listed(parts)


def conditions(chosen: Sequence[Answered], everything: Sequence[Answered]) -> list[tuple[str, tuple[Answered, ...]]]:
    """Name a part of the answers by as few conditions as tell it from the rest.

    Conditions are told apart by ``asked.at``: where all answers of "at initialisation" are chosen, the data they were
    found on are not named.
    """
    lengths = {len(answer.asked.at) for answer in everything}
    if lengths != {max(lengths)} or max(lengths) == 0:
        return [(answer.asked.where, (answer,)) for answer in chosen]
    first = everything[0].asked.at
    varying = [i for i in range(len(first)) if any(answer.asked.at[i] != first[i] for answer in everything)]
    common = tuple((i, text) for i, text in enumerate(first) if i not in varying)
    ways = [_split(chosen, everything, order, common) for order in itertools.permutations(varying)]
    best = min(ways, key=lambda way: (len(way), sum(len(named) for named, _ in way)))
    return [(" ".join(text for _, text in sorted(named) if text), answers) for named, answers in best]


_Named = tuple[tuple[int, str], ...]


def _split(
    chosen: Sequence[Answered], everything: Sequence[Answered], order: Sequence[int], named: _Named
) -> list[tuple[_Named, tuple[Answered, ...]]]:
    if len(chosen) == len(everything):
        return [(named, tuple(chosen))]
    first, *rest = order
    found = []
    for text in dict.fromkeys(answer.asked.at[first] for answer in everything):
        inside = [answer for answer in chosen if answer.asked.at[first] == text]
        if inside:
            all_there = [answer for answer in everything if answer.asked.at[first] == text]
            found += _split(inside, all_there, rest, (*named, (first, text)))
    return found


def _open(answers: Sequence[Answered]) -> str:
    """The interval of an open question."""
    return f"; {answers[0].interval_words}" if len(answers) == 1 and answers[0].met is None else ""


def _span(answers: Sequence[Answered]) -> str:
    """The mean, or the span of several."""
    low, high = (number(pick(answer.mean for answer in answers)) for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def number(value: float) -> str:
    """Three figures at most, as numbers are printed everywhere, without zeros behind the point."""
    if math.isnan(value):
        return "no number"
    said = few_digits(value, 3)
    return said.rstrip("0").rstrip(".") if "." in said and "e" not in said else said
