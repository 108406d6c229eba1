"""A textbook's statement, what would confirm or refute it, and what the measurement says.

What is asked is fixed before anything is measured; the outcome and its wording follow from the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from gradscope.lab.lecture.measuring import Results

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
    """

    where: str
    what: str
    measure: Callable[[Results], Sequence[float]]
    low: float = -math.inf
    high: float = math.inf
    log: bool = False

    def put_to(self, results: Results) -> Answered:
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
        """Whether the whole interval lies inside what was asked (True), outside (False), or across (None)."""
        if self.interval is None:
            return None
        low, high = self.interval
        if self.asked.low < low and high < self.asked.high:
            return True
        return False if high <= self.asked.low or low >= self.asked.high else None

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
    """What a textbook says, and the questions that decide it; all of them must be met to confirm it."""

    text: str
    asked: tuple[Asked, ...]

    def put_to(self, results: Results) -> Claim:
        """Measure every question."""
        return Claim(self.text, tuple(question.put_to(results) for question in self.asked))


@dataclass(frozen=True)
class Claim:
    """A statement with its measured answers."""

    statement: str
    answers: tuple[Answered, ...]

    @property
    def outcome(self) -> str:
        """One of ``OUTCOMES``: *refined* where some questions are met and others are not, whatever is still open."""
        met = [answer.met for answer in self.answers]
        if True in met and False in met:
            return "refined"
        if None in met or not met:
            return "undetermined"
        return "confirmed" if met[0] else "refuted"

    @property
    def sentence(self) -> str:
        """What was found, from the numbers alone."""
        heads = {True: "holds", False: "does not hold", None: "is open"}
        said = []
        for met, head in heads.items():
            found = [f"{a.asked.where} ({a.mean_words})" for a in self.answers if a.met is met]
            if found:
                said.append(f"{head} {_listed(found)}")
        return f"{self.outcome.capitalize()}: it {'; it '.join(said)}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def number(value: float) -> str:
    """Three figures at most; powers of ten where a plain number would be long."""
    if value == 0 or not math.isfinite(value):
        return {True: "no number", False: f"{value:g}"}[math.isnan(value)]
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
