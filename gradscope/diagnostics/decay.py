"""How fast a gradient decays with lag, with its uncertainty, and when no rate should be quoted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from gradscope.diagnostics.curve import DecayCurve, Floats, curve_of_logs, decay_curve
from gradscope.diagnostics.entry import Entry
from gradscope.diagnostics.judgement import PRESERVED_FACTOR, half_life, judge, leftovers, lost_from
from gradscope.diagnostics.line import Steps, default_range, fit_line
from gradscope.errors import SettingError
from gradscope.reasons import joined
from gradscope.words import sentence


@dataclass(frozen=True, eq=False)
class DecayFit:
    """A straight line through log10 of the decay curve, and what may be said from it.

    Attributes
    ----------
    rate : float
        Slope in log10 per step (decades per lag); NaN when fewer than three lags can be used.
    interval : tuple of float or None
        Bootstrap interval of the rate over ``unit``; None where it is refused, and ``interval_reason`` says why.
    interval_reason : str
    r2 : float
        Of the straight line, over the mean curve; NaN for a constant curve.
    lag_range : tuple of int or None
        First and last lag of the fit.
    n_lags, n_sequences, n_steps : int
        What the fit used. ``n_steps`` is 1 where the steps were not given.
    half_life, half_life_interval : float, tuple or None
        Lags over which the gradient halves. None when it should not be quoted; ``half_life_reason`` says why.
    horizon : int or None
        First lag where the gradient is below ``horizon_fraction`` of that at the reference lag; None if it never is.
    verdict : {"vanishing", "preserved", "exploding", "undetermined"}
    reason : str
        Why the verdict is what it is, and what was left out of the fit.
    reference_lag, last_lag : int or None
        First and last lag with a usable norm in at least half of the sequences, or the lag where the gradient enters;
        ``reach`` compares the two.
    lost_from : int or None
        First lag from which most sequences read zero or below the smallest normal number.
    n_zero, n_below_normal, n_nonfinite : int
        Norms left out of the fit.
    unit : str
        What was resampled: ``"sequence"``, ``"step"`` or ``"run"``; ``"course"`` where the interval is a wide one
        from the course of the mean curve.
    cause : str
        What decided the verdict, as one of the causes of ``gradscope.reasons``.
    curve : DecayCurve

    Examples
    --------
    >>> from gradscope.diagnostics import fit_decay
    >>> fit = fit_decay(range(60), [0.5**k for k in range(60)])
    >>> round(fit.rate, 3), fit.half_life.__round__(3), fit.verdict
    (-0.301, 1.0, 'vanishing')
    >>> round(fit.ratio(10) * 2**10, 6)
    1.0
    """

    rate: float
    interval: tuple[float, float] | None
    interval_reason: str
    r2: float
    intercept: float
    lag_range: tuple[int, int] | None
    n_lags: int
    n_sequences: int
    n_steps: int
    half_life: float | None
    half_life_interval: tuple[float, float] | None
    half_life_reason: str
    horizon: int | None
    horizon_fraction: float
    verdict: str
    reason: str
    reference_lag: int | None
    last_lag: int | None
    lost_from: int | None
    n_zero: int
    n_below_normal: int
    n_nonfinite: int
    confidence: float
    curve: DecayCurve = field(repr=False)
    unit: str = "sequence"
    cause: str = ""

    def ratio(self, lag: int) -> float:
        """Gradient at ``lag`` as a fraction of that at the reference lag (lag 0 where it was recorded); NaN unknown."""
        at = np.flatnonzero(self.curve.lags == lag)
        if not at.size or self.reference_lag is None:
            return float("nan")
        return float(10.0 ** (self.curve.log10[at[0]] - self.curve.log10[self.curve.first]))

    def __str__(self) -> str:
        return sentence(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(sentence(self))}</p>"

    @property
    def factor(self) -> float:
        """The change over the lag range that verdicts ask about."""
        return PRESERVED_FACTOR

    @property
    def reach(self) -> float:
        """Gradient at ``last_lag`` as a fraction of that at the reference lag; NaN when there is none."""
        return float("nan") if self.last_lag is None else self.ratio(self.last_lag)

    def line(self, lags: ArrayLike) -> Floats:
        """The fitted norm at ``lags``, to draw over the curve."""
        return np.asarray(10.0 ** (self.intercept + self.rate * np.asarray(lags, dtype=np.float64)))


def fit_decay(
    lags: ArrayLike,
    norms: ArrayLike,
    *,
    lag_range: tuple[float, float] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    horizon_fraction: float = 0.01,
    lengths: ArrayLike | None = None,
    starts: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    entry: Entry | None = None,
    smallest_normal: float | None = None,
) -> DecayFit:
    """Fit an exponential decay to gradient norms against lag.

    The rate is the least-squares slope of log10 of the geometric mean over sequences. Its interval comes from
    resampling whole recorded steps with their sequences, or the sequences where there is one step: residuals along the
    lag are autocorrelated, so the textbook interval of a regression is invalid. It speaks of other sequences, and of
    the other steps of *this* training between the first recorded one and the last; of later steps only where the
    training does not drift unseen, and not of other seeds (``gradscope.diagnostics.combine_fits``). Where the sequences
    of a single step share the course of their curves, one batch cannot tell the model's from chance: the interval is
    then a wide one from how far that course is from straight, and none is given where R² is below .995.

    A verdict is given from five lags on. Over the lag range, *vanishing* is a fall to a tenth or less, by the curve's
    own ends and by the whole interval (or by each of five or more recorded steps); *exploding* is the mirror image;
    *preserved* is an interval, and a curve, that stay within a factor of ten throughout. Everything else is
    *undetermined*. A curved decay (R² < .95, or two halves whose slopes differ by half) can be vanishing, but gets no
    half-life.

    Parameters
    ----------
    lags : array_like, shape (L,)
        Recurrent steps back from the last processed step; distinct, any order.
    norms : array_like, shape (L,) or (S, L)
        Gradient norms, NaN beyond a sequence's length.
    lag_range : (lo, hi), optional
        Both ends included. By default from five lags (a quarter of them, if that is fewer) after the first usable
        one, where the readout no longer dominates, to the last that at least half of the sequences reach.
    confidence, resamples, seed
        Of the bootstrap.
    horizon_fraction : float
        Fraction of the gradient at lag 0 that defines the horizon.
    lengths, starts, smallest_normal
        As in :func:`gradscope.diagnostics.decay_curve`.
    steps : array_like of int, shape (S,), optional
        Recorded step of each sequence. Without it all are taken to be of one step: pass it wherever steps are pooled.
    entry : Entry, optional
        Where the gradient enters, from :func:`gradscope.diagnostics.find_entry`; the curve is judged from there on.
        By default from its first lag with a gradient.

    Returns
    -------
    DecayFit

    Raises
    ------
    SettingError
        An argument out of its range, or arrays that do not fit together.

    Examples
    --------
    >>> from gradscope.diagnostics import fit_decay
    >>> fit = fit_decay(range(60), [0.5**k for k in range(60)])
    >>> round(fit.half_life, 6), fit.verdict
    (1.0, 'vanishing')
    """
    _check_settings(lag_range, confidence, resamples, horizon_fraction)
    curve = decay_curve(lags, norms, lengths=lengths, starts=starts, smallest_normal=smallest_normal)
    at = _checked_steps(steps, len(curve.sequences))
    return _fit_curve(curve, lag_range, confidence, resamples, seed, horizon_fraction, "sequence", at, entry)


def combine_fits(
    fits: Sequence[DecayFit],
    *,
    lag_range: tuple[float, float] | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    horizon_fraction: float = 0.01,
) -> DecayFit:
    """Fit the decay of several runs (seeds) together, with an interval over *runs*.

    Each run counts once, by its mean curve: an interval over all their sequences would claim that sequences of one
    run are as different as runs. By default over the lags common to the runs' own fits.

    Raises
    ------
    SettingError
        Nothing to combine.

    Examples
    --------
    >>> from gradscope.diagnostics import combine_fits, fit_decay
    >>> seeds = [fit_decay(range(60), [base**k for k in range(60)]) for base in (0.85, 0.86, 0.87)]
    >>> combine_fits(seeds).verdict
    'vanishing'
    """
    if not fits:
        raise SettingError("no fits to combine: pass one DecayFit per run.")
    _check_settings(lag_range, confidence, resamples, horizon_fraction)
    lags = np.unique(np.concatenate([fit.curve.lags for fit in fits]))
    rows = np.full((len(fits), lags.size), np.nan)
    for row, fit in zip(rows, fits, strict=True):
        kept = slice(fit.curve.first, fit.curve.last + 1)
        row[np.searchsorted(lags, fit.curve.lags[kept])] = fit.curve.log10[kept]
    ranges = [fit.lag_range for fit in fits if fit.lag_range is not None]
    if lag_range is None and ranges:
        common = max(low for low, _ in ranges), min(high for _, high in ranges)
        lag_range = common if common[0] < common[1] else None
    return _fit_curve(curve_of_logs(lags, rows), lag_range, confidence, resamples, seed, horizon_fraction, "run")


def _check_settings(
    lag_range: tuple[float, float] | None, confidence: float, resamples: int, horizon_fraction: float
) -> None:
    if lag_range is not None and not lag_range[0] < lag_range[1]:
        raise SettingError(f"lag_range must be (first, last) with first < last, got {lag_range}.")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, got {confidence}.")
    if resamples < 1:
        raise SettingError(f"resamples must be at least 1, got {resamples}.")
    if not 0 < horizon_fraction < 1:
        raise SettingError(f"horizon_fraction must lie between 0 and 1, got {horizon_fraction}.")


def _fit_curve(
    curve: DecayCurve,
    lag_range: tuple[float, float] | None,
    confidence: float,
    resamples: int,
    seed: int,
    horizon_fraction: float,
    unit: str,
    steps: Steps | None = None,
    entry: Entry | None = None,
) -> DecayFit:
    if entry is not None and not entry.everywhere:
        curve = _entered(curve, entry.lag)
    low, high = lag_range if lag_range is not None else default_range(curve)
    line = fit_line(curve, low, high, confidence, resamples, seed, steps=steps, unit=unit)
    verdict, reason = judge(curve, line, entry)
    halving, halving_interval, no_half_life = half_life(line)
    known = curve.last >= curve.first
    return DecayFit(
        rate=line.rate,
        interval=line.interval,
        interval_reason=line.interval_reason,
        r2=line.r2,
        intercept=line.intercept,
        lag_range=line.lag_range,
        n_lags=line.n_lags,
        n_sequences=line.n_sequences,
        n_steps=line.n_steps,
        half_life=halving,
        half_life_interval=halving_interval,
        half_life_reason=no_half_life,
        horizon=_horizon(curve, horizon_fraction),
        horizon_fraction=horizon_fraction,
        verdict=verdict,
        reason=joined(reason.words, leftovers(curve)),
        reference_lag=int(curve.lags[curve.first]) if known else None,
        last_lag=int(curve.lags[curve.last]) if known else None,
        lost_from=lost_from(curve),
        n_zero=int(curve.n_zero.sum()),
        n_below_normal=int(curve.n_below_normal.sum()),
        n_nonfinite=int(curve.n_nonfinite.sum()),
        confidence=confidence,
        curve=curve,
        unit=line.unit,
        cause=reason.cause,
    )


def _entered(curve: DecayCurve, lag: float) -> DecayCurve:
    """The curve as it counts from the lag where the gradient enters."""
    first = int(np.searchsorted(curve.lags, lag))
    return replace(curve, first=min(max(curve.first, first), max(curve.last, 0)))


def _checked_steps(steps: ArrayLike | None, n_sequences: int) -> Steps | None:
    if steps is None:
        return None
    at = np.asarray(steps)
    if at.shape != (n_sequences,) or not np.issubdtype(at.dtype, np.integer):
        raise SettingError(f"steps must hold one integer per sequence: got {at.dtype} {at.shape} for {n_sequences}.")
    return at.astype(np.int64)


def _horizon(curve: DecayCurve, fraction: float) -> int | None:
    """First lag below ``fraction`` of the reference; a norm too small to be represented is below any fraction."""
    if curve.last < curve.first:
        return None
    kept = slice(curve.first, curve.last + 1)
    below = curve.lags[kept][curve.log10[kept] - curve.log10[curve.first] < np.log10(fraction)]
    if below.size:
        return int(below[0])
    return lost_from(curve)
