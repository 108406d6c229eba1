"""Whether a decay is exponential or a power law, or whether the curve cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from gradscope.diagnostics.bootstrap import resample_counts
from gradscope.diagnostics.curve import DecayCurve, Floats, decay_curve
from gradscope.diagnostics.line import default_range

#: Fewer lags, or a range of lags that grows by less than this factor, cannot separate the two laws.
MIN_LAGS = 10
MIN_LAG_FACTOR = 4.0
#: A curve that changes by less than this many decades is too flat to have a law.
MIN_CHANGE = 0.5
#: Difference in AICc beyond which the worse law has essentially no support (Burnham and Anderson 2002, section 2.6).
MIN_DELTA = 10.0
#: The better law must explain at least this share of the curve's variance.
MIN_R2 = 0.9
#: A law is one straight line: its slopes over thirds of the range agree within this factor. Exact power laws with 2 %
#: noise stay below 1.12; sums of two exponentials that look like one in the whole range lie above 1.2.
MAX_LOCAL_RATIO = 1.2

LAWS = ("exponential", "power law", "cannot tell")


@dataclass(frozen=True)
class LawComparison:
    """Two straight lines through the same points: log norm against lag, and against log lag.

    Attributes
    ----------
    verdict : {"exponential", "power law", "cannot tell"}
    rate, exponent : float
        log10 per step of the exponential; exponent of the power law.
    r2_exponential, r2_power : float
    delta : float
        AICc of the power law minus that of the exponential, positive for the exponential, counted with the
        effective number of points: residuals along the lag are autocorrelated, and counting each lag as a new
        observation would make any curve decisive.
    effective_points : float
    held_out : float
        log10 of the ratio of root-mean-square errors on the later half of the range, power law over exponential,
        both fitted on the earlier half. Positive for the exponential.
    agreement : float or None
        Share of resamples of the sequences that favour the same law; None with a single sequence.
    lag_range : tuple of float
    reason : str
    """

    verdict: str
    rate: float
    exponent: float
    r2_exponential: float
    r2_power: float
    delta: float
    effective_points: float
    held_out: float
    agreement: float | None
    lag_range: tuple[float, float]
    reason: str


def compare_laws(
    lags: ArrayLike,
    norms: ArrayLike,
    *,
    lag_range: tuple[float, float] | None = None,
    lengths: ArrayLike | None = None,
    smallest_normal: float | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LawComparison:
    """Compare exponential with power-law decay on the same points, with the same two parameters each.

    A law is named only where the fit, the extrapolation to held-out later lags, and the resampled sequences agree.
    Norms are compared in log10, as errors of a gradient norm are relative.

    Parameters
    ----------
    lags, norms, lengths, smallest_normal
        As in :func:`gradscope.fit_decay`.
    lag_range : (lo, hi), optional
        By default that of :func:`gradscope.fit_decay`; lag 0 has no logarithm and is left out.
    confidence : float
        Share of resamples that has to favour the same law.

    Examples
    --------
    >>> import numpy as np
    >>> from gradscope.diagnostics import compare_laws
    >>> lags = np.arange(1, 80)
    >>> compare_laws(lags, np.exp(-0.2 * lags) * np.ones((4, 1))).verdict
    'exponential'
    >>> compare_laws(lags, lags**-2.0 * np.ones((4, 1))).verdict
    'power law'
    """
    curve = decay_curve(lags, norms, lengths=lengths, smallest_normal=smallest_normal)
    low, high = lag_range if lag_range is not None else default_range(curve)
    used = (curve.lags >= max(low, 1)) & (curve.lags <= high) & ~np.isnan(curve.log10)
    x, y = curve.lags[used], curve.log10[used]
    refusal = _too_little(x, y)
    if refusal:
        nan = float("nan")
        return LawComparison("cannot tell", nan, nan, nan, nan, nan, nan, nan, None, (low, high), refusal)
    exponential, power = _Design(x), _Design(np.log10(x))
    errors = exponential.residuals(y), power.residuals(y)
    points = _effective_points(min(errors, key=lambda e: float(e @ e)))
    # Equal numbers of parameters: the AICc penalties cancel.
    delta = points * _log_ratio(float(errors[1] @ errors[1]), float(errors[0] @ errors[0]), y)
    total = float(np.sum((y - y.mean()) ** 2))
    r2 = tuple(1 - float(e @ e) / total for e in errors)
    held_out = _held_out(x, y)
    agreement = _agreement(curve, used, (exponential, power), delta > 0, resamples, seed)
    best = x if delta > 0 else np.log10(x)
    verdict, reason = _name(delta, held_out, agreement, r2, confidence, _local_ratio(best, y))
    return LawComparison(
        verdict=verdict,
        rate=exponential.slope(y),
        exponent=power.slope(y),
        r2_exponential=r2[0],
        r2_power=r2[1],
        delta=delta,
        effective_points=points,
        held_out=held_out,
        agreement=agreement,
        lag_range=(float(x[0]), float(x[-1])),
        reason=reason,
    )


class _Design:
    """Least squares of log norms on one regressor and a constant, prepared once for many right-hand sides."""

    def __init__(self, x: Floats) -> None:
        self.centred = x - x.mean()
        self.squares = float(self.centred @ self.centred)

    def slope(self, y: Floats) -> float:
        return float(self.centred @ y / self.squares)

    def residuals(self, y: Floats) -> Floats:
        """Along the last axis of ``y``."""
        slopes = (y @ self.centred / self.squares)[..., None]
        return np.asarray(y - y.mean(-1, keepdims=True) - slopes * self.centred)


def _too_little(x: Floats, y: Floats) -> str:
    if x.size < MIN_LAGS:
        return f"{x.size} lags are too few (at least {MIN_LAGS})"
    if x[-1] < MIN_LAG_FACTOR * x[0]:
        return f"lags {x[0]:g}–{x[-1]:g} span less than a factor of {MIN_LAG_FACTOR:g}"
    if np.ptp(y) < MIN_CHANGE:
        return f"the curve changes by less than {MIN_CHANGE:g} decades"
    return ""


def _effective_points(residuals: Floats) -> float:
    """n (1 − ρ) / (1 + ρ), with ρ the lag-one autocorrelation of the residuals, between 2 and n."""
    squares = float(residuals @ residuals)
    rho = float(residuals[1:] @ residuals[:-1] / squares) if squares > 0 else 0.0
    rho = min(max(rho, 0.0), 0.99)
    return max(2.0, residuals.size * (1 - rho) / (1 + rho))


def _log_ratio(a: float, b: float, y: Floats) -> float:
    floor = y.size * (1e-12 * max(1.0, float(np.abs(y).max()))) ** 2  # residuals that are rounding alone
    return float(np.log((a + floor) / (b + floor)))


def _local_ratio(regressor: Floats, y: Floats) -> float:
    """Largest over smallest slope of thirds of the range (equally long in the regressor); infinite across a sign."""
    ends = np.linspace(regressor[0], regressor[-1], 4)
    slopes = []
    for low, high in pairwise(ends):
        inside = (regressor >= low - 1e-9) & (regressor <= high + 1e-9)
        if np.unique(regressor[inside]).size >= 3:
            slopes.append(_Design(regressor[inside]).slope(y[inside]))
    if not slopes:
        return 1.0
    low, high = sorted(map(abs, (min(slopes), max(slopes))))
    return high / low if min(slopes) * max(slopes) > 0 else float("inf")


def _held_out(x: Floats, y: Floats) -> float:
    early = np.arange(x.size) < x.size // 2
    errors = []
    for regressor in (x, np.log10(x)):
        slope, intercept = np.polyfit(regressor[early], y[early], 1)
        errors.append(float(np.mean((y[~early] - intercept - slope * regressor[~early]) ** 2)))
    return 0.5 * _log_ratio(errors[1], errors[0], y) / float(np.log(10))


def _agreement(
    curve: DecayCurve, used: np.ndarray, designs: tuple[_Design, _Design], exponential: bool, resamples: int, seed: int
) -> float | None:
    # Sequences with every lag of the range: their resampled means need no chaining.
    rows = curve.sequences[:, used]
    rows = rows[~np.isnan(rows).any(axis=1)]
    if rows.shape[0] < 2:
        return None
    curves = resample_counts(rows.shape[0], resamples, seed) @ rows / rows.shape[0]
    squares = [np.sum(design.residuals(curves) ** 2, axis=-1) for design in designs]
    return float(np.mean((squares[0] < squares[1]) == exponential))


def _name(
    delta: float, held_out: float, agreement: float | None, r2: tuple[float, ...], confidence: float, local_ratio: float
) -> tuple[str, str]:
    law = "exponential" if delta > 0 else "power law"
    if max(r2) < MIN_R2:
        return "cannot tell", f"neither law describes the curve (best R² {max(r2):.3f})"
    if abs(delta) < MIN_DELTA:
        return "cannot tell", f"the fits differ too little (AICc by {abs(delta):.1f}, at least {MIN_DELTA:g} is asked)"
    if local_ratio > MAX_LOCAL_RATIO:
        return "cannot tell", (
            f"the {law} fits better, but its slope differs by a factor of {local_ratio:.2g} along the range: "
            "several scales, not one law"
        )
    if (held_out > 0) != (delta > 0):
        return "cannot tell", f"the {law} fits better but predicts the later lags worse"
    if agreement is not None and agreement < confidence:
        return "cannot tell", f"only {100 * agreement:.0f}% of the resampled batches favour the {law}"
    return law, f"the {law} fits better, predicts the later lags better" + (
        "" if agreement is None else f", and is favoured by {100 * agreement:.0f}% of the resampled batches"
    )
