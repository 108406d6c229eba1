"""Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019: mean-field theory of the Jacobian's singular values.

The theory's numbers stand beside the singular values of ∂s_T/∂s_{T−l} that :func:`gradscope.spectrum` measures. A rate
is half the growth of the mean squared singular value, in decades per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.capture import spectrum
from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications.mean_field import chi
from gradscope.lab.replications.telling import Replication


@dataclass(frozen=True)
class Size:
    """Units, steps, the lags a rate is fitted over, and networks."""

    units: int = 200
    steps: int = 60
    lags: tuple[int, ...] = (4, 8, 12, 16, 20)
    seeds: int = 5


QUICK = Size(units=32, steps=30, lags=(4, 8, 12), seeds=2)
#: σ_w from deep in the vanishing phase to chaos; 1/√3 is PyTorch's default, uniform in ±1/√N.
SIGMAS = {0.5: "0.5", 3**-0.5: "0.577 (PyTorch's default)", 1.0: "1", 1.5: "1.5", 2.5: "2.5"}
#: Variance that the inputs add to the pre-activations.
DRIVE = 0.05
_SMALL_DRIVE = 1e-8
_TOLERANCE = 0.02
#: Every gate half open, as PyTorch's default leaves it: c and h retain one half, and W comes in a quarter.
_HALF, _QUARTER = 0.5, 0.25 * 3**-0.5


def squared_singular_values(layer: nn.Module, inputs: Tensor, lags: tuple[int, ...]) -> np.ndarray:
    """Natural logarithm of the squared singular values ``(L, S)`` of one sequence."""
    found = spectrum(layer, inputs, lags=lags, exponents=0, samples=1)
    return 2 * found.log_singular_values[:, 0]


def rate(log_squared: np.ndarray, lags: tuple[int, ...]) -> float:
    """Half the growth of the mean squared singular value, decades per step."""
    top = log_squared.max(-1, keepdims=True)
    mean = top[:, 0] + np.log(np.exp(log_squared - top).mean(-1))
    return float(np.polyfit(lags, mean, 1)[0] / 2 / np.log(10))


def vanilla(sigma: float, size: Size, seed: int, *, drive: float = DRIVE, orthogonal: bool = False) -> np.ndarray:
    """Squared singular values of a tanh layer with recurrent weights of variance σ² / N, or σ times orthogonal."""
    n, generator = size.units, torch.Generator().manual_seed(seed)
    layer: Any = nn.RNN(n, n, bias=False).double()  # its weights are made by name
    with torch.no_grad():
        w = torch.randn(n, n, generator=generator, dtype=torch.float64)
        layer.weight_hh_l0.copy_(sigma * torch.linalg.qr(w)[0] if orthogonal else sigma * w / n**0.5)
        layer.weight_ih_l0.copy_(torch.eye(n))
    inputs = torch.randn(size.steps, 1, n, generator=generator, dtype=torch.float64) * drive**0.5
    return squared_singular_values(layer, inputs, size.lags)


def gated(kind: Any, size: Size, seed: int) -> np.ndarray:
    """Squared singular values of torch's LSTM or GRU as initialised, with inputs next to nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = kind(size.units, size.units).double()
    inputs = torch.zeros(size.steps, 1, size.units, dtype=torch.float64)
    return squared_singular_values(layer, inputs, size.lags)


def spread(log_squared: np.ndarray) -> float:
    """Variance of the squared singular values over their squared mean, at the longest lag; 0 is an isometry."""
    values = np.exp(log_squared[-1] - log_squared[-1].max())
    return float(values.var() / values.mean() ** 2)


def measure(size: Size) -> dict[str, list[float]]:
    """One value per network of everything that is asked."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for seed in range(size.seeds):
        for sigma, name in SIGMAS.items():
            add(name, rate(vanilla(sigma, size, seed), size.lags))
        for orthogonal in (False, True):
            singular = vanilla(1.0, size, seed, drive=_SMALL_DRIVE, orthogonal=orthogonal)
            add("orthogonal" if orthogonal else "Gaussian", spread(singular))
        for kind in (nn.LSTM, nn.GRU):
            add(kind.__name__, rate(gated(kind, size, seed), size.lags))
    return found


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the papers."""
    size = QUICK if quick else Size()
    theory = {name: np.log10(chi(sigma, DRIVE)) / 2 for sigma, name in SIGMAS.items()}
    anew, kept = np.log10(_HALF**2 + _QUARTER**2) / 2, np.log10(_HALF + _QUARTER)
    statements = (
        Statement(
            "A vanilla RNN's mean squared singular value grows by χ = σ_w² E φ'(u)² a step: below 1 gradients vanish, "
            "above they explode (Chen 2018).",
            tuple(_near(name, theory[name], f"at σ_w = {name}") for name in SIGMAS.values()),
        ),
        Statement(
            "At the critical point (σ_w = 1, small states) an orthogonal matrix gives a dynamical isometry, all "
            "singular values near one size; a Gaussian one does not (Chen 2018).",
            (_asked("orthogonal", _SPREAD, -np.inf, 0.1, "{}", "for an orthogonal matrix"),
             _asked("Gaussian", _SPREAD, 1.0, np.inf, "{}", "for a Gaussian matrix")),
        ),
        Statement(
            "The same reckoning, from the second moment of the one-step Jacobian, tells the rate of LSTM and GRU "
            "(after Gilboa 2019): it adds up squares, as for weights drawn anew at each step.",
            tuple(_near(name, anew, f"for the {name} as PyTorch initialises it") for name in ("LSTM", "GRU")),
        ),
        Statement(
            "Weights that are the same at every step add up themselves: the rate is log10 of one half plus a quarter "
            "of σ_w (our own reckoning, of the spectral radius).",
            tuple(_near(name, kept, f"for the {name} as PyTorch initialises it") for name in ("LSTM", "GRU")),
        ),
    )  # fmt: skip
    measured = measure(size)
    return Replication(
        name="chen",
        paper="Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019, dynamical isometry and mean-field theory",
        claims=tuple(statement.put_to(measured) for statement in statements),
        differs=(
            f"{size.units} units, {size.seeds} networks, lags {size.lags[0]} to {size.lags[-1]}; the theory is of "
            "infinitely many units",
            f"inputs of variance {DRIVE:g} to every unit, none to the gated cells",
            "of Gilboa 2019 the second moment alone, at PyTorch's default initialisation with gates taken as half "
            "open; not its critical initialisation",
        ),
    )


_SPREAD = "variance of the squared singular values over their squared mean, at the longest lag"


def _near(key: str, theory: float, where: str) -> Asked:
    reads = f"{{}}; theory {theory:.3f}"
    return _asked(key, "decades per step", theory - _TOLERANCE, theory + _TOLERANCE, reads, where)


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str) -> Asked:
    return Asked(where, what, lambda found: found[key], low, high, reads=reads, at=(where,))
