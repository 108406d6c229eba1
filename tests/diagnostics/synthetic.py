"""Decay curves with a known slope and noise of every kind that recordings have, to measure what intervals are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

LAGS = np.arange(61)
#: Lags that a fit uses by default of these.
SPAN = 55
#: Every tenth step of a training is recorded.
EVERY = 10


@dataclass(frozen=True)
class Data:
    """log10 norms (S, L), the recorded step of each row, its length, and what the stretch's mean slope is off by.

    The stretch is all steps from the first recorded one to the last; a training that drifts has a mean slope there that
    is not that of the long run.
    """

    logs: np.ndarray
    steps: np.ndarray
    lengths: np.ndarray
    stretch: float = 0.0

    def with_slope(self, slope: float) -> Mapping[str, np.ndarray]:
        """Arguments of fit_decay for this noise about a line."""
        norms = 10.0 ** (self.logs + slope * LAGS)
        norms[self.lengths[:, None] <= LAGS] = np.nan
        return {"norms": norms, "steps": self.steps, "lengths": self.lengths}


def paths(rng: np.random.Generator, n: int, phi: float, size: float) -> np.ndarray:
    """Stationary autoregressions of standard deviation ``size``; random walks with such steps for ``phi`` of 1."""
    shocks = rng.normal(0, 1, (n, LAGS.size))
    if phi == 1:
        return size * np.cumsum(shocks, axis=1)
    path = np.empty_like(shocks)
    path[:, 0] = shocks[:, 0]
    for t in range(1, LAGS.size):
        path[:, t] = phi * path[:, t - 1] + np.sqrt(1 - phi**2) * shocks[:, t]
    return size * path


def memory_of(rng: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """A stationary autoregression of variance 1."""
    values = np.empty(n)
    values[0] = rng.normal()
    for t in range(1, n):
        values[t] = phi * values[t - 1] + np.sqrt(1 - phi**2) * rng.normal()
    return values


def data(
    seed: int,
    *,
    steps: int = 1,
    sequences: int = 8,
    phi: float = 0.95,
    size: float = 0.3,
    between_steps: float = 0.0,
    step_memory: float = 0.0,
    between_sequences: float = 0.0,
    shared: float = 0.0,
    ragged: bool = False,
) -> Data:
    """Noise of ``steps`` recorded steps with ``sequences`` each.

    ``between_*`` are standard deviations of their own slopes; ``step_memory`` is the correlation of the slopes of
    neighbouring recorded steps, as of a training that drifts; ``shared`` is the size of one path that all sequences of
    a step have in common.
    """
    rng = np.random.default_rng(seed)
    n = steps * sequences
    at = np.repeat(np.arange(steps), sequences)
    logs = rng.normal(0, 0.5, (n, 1)) + paths(rng, n, phi, size)
    logs += rng.normal(0, between_sequences, (n, 1)) * LAGS
    drift, stretch = rng.normal(0, between_steps, (steps, 1)), 0.0
    if step_memory:
        every_step = between_steps * memory_of(rng, EVERY * (steps - 1) + 1, step_memory ** (1 / EVERY))
        drift, stretch = every_step[::EVERY, None], float(every_step.mean())
    logs += (drift * LAGS)[at]
    if shared:
        logs += paths(rng, steps, phi, shared)[at]
    lengths = rng.integers(25, LAGS.size + 1, n) if ragged else np.full(n, LAGS.size)
    return Data(logs, EVERY * at, lengths, stretch)


#: Name to what makes a data set from a seed.
KINDS: dict[str, Callable[[int], Data]] = {
    "8 sequences, white noise": lambda seed: data(seed, phi=0.0),
    "8 sequences, AR .95": lambda seed: data(seed),
    "8 sequences, random walk": lambda seed: data(seed, phi=1.0, size=0.1),
    "4 sequences, AR .95": lambda seed: data(seed, sequences=4),
    "32 sequences, AR .95": lambda seed: data(seed, sequences=32),
    "8 sequences with slopes of their own": lambda seed: data(seed, between_sequences=0.01, size=0.1),
    "8 ragged sequences, AR .95": lambda seed: data(seed, ragged=True),
    "6 steps x 16, between-step .01": lambda seed: data(seed, steps=6, sequences=16, between_steps=0.01),
    "3 steps x 16, between-step .01": lambda seed: data(seed, steps=3, sequences=16, between_steps=0.01),
    "2 steps x 16, between-step .01": lambda seed: data(seed, steps=2, sequences=16, between_steps=0.01),
    "20 steps x 8, between-step .01": lambda seed: data(seed, steps=20, sequences=8, between_steps=0.01),
    "6 ragged steps x 16, between-step .01": lambda seed: data(
        seed, steps=6, sequences=16, between_steps=0.01, ragged=True
    ),
    "10 steps x 8, between-step .01": lambda seed: data(seed, steps=10, between_steps=0.01),
    "20 steps x 8 that drift (.5), between-step .01": lambda seed: data(
        seed, steps=20, between_steps=0.01, step_memory=0.5
    ),
    "20 steps x 8 that drift (.9), between-step .01": lambda seed: data(
        seed, steps=20, between_steps=0.01, step_memory=0.9
    ),
    "20 steps x 8 that drift (.9) unseen, between-step .003": lambda seed: data(
        seed, steps=20, between_steps=0.003, step_memory=0.9
    ),
    "12 steps x 8 that drift (.9) unseen, between-step .01": lambda seed: data(
        seed, steps=12, between_steps=0.01, step_memory=0.9
    ),
    "6 steps x 16 that drift (.9) unseen, between-step .01": lambda seed: data(
        seed, steps=6, sequences=16, between_steps=0.01, step_memory=0.9
    ),
    "6 steps x 16, a path shared by each step": lambda seed: data(seed, steps=6, sequences=16, size=0.1, shared=0.3),
    "8 sequences, one shared path": lambda seed: data(seed, size=0.1, shared=0.3),
    "32 sequences, one shared path": lambda seed: data(seed, sequences=32, size=0.1, shared=0.3),
    "8 sequences, half shared": lambda seed: data(seed, size=0.3, shared=0.3),
    "8 sequences, one shared random walk": lambda seed: data(seed, size=0.03, phi=1.0, shared=0.1),
    "8 sequences, shared white noise": lambda seed: data(seed, size=0.1, phi=0.0, shared=0.3),
}
