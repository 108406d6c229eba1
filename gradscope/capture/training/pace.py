"""Which steps are recorded: every k-th, or as many as a budget allows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

#: The steps that the first choice is made from: recorded ones at both ends, what a plain step takes between them.
_TIMED = 5
#: What recording a step is taken to cost at least, in plain steps: less cannot be told from noise.
_LEAST_COST = 0.05
#: A first recorded step costs so many others at most: what a training begins with is not all recording.
_FIRST_COSTS = 3.0
#: What was spent is made up for over as many steps again, and over no fewer than these.
_HORIZON = 100
#: An interval is at most so many times the one before: a mistaken one is to be found out soon.
_GROWS = 4
#: An interval is kept while the one that the budget asks for is within this factor of it.
_KEPT = 1.25
#: Steps by which the usual one is told.
_RECENT = 64


class Pace:
    """Tell which steps to record.

    Parameters
    ----------
    every : int or None
        One step in ``every``; None to choose it: of the first steps 0 and 4 are recorded, 1 to 3 are not, and what the
        two took longer than the others is what recording costs. It is looked at again after every recorded step:
        all that was spent since the first step is to stay within the budget.
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
    spent : float
        Seconds that recording has cost, as far as can be told.
    """

    def __init__(
        self, every: int | None, budget: float, first: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every, self._budget, self._first, self._clock = every, budget, first, clock
        self._chooses, self._recording = every is None, False
        self._plain: deque[float] = deque(maxlen=_RECENT)
        self._recorded: deque[float] = deque(maxlen=_RECENT)
        self._between: deque[float] = deque(maxlen=_RECENT)
        self.spent, self._elapsed, self._here = 0.0, 0.0, 0.0
        self._began = clock()

    def records(self, step: int) -> bool:
        """Whether to record this step."""
        if self.every is None:
            self._recording = step - self._first in (0, _TIMED - 1)
        else:
            self._recording = step % self.every == 0
        return self._recording

    @property
    def choosing(self) -> bool:
        """Whether it is to be told what is spent between recorded steps."""
        return self._chooses

    def spend(self, seconds: float) -> None:
        """Take time that was spent on following the order of a step, recorded or not."""
        self._here += seconds

    def ended(self) -> bool:
        """Take the end of a step; return whether the interval has just been chosen, or changed."""
        if not self._chooses:
            return False
        now = self._clock()
        took, here, self._began, self._here = now - self._began, self._here, now, 0.0
        self._elapsed += took
        if not self._recording:
            self._plain.append(took - here)
            self._between.append(here)
            self.spent += here
            return False
        self._recorded.append(took)
        if self.every is None and len(self._recorded) < 2:
            return False
        usual, cost = self._usual_and_cost()
        self.spent += cost
        if self.every is None:  # the first one, too
            self.spent += min(max(self._recorded[0] - usual, cost), _FIRST_COSTS * cost)
        wanted = min(self._wanted(usual, cost), _HORIZON if self.every is None else _GROWS * self.every)
        if self.every is not None and self.every / _KEPT <= wanted <= self.every * _KEPT:
            return False
        self.every = wanted
        return True

    def _usual_and_cost(self) -> tuple[float, float]:
        """Return what a plain step takes, and how much longer a recorded one.

        Whatever else the machine does makes steps longer, never shorter: of few steps the shortest tells.
        """
        few = self.every is None
        usual = min(self._plain) if few else median(self._plain)
        taken = min(self._recorded) if few else median([*self._recorded][1:])
        return usual, max(taken - usual, _LEAST_COST * usual)

    def _wanted(self, usual: float, cost: float) -> int:
        """Return the interval with which the budget is kept, what was spent so far included.

        A quarter of the budget is left to recording even where what is spent between recorded steps exceeds it.
        """
        if usual <= 0:
            return _TIMED
        alone = max(self._elapsed - self.spent, 0.0)  # what the training would have taken
        steps = max(alone / usual, _HORIZON)
        left = self._budget * (alone + steps * usual) - self.spent
        allowed = max(left / steps - median(self._between), self._budget * usual / 4)
        return max(1, math.ceil(cost / allowed - 1e-9))
