"""Gradient noise scale: the batch size at which noise and signal of a gradient are equal (McCandlish et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.diagnostics.bootstrap import resample_counts
from gradscope.errors import SettingError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale ``tr(Σ) / |G|²``, in sequences.

    Attributes
    ----------
    scale : float or None
        None where the estimate of ``|G|²`` is not positive; ``reason`` says so.
    interval : tuple of float or None
        Bootstrap interval over steps; its upper end is infinite where some resamples see no signal.
    signal, noise : float
        Unbiased estimates of ``|G|²`` and ``tr(Σ)``. A single step may give a negative one.
    n_steps : int
    reason : str
    """

    scale: float | None
    interval: tuple[float, float] | None
    signal: float
    noise: float
    n_steps: int
    reason: str


def noise_scale(
    small_norms: ArrayLike,
    big_norms: ArrayLike,
    small_batch: float,
    big_batch: float,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> NoiseScale:
    """Simple noise scale from gradient norms at two batch sizes (McCandlish et al. 2018, appendix A.1).

    ``E|G_B|² = |G|² + tr(Σ)/B``, so two batch sizes give both unknowns. Signal and noise are averaged over steps
    before their ratio is taken: the ratio of a single step is badly biased.

    Parameters
    ----------
    small_norms : array_like, shape (N,) or (N, M)
        Norms of the mean gradients of batches of ``small_batch``; M of them in a step (micro-batches) are averaged
        in square.
    big_norms : array_like, shape (N,)
        Norm of the mean gradient of ``big_batch`` at the same steps.
    small_batch, big_batch : float

    Raises
    ------
    SettingError
        Batch sizes in the wrong order, or arrays that do not fit together.

    Examples
    --------
    >>> from gradscope.diagnostics import noise_scale
    >>> round(noise_scale([2.0] * 20, [1.5] * 20, small_batch=8, big_batch=64).scale, 2)
    8.0
    """
    if not 0 < small_batch < big_batch:
        raise SettingError(f"batch sizes must satisfy 0 < small < big, got {small_batch} and {big_batch}.")
    small, big = np.asarray(small_norms, dtype=np.float64), np.asarray(big_norms, dtype=np.float64)
    if small.ndim not in (1, 2) or big.shape != small.shape[:1]:
        raise SettingError(f"one big-batch norm per step: got small {small.shape} and big {big.shape}.")
    small_square = small**2 if small.ndim == 1 else np.mean(small**2, axis=1)
    finite = np.isfinite(small_square) & np.isfinite(big)
    small_square, big_square = small_square[finite], big[finite] ** 2
    signal = (big_batch * big_square - small_batch * small_square) / (big_batch - small_batch)
    noise = (small_square - big_square) / (1 / small_batch - 1 / big_batch)
    return _ratio(signal, noise, confidence, resamples, seed)


def _ratio(signal: Floats, noise: Floats, confidence: float, resamples: int, seed: int) -> NoiseScale:
    n = signal.size
    if n == 0:
        return NoiseScale(None, None, float("nan"), float("nan"), 0, "no step with finite norms at both batch sizes")
    g, s = float(signal.mean()), float(noise.mean())
    if g <= 0:
        return NoiseScale(
            None, None, g, s, n, "the signal is lost in the noise: more steps or larger batches are needed"
        )
    interval = None
    if n > 1:
        counts = resample_counts(n, resamples, seed)
        drawn_signal, drawn_noise = counts @ signal, counts @ noise
        lost = np.where(drawn_noise > 0, np.inf, np.nan)
        ratios = np.divide(drawn_noise, drawn_signal, out=lost, where=drawn_signal > 0)
        tail = (1 - confidence) / 2
        # Order statistics, not interpolation: between a number and infinity there is nothing.
        low, high = np.nanquantile(ratios, [tail, 1 - tail], method="inverted_cdf")
        interval = (float(low), float(high))
    return NoiseScale(s / g, interval, g, s, n, "" if s >= 0 else "the estimated noise is negative: too few steps")
