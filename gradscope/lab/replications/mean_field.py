"""Mean-field theory of wide random networks, at their fixed point, by integrals over a Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Evenly spaced: a saturated tanh is too steep for 121 nodes of Gauss and Hermite (.584 for an exponent of .532).
_NODES = np.linspace(-10.0, 10.0, 8001)
_WEIGHTS = np.exp(-(_NODES**2) / 2)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_ROUNDS = 10_000


def gaussian_mean(function: Callable[[Floats], Floats], variance: float, mean: float = 0.0) -> float:
    """E function(u), u ~ N(mean, variance)."""
    return float(_WEIGHTS @ function(mean + variance**0.5 * _NODES))


def fixed_point(sigma_w: float, drive: float = 0.0) -> float:
    """Variance q* of the pre-activations of h ← tanh(W h + input): q = σ_w² E tanh²(u) + drive (Chen 2018, eq. 5).

    Parameters
    ----------
    sigma_w : float
        Standard deviation of a recurrent weight times √N.
    drive : float
        Variance that inputs and biases add.
    """
    q = sigma_w**2 + drive
    for _ in range(_ROUNDS):
        new = sigma_w**2 * gaussian_mean(lambda u: np.tanh(u) ** 2, q) + drive
        if abs(new - q) < 1e-14:
            break
        q = new
    return q


def chi(sigma_w: float, drive: float = 0.0) -> float:
    """Mean squared singular value of the one-step Jacobian, χ = σ_w² E tanh'(u)² at the fixed point (Chen 2018)."""
    q = fixed_point(sigma_w, drive)
    return sigma_w**2 * gaussian_mean(lambda u: (1 - np.tanh(u) ** 2) ** 2, q)


def largest_exponent(g: float) -> float:
    """Largest Lyapunov exponent of h ← tanh(W h), ½ ln χ (Molgedey et al. 1992)."""
    return 0.5 * float(np.log(chi(g)))


#: Every gate half open: the state keeps one half of itself, and W h comes in through a quarter.
HALF, QUARTER = 0.5, 0.25


def growth_anew(sigma_w: float) -> float:
    """Growth a step of a half-open LSTM's or GRU's mean squared singular value, weights drawn anew at every step.

    ∂s_{t+1}/∂s_t = ½ + ¼ W: what W brings is independent of what is there, so that squares add up (Gilboa 2019).
    """
    return HALF**2 + (QUARTER * sigma_w) ** 2


def square_kept(lag: int, sigma_w: float) -> float:
    """Mean squared singular value of (½ + ¼ W)^lag, the same W at every step.

    The ways in which W is passed k times are one and the same matrix power and add up themselves, not their squares;
    different powers of a wide Gaussian W are uncorrelated: Σ_k C(lag, k)² ½^(2 (lag − k)) (¼ σ_w)^(2 k). Its growth
    tends to (½ + ¼ σ_w)², the spectral radius squared. Without the ½ the two definitions are the same.
    """
    return sum((comb(lag, k) * HALF ** (lag - k) * (QUARTER * sigma_w) ** k) ** 2 for k in range(lag + 1))
