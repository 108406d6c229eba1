"""Whether two groups of runs decay at different rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from gradscope.diagnostics.decay import DecayFit
from gradscope.errors import SettingError


@dataclass(frozen=True)
class RateDifference:
    """Mean rate of the first group minus that of the second, log10 per step.

    ``distinguishable`` is None where no interval can be given; ``reason`` then says why. Groups that cannot be told
    apart are not thereby equal: the interval says how large a difference the runs leave open.
    """

    difference: float
    interval: tuple[float, float] | None
    distinguishable: bool | None
    n: tuple[int, int]
    reason: str = ""


def compare_rates(first: Sequence[DecayFit], second: Sequence[DecayFit], *, confidence: float = 0.95) -> RateDifference:
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
    """
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, got {confidence}.")
    a, b = (np.array([fit.rate for fit in fits if np.isfinite(fit.rate)]) for fits in (first, second))
    sizes = (int(a.size), int(b.size))
    if min(sizes) == 0:
        return RateDifference(float("nan"), None, None, sizes, "no run with a rate on one side")
    difference = float(a.mean() - b.mean())
    if min(sizes) < 2:
        return RateDifference(difference, None, None, sizes, "at least two runs on each side are needed")
    variances = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])
    if not variances.any():
        return RateDifference(difference, (difference, difference), difference != 0, sizes)
    freedom = variances.sum() ** 2 / np.sum(variances**2 / (np.array(sizes) - 1))
    arm = float(stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(variances.sum()))
    interval = (difference - arm, difference + arm)
    return RateDifference(difference, interval, not interval[0] <= 0 <= interval[1], sizes)
