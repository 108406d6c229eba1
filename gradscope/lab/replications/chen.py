"""Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019: mean-field theory of the Jacobian's singular values.

The theory's numbers stand beside the singular values of ∂s_T/∂s_{T−l} that :func:`gradscope.spectrum` measures. A rate
is half the growth of the mean squared singular value, in decades per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.capture import spectrum
from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications.mean_field import chi, growth_anew, square_kept
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
#: Variance of PyTorch's default weights, uniform in ±1/√N, times N; its gates are half open.
_DEFAULT_SIGMA = 3**-0.5


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


def drawn_anew(kind: Any, size: Size, seed: int) -> np.ndarray:
    """The same where torch's weights are drawn anew at every step, as the theory takes them, by autograd."""
    state = torch.zeros((2 if kind is nn.LSTMCell else 1) * size.units, dtype=torch.float64)
    product = torch.eye(len(state), dtype=torch.float64)
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for lag in range(1, max(size.lags) + 1):
            step = _joint_step(kind(1, size.units).double())
            product = torch.autograd.functional.jacobian(step, state, vectorize=True) @ product
            state = step(state).detach()
            if lag in size.lags:
                found.append(2 * torch.linalg.svdvals(product).log())
    return torch.stack(found).numpy()


def _joint_step(cell: Any) -> Callable[[Tensor], Tensor]:
    """One step of a cell without input, from joint state to joint state: h, or h beside c."""
    silence = torch.zeros(1, dtype=torch.float64)

    def step(state: Tensor) -> Tensor:
        if isinstance(cell, nn.GRUCell):
            return torch.as_tensor(cell(silence, state))
        return torch.cat(cell(silence, state.chunk(2)))

    return step


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
        for name, kind, cell in (("LSTM", nn.LSTM, nn.LSTMCell), ("GRU", nn.GRU, nn.GRUCell)):
            add(name, rate(gated(kind, size, seed), size.lags))
            add(f"{name} anew", rate(drawn_anew(cell, size, seed), size.lags))
    return found


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the papers."""
    size = QUICK if quick else Size()
    theory = {name: np.log10(chi(sigma, DRIVE)) / 2 for sigma, name in SIGMAS.items()}
    anew = np.log10(growth_anew(_DEFAULT_SIGMA)) / 2
    # An LSTM's joint state passes W once on its way in, whatever the lag.
    kept = {"LSTM": _kept(size.lags, 1), "GRU": _kept(size.lags, 0)}
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
            "The same reckoning, from the second moment of the one-step Jacobian, tells the rate of LSTM and GRU: "
            "squares add up where the weights are drawn anew at every step (Gilboa 2019).",
            tuple(_near(f"{name} anew", anew, f"for the {name} as PyTorch initialises it, weights drawn anew")
                  for name in kept),
        ),
        Statement(
            "Weights that are the same at every step add up themselves wherever a gate lets the state past them: the "
            "rate is that of Σ C(l, k)² ½^(2(l−k)) (σ_w/4)^(2k) over the measured lags (our own reckoning).",
            tuple(_near(name, theory, f"for the {name} as PyTorch initialises it") for name, theory in kept.items()),
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
            "open; not its critical initialisation; a layer keeps its weights from step to step, the theory draws them "
            "anew: both are measured",
        ),
    )


_SPREAD = "variance of the squared singular values over their squared mean, at the longest lag"


def _kept(lags: tuple[int, ...], passed: int) -> float:
    """Half the growth of the mean squared singular value over the lags, ``passed`` of which grow by no power of W."""
    squares = [square_kept(lag - passed, _DEFAULT_SIGMA) for lag in lags]
    return rate(np.log(squares)[:, None], lags)


def _near(key: str, theory: float, where: str) -> Asked:
    reads = f"{{}}; theory {theory:.3f}"
    return _asked(key, "decades per step", theory - _TOLERANCE, theory + _TOLERANCE, reads, where)


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str) -> Asked:
    return Asked(where, what, lambda found: found[key], low, high, reads=reads, at=(where,))
