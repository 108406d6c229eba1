"""Lyapunov exponents from given Jacobians: mean log growth of nearby states, sorted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.errors import SettingError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """Exponents in natural log per step, largest first.

    Attributes
    ----------
    exponents : ndarray, shape (k,)
        ``-inf`` for a direction that the map destroys.
    growth : ndarray, shape (N, k)
        ln of the diagonal of R at every step after the warm-up, in the order of the directions.
    warmup : int
        Steps discarded before.
    """

    exponents: Floats
    growth: Floats
    warmup: int

    @property
    def dimension(self) -> float:
        """Kaplan–Yorke dimension; 0 where the largest exponent is negative, k where their sum is not."""
        sums = np.cumsum(self.exponents)
        stable = np.flatnonzero(sums < 0)
        if not stable.size:
            return float(self.exponents.size)
        j = int(stable[0])
        return 0.0 if j == 0 else float(j + sums[j - 1] / abs(self.exponents[j]))


def lyapunov_exponents(
    jacobians: Iterable[Floats] | Floats, k: int | None = None, *, warmup: int = 0, seed: int = 0
) -> LyapunovSpectrum:
    """Lyapunov spectrum by repeated QR (Benettin et al. 1980; Vogt et al. 2020; Engelken et al. 2023).

    Parameters
    ----------
    jacobians : iterable of ndarray, shape (S, S)
        ∂s_{t+1}/∂s_t of the *joint* state in time order; (h, c) for an LSTM. Taken with h alone, an LSTM's Jacobian
        misses what the cell carries.
    k : int, optional
        How many exponents, largest first; all by default.
    warmup : int
        First steps, in which the directions align, to leave out.
    seed : int
        Of the random orthogonal start.

    Raises
    ------
    SettingError
        Not square, no step after the warm-up, or ``k`` out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from gradscope.diagnostics import lyapunov_exponents
    >>> found = lyapunov_exponents([np.diag([2.0, 0.5])] * 50, warmup=20)
    >>> found.exponents.round(3).tolist()  # ln 2 and ln .5
    [0.693, -0.693]
    """
    q: Floats | None = None
    growth = []
    for step, jacobian in enumerate(jacobians):
        j = np.asarray(jacobian, dtype=np.float64)
        if q is None:
            q = _start(j, k, seed)
        q, r = np.linalg.qr(j @ q)
        if step >= warmup:
            growth.append(np.abs(np.diag(r)))
    if not growth:
        raise SettingError(f"no Jacobian after a warm-up of {warmup} steps.")
    with np.errstate(divide="ignore"):
        logs = np.log(np.stack(growth))
    return LyapunovSpectrum(np.sort(logs.mean(axis=0))[::-1], logs, warmup)


def _start(jacobian: Floats, k: int | None, seed: int) -> Floats:
    if jacobian.ndim != 2 or jacobian.shape[0] != jacobian.shape[1]:
        raise SettingError(f"Jacobians must be square, got {jacobian.shape}.")
    size = jacobian.shape[0]
    k = size if k is None else k
    if not 1 <= k <= size:
        raise SettingError(f"k must lie between 1 and the state size {size}, got {k}.")
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, k)))[0]
