"""Which steps are recorded: every k-th, or as many as a budget allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: The steps that are timed, from the first: recorded ones at both ends, what a plain step takes between them.
_TIMED = 5
#: What recording a step is taken to cost at least, in plain steps: less cannot be told from noise.
_LEAST_COST = 0.05


class Pace:
    """Tell which steps to record.

    Parameters
    ----------
    every : int or None
        One step in ``every``; None to choose it from the first steps: 0 and 4 are recorded, 1 to 3 are not, and what
        the two took longer than the others is what recording costs.
    budget : float
        Share of the training that recording may cost.
    first : int
        Number of the first step.
    clock : callable
        Seconds.

    Attributes
    ----------
    every : int or None
        None as long as it is not chosen.
    """

    def __init__(
        self, every: int | None, budget: float, first: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every, self._budget, self._first, self._clock = every, budget, first, clock
        self._took: list[float] = []
        self._spent = [0.0]
        self._began = clock()

    def records(self, step: int) -> bool:
        """Whether to record this step."""
        if self.every is None:
            return step - self._first in (0, _TIMED - 1)
        return step % self.every == 0

    @property
    def choosing(self) -> bool:
        """Whether the interval is still to be chosen."""
        return self.every is None

    def spend(self, seconds: float) -> None:
        """Take time that was spent on following the order of a step, recorded or not."""
        self._spent[-1] += seconds

    def ended(self) -> bool:
        """Take the end of a step; return whether the interval has just been chosen."""
        if self.every is not None:
            return False
        now = self._clock()
        self._took.append(now - self._began)
        self._spent.append(0.0)
        self._began = now
        if len(self._took) < _TIMED:
            return False
        first, *plain, last = self._took
        # Whatever else the machine does makes steps longer, never shorter: against the shortest plain step the cost is
        # not underrated. The first step of a training takes longer for reasons of its own: of the two, the shorter.
        usual = min(plain)
        cost = max(min(first, last) - usual, _LEAST_COST * usual)
        # Between recorded steps a little is spent too: it comes off the budget, of which a quarter is always left.
        between = min(self._spent[1 : _TIMED - 1])
        allowed = max(self._budget * usual - between, self._budget * usual / 4)
        self.every = max(1, math.ceil(cost / allowed)) if usual > 0 else _TIMED
        return True
