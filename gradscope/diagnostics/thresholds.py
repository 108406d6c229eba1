"""What any clipping threshold would have done to recorded gradient norms, without retraining, and which to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope import reasons
from gradscope.diagnostics.clipping import QUANTILES, norm_scale
from gradscope.errors import SettingError

Floats = NDArray[np.float64]

#: Fewer norms than this say nothing about a threshold.
MIN_NORMS = 20
#: Pascanu, Mikolov and Bengio 2013, section 3.2: half to ten times the average norm.
PASCANU_MULTIPLES = (0.5, 10.0)
#: Seetharaman et al. 2020 (AutoClip) clip at this percentile of the norms seen so far.
AUTOCLIP_PERCENTILE = 10.0
#: Brock et al. 2021: weights below this norm count as this norm.
AGC_EPSILON = 1e-3
#: Norms times thresholds that are in memory at once.
_MOST_VALUES = 1 << 20


@dataclass(frozen=True)
class ThresholdEffect:
    """What one norm threshold would have done to the recorded steps.

    ``clipped`` is the share of steps; ``scale_*`` are the mean and quantiles of the factor, ``norm_median`` and
    ``norm_max`` the norms of the clipped gradients.
    """

    threshold: float
    clipped: float
    scale_mean: float
    scale_p05: float
    scale_p25: float
    scale_p50: float
    scale_p75: float
    scale_p95: float
    norm_median: float
    norm_max: float
    n: int


def threshold_table(norms: ArrayLike, thresholds: Sequence[float] | None = None) -> tuple[ThresholdEffect, ...]:
    """What each threshold would have done to these raw gradient norms.

    It describes the recorded steps, not another training: with another threshold the weights, hence the norms, would
    have gone another way from the first clipped step on.

    Parameters
    ----------
    norms : array_like, shape (N,)
        Total norms before clipping. Norms that are not finite are left out.
    thresholds : sequence of float, optional
        By default the round numbers (1, 2, 5 times a power of ten) across the recorded norms, and infinity.

    Examples
    --------
    >>> from gradscope.diagnostics import threshold_table
    >>> [(row.threshold, row.clipped) for row in threshold_table([0.5, 1.0, 3.0, 8.0], [2.0, 5.0])]
    [(2.0, 0.5), (5.0, 0.25)]
    """
    every = np.asarray(norms, dtype=np.float64).ravel()
    raw = every[np.isfinite(every)]
    asked = list(round_thresholds(raw) if thresholds is None else thresholds)
    at_once = max(1, _MOST_VALUES // max(raw.size, 1))
    blocks = (asked[start : start + at_once] for start in range(0, len(asked), at_once))
    return tuple(effect for block in blocks for effect in _effects(raw, block))


def _effects(norms: Floats, thresholds: Sequence[float]) -> Iterator[ThresholdEffect]:
    """Of several thresholds at once, which takes a tenth of the time of one after another."""
    scales = np.stack([norm_scale(norms, c) for c in thresholds])
    left = scales * norms
    # No norm at all: every number of it is unknown.
    has = norms.size > 0
    unknown = np.full(len(thresholds), np.nan)
    levels = np.quantile(scales, QUANTILES, axis=1) if has else [unknown] * len(QUANTILES)
    clipped, mean = (np.mean(scales < 1, axis=1), scales.mean(axis=1)) if has else (unknown, unknown)
    median, largest = (np.median(left, axis=1), left.max(axis=1)) if has else (unknown, unknown)
    for i, threshold in enumerate(thresholds):
        p05, p25, p50, p75, p95 = (float(level[i]) for level in levels)
        yield ThresholdEffect(
            threshold=float(threshold),
            clipped=float(clipped[i]),
            scale_mean=float(mean[i]),
            scale_p05=p05,
            scale_p25=p25,
            scale_p50=p50,
            scale_p75=p75,
            scale_p95=p95,
            norm_median=float(median[i]),
            norm_max=float(largest[i]),
            n=int(norms.size),
        )


def round_thresholds(norms: ArrayLike) -> tuple[float, ...]:
    """Round numbers (1, 2, 5 times a power of ten) that span most of the norms, and infinity (no clipping)."""
    values = np.asarray(norms, dtype=np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return (float("inf"),)
    low, high = np.log10(np.quantile(values, [0.01, 0.99])) + np.log10([0.5, 2.0])
    digits = (1, 2, 5) if high - low <= 5 else (1,)
    grid = [float(f"{d}e{e}") for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for d in digits]
    return (*(c for c in grid if 10**low <= c <= 10**high), float("inf"))


@dataclass(frozen=True)
class ThresholdSuggestion:
    """Thresholds worth comparing.

    Attributes
    ----------
    low, high : float or None
        Range worth comparing; None when there is too little to go by.
    mean, median, p90, p99 : float
        Of the recorded norms.
    pascanu : tuple of float
        0.5 and 10 times the mean norm.
    autoclip : float
        10th percentile of the norms: clips nine steps in ten.
    n : int
        Finite norms.
    reason, words : str
        Where the range comes from; what it does and does not mean.
    """

    low: float | None
    high: float | None
    mean: float
    median: float
    p90: float
    p99: float
    pascanu: tuple[float, float]
    autoclip: float
    n: int
    reason: str
    words: str

    def __str__(self) -> str:
        return self.words or self.reason


def suggest_threshold(norms: ArrayLike) -> ThresholdSuggestion:
    """A range of thresholds worth comparing, from the norms of one run.

    The range runs from the median norm (half of the steps clipped) to the 99th percentile (only outliers clipped),
    narrowed to 0.5–10 times the mean norm (Pascanu et al. 2013) where the two overlap. Heavy tails pull the mean up,
    so the quantiles lead.

    Examples
    --------
    >>> import numpy as np
    >>> from gradscope.diagnostics import suggest_threshold
    >>> found = suggest_threshold(np.random.default_rng(0).lognormal(0, 1, 500))
    >>> found.low < found.p90 < found.high
    True
    >>> print(found)
    Thresholds from ...
    """
    every = np.asarray(norms, dtype=np.float64).ravel()
    values = every[np.isfinite(every)]
    if values.size < MIN_NORMS:
        nan = float("nan")
        reason = reasons.few_norms(int(values.size), MIN_NORMS)
        return ThresholdSuggestion(None, None, nan, nan, nan, nan, (nan, nan), nan, int(values.size), reason, "")
    autoclip, median, p90, p99 = map(float, np.percentile(values, [AUTOCLIP_PERCENTILE, 50, 90, 99]))
    mean = float(values.mean())
    pascanu = (PASCANU_MULTIPLES[0] * mean, PASCANU_MULTIPLES[1] * mean)
    low, high, reason = median, p99, reasons.QUANTILE_RANGE
    if max(low, pascanu[0]) < min(high, pascanu[1]) and (low < pascanu[0] or high > pascanu[1]):
        low, high = max(low, pascanu[0]), min(high, pascanu[1])
        reason += reasons.PASCANU_RANGE
    if values.size < every.size:
        reason += reasons.norms_left_out(every.size - values.size)
    if not high > 0:
        return ThresholdSuggestion(
            None, None, mean, median, p90, p99, pascanu, autoclip, int(values.size), reasons.ALL_ZERO, ""
        )
    at_low, at_high = (float(np.mean(norm_scale(values, c) < 1)) for c in (low, high))
    words = reasons.suggested(low, high, (at_low, at_high), int(values.size))
    return ThresholdSuggestion(low, high, mean, median, p90, p99, pascanu, autoclip, int(values.size), reason, words)


@dataclass(frozen=True)
class AdaptiveEffect:
    """What adaptive (per row) clipping at one factor would do to one gradient: rows clipped, norm ratio, cosine."""

    factor: float
    clipped: float
    scale: float
    cosine: float
    largest_ratio: float


def adaptive_table(
    gradient_rows: ArrayLike, weight_rows: ArrayLike, factors: Sequence[float] = (0.001, 0.01, 0.1, 1.0)
) -> tuple[AdaptiveEffect, ...]:
    """What adaptive gradient clipping (Brock et al. 2021) would have done, from the norms of rows alone.

    A row is clipped when ``‖g_i‖ > factor · max(‖w_i‖, 1e-3)``. Rows keep their directions, so norm and cosine of the
    whole follow exactly from the row norms.

    Parameters
    ----------
    gradient_rows, weight_rows : array_like, shape (R,)
        2-norm of each row (output unit) of the gradients and of the weights.
    factors : sequence of float

    Examples
    --------
    >>> from gradscope.diagnostics import adaptive_table
    >>> (effect,) = adaptive_table([0.001, 1.0], [1.0, 1.0], factors=[0.1])
    >>> effect.clipped, round(effect.scale, 2)
    (0.5, 0.1)
    """
    g, w = (np.asarray(a, dtype=np.float64).ravel() for a in (gradient_rows, weight_rows))
    if g.shape != w.shape:
        raise SettingError(f"one weight norm per gradient norm: got {g.size} gradient rows and {w.size} weight rows.")
    allowed = np.maximum(w, AGC_EPSILON)
    effects = []
    for factor in factors:
        limit = factor * allowed
        clipped = g > limit
        scale = np.where(clipped, limit / np.where(g > 0, g, 1.0), 1.0)
        before, after = float(np.sqrt(np.sum(g**2))), float(np.sqrt(np.sum((scale * g) ** 2)))
        moved = before > 0 and after > 0 and np.isfinite(before)
        effects.append(
            AdaptiveEffect(
                factor=float(factor),
                clipped=float(clipped.mean()) if g.size else float("nan"),
                scale=after / before if moved else float("nan"),
                cosine=float(np.sum(scale * g**2) / (before * after)) if moved else float("nan"),
                largest_ratio=float((g / allowed).max()) if g.size else float("nan"),
            )
        )
    return tuple(effects)
