"""Whether two groups of runs differ in their mean: in the rate of decay, or in any other number per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from gradscope.diagnostics.decay import DecayFit
from gradscope.errors import SettingError


@dataclass(frozen=True)
class MeanDifference:
    """Mean of the first group minus that of the second.

    ``distinguishable`` is None where no interval can be given; ``reason`` then says why. Groups that cannot be told
    apart are not thereby equal: the interval says how large a difference the runs leave open.
    """

    difference: float
    interval: tuple[float, float] | None
    distinguishable: bool | None
    n: tuple[int, int]
    reason: str = ""


def compare_rates(first: Sequence[DecayFit], second: Sequence[DecayFit], *, confidence: float = 0.95) -> MeanDifference:
    """Difference of decay rates between two groups of runs, with Welch's interval over runs.

    Parameters
    ----------
    first, second : sequence of DecayFit
        One per run (seed), over comparable lags. Runs without a rate are left out.
    confidence : float

    Raises
    ------
    SettingError
        ``confidence`` out of range.

    Examples
    --------
    >>> from gradscope.diagnostics import compare_rates, fit_decay
    >>> def fits(*bases):
    ...     return [fit_decay(range(40), [base**k for k in range(40)]) for base in bases]
    >>> compare_rates(fits(0.70, 0.72, 0.71), fits(0.90, 0.91, 0.92)).distinguishable
    True
    """
    return compare_means([fit.rate for fit in first], [fit.rate for fit in second], confidence=confidence)


def compare_means(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> MeanDifference:
    """Difference of means between two groups of runs, with Welch's interval; see :func:`compare_rates`.

    Values that are not finite are left out.

    Raises
    ------
    SettingError
        ``confidence`` out of range.

    Examples
    --------
    >>> from gradscope.diagnostics import compare_means
    >>> found = compare_means([1.0, 1.2, 1.1], [1.0, 1.1, 1.3])
    >>> found.distinguishable, found.n
    (False, (3, 3))
    """
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, got {confidence}.")
    a, b = (np.array([value for value in group if np.isfinite(value)]) for group in (first, second))
    sizes = (int(a.size), int(b.size))
    if min(sizes) == 0:
        return MeanDifference(float("nan"), None, None, sizes, "no run with a number on one side")
    difference = float(a.mean() - b.mean())
    if min(sizes) < 2:
        return MeanDifference(difference, None, None, sizes, "at least two runs on each side are needed")
    variances = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])
    if not variances.any():
        return MeanDifference(difference, (difference, difference), difference != 0, sizes)
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (np.array(sizes) - 1))
    arm = float(stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variances.sum()))
    interval = (difference - arm, difference + arm)
    return MeanDifference(difference, interval, not interval[0] <= 0 <= interval[1], sizes)
