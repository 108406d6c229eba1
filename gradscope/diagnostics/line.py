"""The straight line through a decay curve, in closed form. See :func:`gradscope.diagnostics.fit_decay`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope import reasons
from gradscope.diagnostics.bootstrap import drift_factor, resample_counts, stretched_interval
from gradscope.diagnostics.course import course_arm, sharing
from gradscope.diagnostics.curve import Bools, DecayCurve, Floats

Steps = NDArray[np.int64]

#: First lags left out by default: there the readout shapes the curve, not the recurrence.
SKIPPED_LAGS = 5

#: Sequences that share their course get an interval from that course where it is as straight as this: the interval is
#: wide rather than exact, which next to so steep a fall is no loss. Where it is not, none is given.
STRAIGHT_R2 = 0.995

#: More sequences than this are resampled in groups of neighbours, so that memory stays bounded.
MAX_UNITS = 2048


@dataclass(frozen=True)
class Line:
    """Least squares through the mean curve.

    ``change`` is the curve's own last value minus its first, ``swing`` its largest minus its smallest, both in
    decades over the range; ``span`` is the range's length in lags. ``bounds`` are what a verdict asks about: the
    interval, or where that is refused (``interval_reason``) a wide one from the course of the curve itself.
    ``local`` are the slopes of the first and the second half of the range, ``middle`` the lag where they meet;
    ``step_changes`` what each recorded step's own line changes over the range, in decades, where there are several;
    ``n_effective`` is how many independent steps those are worth.
    """

    rate: float = float("nan")
    intercept: float = float("nan")
    r2: float = float("nan")
    interval: tuple[float, float] | None = None
    interval_reason: str = ""
    unit: str = "sequence"
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    lag_range: tuple[int, int] | None = None
    n_lags: int = 0
    n_sequences: int = 0
    n_steps: int = 0
    span: float = 0.0
    change: float = float("nan")
    swing: float = float("nan")
    local: tuple[float, float] = (float("nan"), float("nan"))
    middle: int = 0
    step_changes: tuple[float, ...] = ()
    n_effective: float = 0.0


def default_range(curve: DecayCurve) -> tuple[float, float]:
    """From five lags (at most a quarter of them) after the first, to the last that half of the sequences reach."""
    n_lags = curve.last - curve.first + 1
    if n_lags < 1:
        return 0.0, 0.0
    start = curve.first + min(SKIPPED_LAGS, n_lags // 4)
    return float(curve.lags[start]), float(curve.lags[curve.last])


def fit_line(
    curve: DecayCurve,
    low: float,
    high: float,
    confidence: float,
    resamples: int,
    seed: int,
    *,
    steps: Steps | None = None,
    unit: str = "sequence",
) -> Line:
    """Slope of the mean curve between two lags, with its bootstrap interval.

    Parameters
    ----------
    curve : DecayCurve
    low, high : float
        Both lags included.
    confidence, resamples, seed
        Of the bootstrap.
    steps : ndarray of int, shape (S,), optional
        Recorded step of each sequence. Of several steps whole steps are resampled, each with its sequences: those of
        one step share its weights.
    unit : str
        What a row of the curve is, for the words.
    """
    inside = (curve.lags >= low) & (curve.lags <= high) & ~np.isnan(curve.log10)
    active = curve.active & inside
    taking_part = active.sum(axis=1) >= 2
    used = inside & (curve.support > 0)
    x, y = curve.lags[used], curve.log10[used]
    n_sequences = int(taking_part.sum())
    clusters = _clusters(steps, taking_part)
    n_steps = int(clusters.max(initial=-1)) + 1
    if x.size < 3:
        return Line(n_lags=int(x.size), n_sequences=n_sequences, n_steps=n_steps)
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    rate = float(weights @ (y - y.mean()))
    intercept = float(y.mean() - rate * x.mean())
    arm = course_arm(x, y, confidence)
    interval, n_effective, refused = None, 0.0, reasons.single(unit)
    if n_sequences > 1:
        interval, n_effective = _interval(
            curve, used, weights, rate, taking_part, clusters, confidence, resamples, seed
        )
        refused = "" if interval is not None else reasons.none_reaches(unit)
    r2 = _r2(y, intercept + rate * x)
    if interval is not None and n_steps > 1:
        unit = "step"
    elif interval is not None and unit == "sequence":
        refused = _refusal(curve.sequences[taking_part][:, used], x, interval, arm)
        if refused and r2 >= STRAIGHT_R2:
            interval, refused, unit = (rate - arm, rate + arm), "", "course"
    interval = None if refused else interval
    half = x.size // 2
    return Line(
        rate=rate,
        intercept=intercept,
        r2=r2,
        interval=interval,
        interval_reason=refused,
        unit=unit,
        bounds=interval or (rate - arm, rate + arm),
        lag_range=(int(x[0]), int(x[-1])),
        n_lags=int(x.size),
        n_sequences=n_sequences,
        n_steps=n_steps,
        span=float(x[-1] - x[0]),
        change=float(y[-1] - y[0]),
        swing=float(y.max() - y.min()),
        local=(_slope(x[: half + 1], y[: half + 1]), _slope(x[half:], y[half:])),
        middle=int(x[half]),
        n_effective=n_effective,
        step_changes=_step_changes(curve.sequences[taking_part][:, used], x, clusters) if n_steps > 1 else (),
    )


def _clusters(steps: Steps | None, taking_part: Bools) -> Steps:
    """Number of the step of each sequence that takes part, counted from 0; all 0 where the steps are not known."""
    if steps is None:
        return np.zeros(int(taking_part.sum()), dtype=np.int64)
    return np.asarray(np.unique(steps[taking_part], return_inverse=True)[1], dtype=np.int64).reshape(-1)


def _step_changes(rows: Floats, x: Floats, clusters: Steps) -> tuple[float, ...]:
    """Slope of each step's own mean difference curve, times the range; steps that miss a lag are left out."""
    differences = np.diff(rows, axis=1)
    both = ~np.isnan(differences)
    sums, present = _summed(np.where(both, differences, 0.0), clusters), _summed(both.astype(np.float64), clusters)
    whole = (present > 0).all(axis=1)
    curves = np.concatenate([np.zeros((int(whole.sum()), 1)), np.cumsum(sums[whole] / present[whole], axis=1)], axis=1)
    return tuple(_slope(x, curve) * float(x[-1] - x[0]) for curve in curves)


def _refusal(rows: Floats, x: Floats, interval: tuple[float, float], arm: float) -> str:
    """Why an interval over the sequences of one step would claim too much; empty where it does not.

    What the sequences have in common does not show in how they differ. It may be the model's own curve, or chance
    that another batch would not repeat: one batch cannot tell.
    """
    shared = sharing(rows, x)
    if shared is None or (interval[1] - interval[0]) / 2 >= arm:
        return ""
    return reasons.shared_course(len(rows), shared)


def _slope(x: Floats, y: Floats) -> float:
    centred = x - x.mean()
    squares = float(centred @ centred)
    return float(centred @ (y - y.mean()) / squares) if squares > 0 else float("nan")


def _r2(y: Floats, fitted: Floats) -> float:
    total = float(np.sum((y - y.mean()) ** 2))
    # A constant curve has no variance to explain; rounding alone would give it a meaningless R².
    if total <= y.size * (1e-12 * max(1.0, float(np.abs(y).max()))) ** 2:
        return float("nan")
    return 1.0 - float(np.sum((y - fitted) ** 2)) / total


def _interval(
    curve: DecayCurve,
    used: Bools,
    weights: Floats,
    rate: float,
    taking_part: Bools,
    clusters: Steps,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[tuple[float, float] | None, float]:
    """Bootstrap interval over steps, or over the sequences of a single one; and how many independent steps it is of.

    The slope is linear in the curve, and the curve in its steps from lag to lag, so one matrix product serves all
    resamples: slope = sum over lags of (mean difference) times (sum of the weights of all later lags).
    """
    first, last = np.flatnonzero(used)[[0, -1]]
    leverage = np.zeros(last - first + 1)
    leverage[used[first : last + 1]] = weights
    leverage = np.cumsum(leverage[::-1])[::-1][1:]
    differences = np.diff(curve.sequences[taking_part, first : last + 1], axis=1)
    both = ~np.isnan(differences)
    sums, present = np.where(both, differences, 0.0), both.astype(np.float64)
    n = sums.shape[0]
    if clusters.any():
        sums, present, n = _summed(sums, clusters), _summed(present, clusters), int(clusters.max()) + 1
    elif n > MAX_UNITS:
        begins = np.linspace(0, n, MAX_UNITS, endpoint=False).astype(int)
        sums, present = np.add.reduceat(sums, begins), np.add.reduceat(present, begins)
    counts = resample_counts(sums.shape[0], resamples, seed)
    drawn, total = counts @ present, counts @ sums
    # A resample without any sequence at some lag has no curve there, hence no slope.
    whole = (drawn > 0).all(axis=1)
    if not whole.any():
        return None, 0.0
    low, high = stretched_interval(rate, (total[whole] / drawn[whole]) @ leverage, n, confidence)
    if not clusters.any():
        return (low, high), 1.0
    # What each sequence, and so each step, adds to the slope, to first order: its own where every lag is there.
    weight = present.sum(axis=0)
    typical = np.where(both, sums.sum(axis=0) / weight, 0.0)
    added = (np.where(both, differences, 0.0) - typical) @ (leverage / weight)
    sums_of, chance = _by_step(added, clusters)
    factor, effective = drift_factor(sums_of, confidence, chance)
    return (rate - factor * (rate - low), rate + factor * (high - rate)), effective


def _by_step(added: Floats, clusters: Steps) -> tuple[Floats, float]:
    """Sum of each step, and the variance these have by the chance of their sequences; 0 where a step has just one."""
    counts = np.bincount(clusters)
    sums = np.bincount(clusters, added).astype(np.float64)
    squares = np.bincount(clusters, (added - (sums / counts)[clusters]) ** 2)
    several = counts > 1
    chance = float(np.mean((counts * squares)[several] / (counts - 1)[several])) if several.any() else 0.0
    return sums, chance


def _summed(values: Floats, clusters: Steps) -> Floats:
    result = np.zeros((int(clusters.max()) + 1, values.shape[1]))
    np.add.at(result, clusters, values)
    return result
