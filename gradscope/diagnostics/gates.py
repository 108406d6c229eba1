"""How long gates remember, and how many of their units are stuck. Activations only, no gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.diagnostics.clipping import quantiles
from gradscope.errors import SettingError

Floats = NDArray[np.float64]

#: Gates below and above these count as saturated (Karpathy, Johnson and Fei-Fei 2015, section 4.2).
LOW, HIGH = 0.1, 0.9


def timescale(gate: ArrayLike) -> Floats:
    """Steps over which a retaining gate f forgets to 1/e: ``-1 / ln f`` (Tallec and Ollivier 2018).

    Parameters
    ----------
    gate : array_like
        An LSTM's forget gate or a GRU's update gate, between 0 and 1. 0 gives 0, 1 gives infinity.

    Examples
    --------
    >>> from gradscope.diagnostics import timescale
    >>> timescale([0.5, 0.99]).round(1).tolist()
    [1.4, 99.5]
    """
    f = np.asarray(gate, dtype=np.float64)
    if np.any((f < 0) | (f > 1)):
        raise SettingError("a gate lies between 0 and 1: pass activations, not pre-activations.")
    with np.errstate(divide="ignore"):
        return timescale_of_log(np.log(f))


def timescale_of_log(log_gate: ArrayLike) -> Floats:
    """:func:`timescale` from ln f, or from its mean over time: what a product of gates retains is the sum of logs.

    Examples
    --------
    >>> from gradscope.diagnostics import timescale_of_log
    >>> float(timescale_of_log(-0.01))
    100.0
    """
    log = np.asarray(log_gate, dtype=np.float64)
    if np.any(log > 0):
        raise SettingError("the logarithm of a gate is never positive.")
    with np.errstate(divide="ignore"):
        # abs: -1 / -0.0 would be +inf, -1 / 0.0 -inf.
        return np.asarray(1.0 / np.abs(log))


@dataclass(frozen=True)
class TimescaleSummary:
    """Distribution of timescales over units: quantiles at 5, 25, 50, 75, 95 %, and the share longer than a length."""

    units: int
    quantiles: tuple[float, ...]
    length: float
    share_longer: float


def summarise_timescales(timescales: ArrayLike, length: float) -> TimescaleSummary:
    """How many units retain longer than ``length`` steps. Infinite timescales count as longer.

    Examples
    --------
    >>> from gradscope.diagnostics import summarise_timescales
    >>> summarise_timescales([2.0, 5.0, 300.0, float("inf")], length=100).share_longer
    0.5
    """
    tau = np.asarray(timescales, dtype=np.float64).ravel()
    tau = tau[~np.isnan(tau)]
    share = float(np.mean(tau > length)) if tau.size else float("nan")
    # A quantile between finite and infinite timescales is not a number; the largest finite stands in for infinity.
    finite = tau[np.isfinite(tau)]
    capped = np.minimum(tau, finite.max()) if finite.size else finite
    return TimescaleSummary(int(tau.size), quantiles(capped), float(length), share)


@dataclass(frozen=True, eq=False)
class Saturation:
    """Shares of activations below ``low`` and above ``high``, per gate."""

    low: float
    high: float
    share_low: Floats
    share_high: Floats


def saturation(gates: ArrayLike, low: float = LOW, high: float = HIGH) -> Saturation:
    """Saturated share of each gate.

    Parameters
    ----------
    gates : array_like, shape (G, ...)
        Activations per gate; NaN is padding.
    low, high : float
        For a tanh candidate pass -0.9 and 0.9.

    Examples
    --------
    >>> from gradscope.diagnostics import saturation
    >>> found = saturation([[0.02, 0.5, 0.95, 0.97]])
    >>> found.share_low.tolist(), found.share_high.tolist()
    ([0.25], [0.5])
    """
    if not low < high:
        raise SettingError(f"low must be below high, got {low} and {high}.")
    table = np.asarray(gates, dtype=np.float64)
    table = table.reshape(table.shape[0], -1)
    present = ~np.isnan(table)
    count = present.sum(1)
    with np.errstate(invalid="ignore"):
        below, above = (present & (table < low)).sum(1) / count, (present & (table > high)).sum(1) / count
    return Saturation(low, high, below, above)
