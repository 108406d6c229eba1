"""Intervals from resampling whole sequences (or runs), never single lags, whose residuals are autocorrelated."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Floats = NDArray[np.float64]


@lru_cache(maxsize=4)
def resample_counts(n: int, resamples: int, seed: int) -> Floats:
    """How often each of ``n`` units is drawn in each resample, shape (resamples, n)."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    result = counts.astype(np.float64)
    result.flags.writeable = False  # shared by every fit over as many units
    return result


def stretched_percentiles(estimate: float, draws: Floats, n: int, confidence: float) -> tuple[float, float]:
    """Percentile interval whose arms are stretched for a small number of units.

    A plain percentile interval is too narrow by ``sqrt((n - 1) / n)`` and ignores that a spread estimated from ``n``
    units calls for Student's t (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"). Its two arms are
    therefore stretched by ``sqrt(n / (n - 1)) t / z``; for a mean of normal values this is the t interval.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    stretch = float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 1 - tail) / ndtri(1 - tail))
    return float(estimate - stretch * max(estimate - low, 0.0)), float(estimate + stretch * max(high - estimate, 0.0))


def mean_interval(
    values: Floats, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean of ``values``; None with fewer than two."""
    if values.size < 2:
        return None
    draws = resample_counts(values.size, resamples, seed) @ values / values.size
    return stretched_percentiles(float(values.mean()), draws, values.size, confidence)
