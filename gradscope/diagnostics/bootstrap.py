"""Intervals from resampling whole sequences, steps or runs, never single lags, whose residuals are autocorrelated."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]

#: Of fewer units than this the resamples take too few values for percentiles; their spread is used.
MIN_PERCENTILE_UNITS = 8

#: Of fewer steps than this their correlation from one to the next cannot be estimated.
MIN_DRIFT_STEPS = 10


@lru_cache(maxsize=4)
def resample_counts(n: int, resamples: int, seed: int) -> Floats:
    """How often each of ``n`` units is drawn in each resample, shape (resamples, n)."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    result = counts.astype(np.float64)
    result.flags.writeable = False  # shared by every fit over as many units
    return result


def stretched_interval(estimate: float, draws: Floats, n: int, confidence: float) -> tuple[float, float]:
    """Percentile interval whose arms are stretched for a small number of units.

    A plain percentile interval is too narrow by ``sqrt((n - 1) / n)`` and ignores that a spread estimated from ``n``
    units calls for Student's t (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). Its two arms are
    therefore stretched by ``sqrt(n / (n - 1)) t / z``; for a mean of normal values this is the t interval. With fewer
    than ``MIN_PERCENTILE_UNITS`` units both arms are as long as the standard deviation of the draws makes them.
    """
    tail = (1 - confidence) / 2
    stretch = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - tail))
    if n < MIN_PERCENTILE_UNITS:
        arm = stretch * float(draws.std())
        return estimate - arm, estimate + arm
    low, high = np.quantile(draws, [tail, 1 - tail])
    stretch /= float(ndtri(1 - tail))
    return float(estimate - stretch * max(estimate - low, 0.0)), float(estimate + stretch * max(high - estimate, 0.0))


#: At most this share of the spread of steps is taken for chance of their sequences.
MAX_CHANCE = 0.8


def drift_factor(values: Floats, confidence: float, chance: float = 0.0) -> tuple[float, float]:
    """What the arms of an interval over steps are to be multiplied with where neighbouring steps resemble each other.

    Beside it how many independent steps these are worth.

    Parameters
    ----------
    values : ndarray, shape (K,)
        What each step contributes, in the order of time.
    confidence : float
    chance : float
        Variance that the values have because each step saw a few sequences only.

    Notes
    -----
    A training drifts: its steps are no independent draws. Taken as an autoregression of first order, ``K`` steps count
    as ``K (1 - φ) / (1 + φ)``. The estimate of φ is corrected for its bias (Kendall 1954), and raised by a standard
    error where it is more than chance would make it. Chance of the sequences hides drift: it adds to the variance of
    the steps and nothing to their covariance, so it is taken out of the first (errors in variables; Fuller 1987).
    """
    n = values.size
    deviations = values - values.mean()
    squares = float(deviations @ deviations)
    if n < MIN_DRIFT_STEPS or squares == 0:
        return 1.0, float(n)
    raw = float(deviations[1:] @ deviations[:-1]) / squares
    drifts = raw > 0.5 / np.sqrt(n)
    if drifts:
        raw /= 1 - min(chance * (n - 1) / squares, MAX_CHANCE)
    phi = min(max(raw + (1 + 3 * raw) / n, 0.0), 1.0)
    if drifts:
        phi += float(np.sqrt((1 - phi**2) / n))
    phi = min(phi, 0.99)
    effective = max(n * (1 - phi) / (1 + phi), 2.0)
    tail = 0.5 + confidence / 2
    factor = float(np.sqrt((1 + phi) / (1 - phi)) * stdtrit(effective - 1, tail) / stdtrit(n - 1, tail))
    return factor, n * (1 - phi) / (1 + phi)
