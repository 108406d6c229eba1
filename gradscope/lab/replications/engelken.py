"""Engelken, Wolf & Abbott 2023: the onset of chaos in random networks, and the dimension of their attractor.

Two networks, one of steps, h ← tanh(W h), a recurrent layer of torch measured by :func:`gradscope.spectrum`, and
one in time, the paper's rate network, τ dh/dt = −h + W tanh(h), by Euler's method. W is Gaussian with variance g² / N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gradscope.capture import spectrum
from gradscope.diagnostics.lyapunov import LyapunovSpectrum, lyapunov_exponents
from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications.mean_field import largest_exponent
from gradscope.lab.replications.telling import Replication

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """Units of the network of steps, its steps; units of the rate network, its time constants; and how many of each."""

    units: int = 400
    steps: int = 1500
    warmup: int = 500
    rate_units: int = 150
    times: float = 80.0
    warmup_times: float = 20.0
    seeds: int = 5


QUICK = Size(units=24, steps=120, warmup=40, rate_units=20, times=8.0, warmup_times=2.0, seeds=2)
#: Couplings around the onset; a network of finitely many units may first settle into a cycle beyond it.
NEAR = (0.8, 0.9, 1.1, 1.2, 1.35, 1.5)
STRONG = (1.5, 2.0, 5.0)
#: Couplings of the rate network, from its onset to far beyond.
RATE = (1.5, 10.0, 50.0)
#: In time constants; smaller where strong coupling makes the units switch faster.
TIME_STEP, _FASTER_FROM = 0.1, 5.0
#: Share of the exponents that is measured: the dimension is far below it.
_SHARE = 4


def layer_exponents(g: float, size: Size, seed: int, k: int) -> Floats:
    """The ``k`` largest exponents of h ← tanh(W h), natural log per step."""
    layer: Any = nn.RNN(1, size.units, bias=False).double()  # its weights are made by name
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        draw = torch.randn(size.units, size.units, generator=generator, dtype=torch.float64)
        layer.weight_hh_l0.copy_(draw * g / size.units**0.5)
    start = torch.randn(1, 1, size.units, generator=generator, dtype=torch.float64)
    silence = torch.zeros(size.steps, 1, 1, dtype=torch.float64)
    found = spectrum(layer, lambda: layer(silence, start), lags=[0], exponents=k, warmup=size.warmup)
    return found.exponents


def rate_spectrum(g: float, units: int, size: Size, seed: int) -> LyapunovSpectrum:
    """The largest quarter of the rate network's exponents, per step of Euler's method."""
    rng = np.random.default_rng(seed)
    dt = TIME_STEP * min(1.0, _FASTER_FROM / g)
    w, h = rng.normal(size=(units, units)) * g / units**0.5, rng.normal(size=units)

    def jacobians() -> Iterator[Floats]:
        state = h
        for _ in range(round(size.times / dt)):
            activity = np.tanh(state)
            yield (1 - dt) * np.eye(units) + dt * w * (1 - activity**2)
            state = (1 - dt) * state + dt * w @ activity

    return lyapunov_exponents(jacobians(), units // _SHARE, warmup=round(size.warmup_times / dt), seed=seed)


def crossing(couplings: tuple[float, ...], exponents: Floats) -> float:
    """The coupling at which the largest exponent crosses zero, between measured ones; NaN where it does not."""
    above = np.flatnonzero(exponents > 0)
    if not above.size or above[0] == 0:
        return float("nan")
    i = int(above[0])
    low, high = exponents[i - 1], exponents[i]
    return float(couplings[i - 1] - low * (couplings[i] - couplings[i - 1]) / (high - low))


def extrapolated(couplings: tuple[float, ...], exponents: Floats) -> float:
    """Where the largest exponent reaches zero by the two lowest couplings, on a line over ln g."""
    first, second = np.log(couplings[:2])
    slope = (exponents[1] - exponents[0]) / (second - first)
    return float(np.exp(second - exponents[1] / slope))


def measure(size: Size) -> dict[str, list[float]]:
    """One value per seed of everything that is asked."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(float(value))

    for seed in range(size.seeds):
        near = np.array([layer_exponents(g, size, seed, 1)[0] for g in NEAR])
        add("from below", extrapolated(NEAR, near))
        add("crossing", crossing(NEAR, near))
        for g in STRONG:
            add(f"largest {g:g}", layer_exponents(g, size, seed, 1)[0])
        share = [rate_spectrum(g, size.rate_units, size, seed).dimension / size.rate_units for g in RATE]
        twice = rate_spectrum(RATE[1], 2 * size.rate_units, size, seed).dimension / (2 * size.rate_units)
        add("extensive", twice / share[1] if share[1] else float("nan"))
        add("largest share", max(share))
        add("rises", share[1] - share[0])
        add("falls", share[2] - share[1])
    return found


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the paper."""
    size = QUICK if quick else Size()
    exact = {g: largest_exponent(g) for g in STRONG}
    statements = (
        Statement(
            "The largest Lyapunov exponent crosses zero at a coupling of g = 1.",
            (_asked("from below", f"where a line through g = {NEAR[0]:g} and {NEAR[1]:g} reaches zero", 0.9, 1.1,
                    "at g = {}", "from below"),
             _asked("crossing", "where it becomes positive", 0.9, 1.1, "at g = {}", "from above")),
        ),
        Statement(
            "Beyond the onset it is that of the mean-field theory (to within .03 a step, in the network of steps).",
            tuple(
                _asked(f"largest {g:g}", "the largest exponent, per step", exact[g] - 0.03, exact[g] + 0.03,
                       f"{{}}; theory {exact[g]:.3f}", f"at g = {g:g}") for g in STRONG
            ),
        ),
        Statement(
            "Chaos is extensive: twice the units have twice the attractor's dimension.",
            (_asked("extensive", "dimension per unit of twice the units, over that of the units", 0.8, 1.25,
                    "{} times the dimension per unit"),),
        ),
        Statement(
            "The attractor's dimension is much smaller than the number of units (below a quarter).",
            (_asked("largest share", "largest dimension over units", 0.0, 0.25, "{} of the units at most"),),
        ),
        Statement(
            "The dimension grows with the coupling near the onset and shrinks far from it.",
            (_asked("rises", f"change of the dimension per unit from g = {RATE[0]:g} to {RATE[1]:g}", 0.0, np.inf, "{}",
                    "near the onset"),
             _asked("falls", f"change of the dimension per unit from g = {RATE[1]:g} to {RATE[2]:g}", -np.inf, 0.0,
                    "{}", "far from the onset")),
        ),
    )  # fmt: skip
    measured = measure(size)
    return Replication(
        name="engelken",
        paper="Engelken, Wolf & Abbott 2023, Lyapunov spectra of chaotic recurrent neural networks",
        claims=tuple(statement.put_to(measured) for statement in statements),
        differs=(
            f"{size.seeds} networks of {size.units} units in steps, and of {size.rate_units} and {2 * size.rate_units} "
            "units in time, smaller than in the paper",
            f"Euler's method in steps of {TIME_STEP:g} time constants and less, over "
            f"{size.times - size.warmup_times:g} of them; the largest quarter of the exponents",
        ),
    )


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str = "") -> Asked:
    return Asked(where, what, lambda found: found[key], low, high, reads=reads, at=(where,))
