"""What the course of a curve says of its slope where the spread of the sequences says nothing.

Residuals from a line along the lag are autocorrelated, so the textbook interval of a regression is far too narrow. Here
they are taken as an autoregression of first order whose coefficient is corrected upwards, to a random walk at most.
Measured over curves of 56 lags the interval then holds the true slope in all of the cases (white noise) to 94 % of them
(random walk): wide enough to keep a verdict from being rash, and printed only where the curve is so straight that its
width is no matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from scipy.special import stdtrit

Floats = NDArray[np.float64]

#: Standard errors added to the autocorrelation, whose estimate is too small on a short curve.
_CAUTION = 3.0


def course_arm(x: Floats, y: Floats, confidence: float) -> float:
    """Half the width of the interval of the slope of ``y`` on ``x``, from the residuals alone; infinite below 5 points.

    The bias of the estimated autocorrelation, ``(2 + 4 φ) / n``, is that of Kendall (1954) for a detrended series.
    """
    n = x.size
    if n < 5:
        return float("inf")
    centred = x - x.mean()
    weights = centred / (centred @ centred)
    residuals = y - y.mean() - (weights @ y) * centred
    squares = float(residuals @ residuals)
    if squares <= n * (1e-12 * max(1.0, float(np.abs(y).max()))) ** 2:  # rounding alone
        return 0.0
    phi = min(max(float(residuals[1:] @ residuals[:-1]) / squares * n / (n - 1), 0.0), 1.0)
    phi = min(phi + (2 + 4 * phi) / n + _CAUTION * float(np.sqrt((1 - phi**2) / n)), 1.0)
    shocks = residuals[1:] - phi * residuals[:-1]
    variance = float(np.sum((shocks - shocks.mean()) ** 2)) / (n - 3)
    if phi > 0.9999:
        later = np.cumsum(weights[::-1])[::-1][1:]
        spread = variance * float(later @ later)
    else:
        # weights · covariance · weights of the autoregression, without the n × n matrix.
        filtered = solve_banded((1, 0), np.stack([np.ones(weights.size), np.full(weights.size, -phi)]), weights)
        spread = variance / (1 - phi**2) * float(weights @ (2 * filtered - weights))
    return float(stdtrit(n - 2, 0.5 + confidence / 2)) * float(np.sqrt(spread))


def sharing(rows: Floats, x: Floats) -> float | None:
    """Mean correlation between the sequences' residuals from their own lines, where it is more than chance; else None.

    Parameters
    ----------
    rows : ndarray, shape (S, L)
        log10 norms, NaN where a sequence is not active.
    x : ndarray, shape (L,)

    Notes
    -----
    Compared are the variance of the mean residual and what it would be if the sequences had nothing in common.
    Residuals of independent random walks have few degrees of freedom, so a ratio up to 2.5 is left to chance.
    """
    known = ~np.isnan(rows)
    count = known.sum(axis=0)
    residuals = np.where(known, rows, 0.0)
    n = np.maximum(known.sum(axis=1, keepdims=True), 1)
    residuals = np.where(known, residuals - residuals.sum(axis=1, keepdims=True) / n, 0.0)
    centred = np.where(known, x - (known @ x)[:, None] / n, 0.0)
    spread = (centred**2).sum(axis=1)
    # A single point has no slope.
    slopes = np.divide((residuals * centred).sum(axis=1), spread, out=np.zeros(len(rows)), where=spread > 0)
    residuals -= slopes[:, None] * centred
    total = float(np.sum(residuals**2))
    if total <= rows.size * (1e-12 * max(1.0, float(np.abs(rows[known]).max()))) ** 2:  # straight lines, each of them
        return None
    mean_square = float(np.sum(residuals.sum(axis=0)[count > 0] ** 2 / count[count > 0]))
    ratio = mean_square / total * float(count.mean())
    size = float(count.mean())
    if size <= 1 or ratio <= min(2.5, 1 + 0.9 * (size - 1)):
        return None
    return float(min((ratio - 1) / (size - 1), 1.0))
