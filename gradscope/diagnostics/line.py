"""The straight line through a decay curve, in closed form. See :func:`gradscope.diagnostics.fit_decay`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradscope.diagnostics.bootstrap import resample_counts, stretched_percentiles
from gradscope.diagnostics.curve import Bools, DecayCurve, Floats

#: First lags left out by default: there the readout shapes the curve, not the recurrence.
SKIPPED_LAGS = 5

#: More sequences than this are resampled in groups of neighbours, so that memory stays bounded.
MAX_UNITS = 2048


@dataclass(frozen=True)
class Line:
    """Least squares through the mean curve.

    ``change`` is the curve's own last value minus its first, ``swing`` its largest minus its smallest, both in
    decades over the range; ``span`` is the range's length in lags.
    """

    rate: float = float("nan")
    intercept: float = float("nan")
    r2: float = float("nan")
    interval: tuple[float, float] | None = None
    lag_range: tuple[int, int] | None = None
    n_lags: int = 0
    n_sequences: int = 0
    span: float = 0.0
    change: float = float("nan")
    swing: float = float("nan")


def default_range(curve: DecayCurve) -> tuple[float, float]:
    """From five lags (at most a quarter of them) after the first, to the last that half of the sequences reach."""
    n_lags = curve.last - curve.first + 1
    if n_lags < 1:
        return 0.0, 0.0
    start = curve.first + min(SKIPPED_LAGS, n_lags // 4)
    return float(curve.lags[start]), float(curve.lags[curve.last])


def fit_line(curve: DecayCurve, low: float, high: float, confidence: float, resamples: int, seed: int) -> Line:
    """Slope of the mean curve between two lags, with its bootstrap interval over sequences."""
    inside = (curve.lags >= low) & (curve.lags <= high) & ~np.isnan(curve.log10)
    active = curve.active & inside
    taking_part = active.sum(axis=1) >= 2
    used = inside & (curve.support > 0)
    x, y = curve.lags[used], curve.log10[used]
    n_sequences = int(taking_part.sum())
    if x.size < 3:
        return Line(n_lags=int(x.size), n_sequences=n_sequences)
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    rate = float(weights @ (y - y.mean()))
    intercept = float(y.mean() - rate * x.mean())
    draws = _resampled_slopes(curve, used, weights, taking_part, resamples, seed)
    return Line(
        rate=rate,
        intercept=intercept,
        r2=_r2(y, intercept + rate * x),
        interval=None if draws is None else stretched_percentiles(rate, draws, n_sequences, confidence),
        lag_range=(int(x[0]), int(x[-1])),
        n_lags=int(x.size),
        n_sequences=n_sequences,
        span=float(x[-1] - x[0]),
        change=float(y[-1] - y[0]),
        swing=float(y.max() - y.min()),
    )


def _r2(y: Floats, fitted: Floats) -> float:
    total = float(np.sum((y - y.mean()) ** 2))
    # A constant curve has no variance to explain; rounding alone would give it a meaningless R².
    if total <= y.size * (1e-12 * max(1.0, float(np.abs(y).max()))) ** 2:
        return float("nan")
    return 1.0 - float(np.sum((y - fitted) ** 2)) / total


def _resampled_slopes(
    curve: DecayCurve, used: Bools, weights: Floats, taking_part: Bools, resamples: int, seed: int
) -> Floats | None:
    """Slope of the chained mean curve of every resample.

    The slope is linear in the curve, and the curve in its steps from lag to lag, so one matrix product serves all
    resamples: slope = sum over steps of (mean step) times (sum of the weights of all later lags).
    """
    if taking_part.sum() < 2:
        return None
    first, last = np.flatnonzero(used)[[0, -1]]
    rows = curve.sequences[taking_part, first : last + 1]
    leverage = np.zeros(last - first + 1)
    leverage[used[first : last + 1]] = weights
    leverage = np.cumsum(leverage[::-1])[::-1][1:]
    steps = np.diff(rows, axis=1)
    both = ~np.isnan(steps)
    if both.all() and rows.shape[0] <= MAX_UNITS:
        return np.asarray(resample_counts(rows.shape[0], resamples, seed) @ (steps @ leverage) / rows.shape[0])
    sums, present = np.where(both, steps, 0.0), both.astype(np.float64)
    if rows.shape[0] > MAX_UNITS:
        begins = np.linspace(0, rows.shape[0], MAX_UNITS, endpoint=False).astype(int)
        sums, present = np.add.reduceat(sums, begins), np.add.reduceat(present, begins)
    counts = resample_counts(sums.shape[0], resamples, seed)
    drawn, total = counts @ present, counts @ sums
    # A resample without any sequence at some lag has no curve there, hence no slope.
    whole = (drawn > 0).all(axis=1)
    return np.asarray((total[whole] / drawn[whole]) @ leverage) if whole.any() else None
