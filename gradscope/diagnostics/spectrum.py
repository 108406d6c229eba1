"""Singular values of a recurrence's Jacobians, summarised: bands, condition number, isometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpectrumBand:
    """Singular values of ∂s_T/∂s_t against lag.

    Attributes
    ----------
    levels : tuple of float
    quantiles : ndarray, shape (L, len(levels))
        Over the singular values of one lag.
    largest, smallest, geometric_mean, condition : ndarray, shape (L,)
        The condition number is infinite where a singular value is zero, and NaN where all are.
    effective_rank : ndarray, shape (L,)
        ``(Σ σ²)² / Σ σ⁴``: how many directions carry the gradient (participation ratio).
    """

    levels: tuple[float, ...]
    quantiles: Floats
    largest: Floats
    smallest: Floats
    geometric_mean: Floats
    condition: Floats
    effective_rank: Floats


def spectrum_band(singular_values: ArrayLike, levels: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> SpectrumBand:
    """Summarise singular values per lag (Pennington et al. 2017; Chen, Pennington and Schoenholz 2018).

    Parameters
    ----------
    singular_values : array_like, shape (L, S) or (L, ..., S)
        Any order; axes between (sequences) are pooled, except that condition numbers, extremes and ranks are medians
        over them.
    levels : sequence of float

    Examples
    --------
    >>> from gradscope.diagnostics import spectrum_band
    >>> band = spectrum_band([[1.0, 1.0], [1.0, 0.01]])
    >>> band.condition.tolist(), band.effective_rank.round(1).tolist()
    ([1.0, 100.0], [2.0, 1.0])
    """
    sigma = np.asarray(singular_values, dtype=np.float64)
    sigma = sigma.reshape(sigma.shape[0], -1, sigma.shape[-1])
    largest, smallest = sigma.max(-1), sigma.min(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = largest / smallest
        geometric = np.exp(np.mean(np.log(sigma), axis=-1))
        relative = (sigma / largest[..., None]) ** 2  # squares of a vanished spectrum would underflow
        rank = relative.sum(-1) ** 2 / (relative**2).sum(-1)
    return SpectrumBand(
        levels=tuple(levels),
        quantiles=np.quantile(sigma.reshape(sigma.shape[0], -1), levels, axis=1).T,
        largest=np.median(largest, axis=1),
        smallest=np.median(smallest, axis=1),
        geometric_mean=np.median(geometric, axis=1),
        condition=np.median(condition, axis=1),
        effective_rank=np.median(rank, axis=1),
    )
