"""Saxe, McClelland & Ganguli 2014: learning time of deep linear networks by depth, orthogonal against Gaussian.

A linear network's gradients depend on the data through two matrices only, Σ_xx and Σ_yx, so full-batch gradient descent
on all digits costs a few products of small matrices a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications.telling import Replication
from gradscope.lab.zoo.data import load_digits


@dataclass(frozen=True)
class Size:
    """The two depths (hidden layers), most steps of a training, learning rates, and networks."""

    depths: tuple[int, int] = (8, 32)
    steps: int = 400
    rates: tuple[float, ...] = tuple(float(rate) for rate in np.geomspace(1e-3, 0.6, 9))
    seeds: int = 10


QUICK = Size(depths=(2, 4), steps=40, rates=(0.01, 0.1, 0.3), seeds=2)
#: Learnt: nine tenths of what the best linear map explains of the labels.
LEARNT = 0.9
INITS = ("orthogonal", "Gaussian")


@dataclass(frozen=True, eq=False)
class Digits:
    """Second moments of the digits, inputs whitened, and of their labels (one-hot, less their mean)."""

    inputs: Tensor
    labels: Tensor
    total: float
    explained: float


def digits() -> Digits:
    """Moments of all 1,797 digits."""
    images, numbers = load_digits()
    x = torch.from_numpy(images.reshape(len(images), -1)).double()
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-3 * values[-1]  # some pixels of the frame are never drawn on
    x = x @ vectors[:, kept] / values[kept].sqrt()
    y = torch.nn.functional.one_hot(torch.from_numpy(numbers)).double()
    y = y - y.mean(0)
    both = y.T @ x / len(x)
    # Whitened inputs: the best linear map is Σ_yx itself.
    return Digits(x.T @ x / len(x), both, float((y**2).sum(1).mean()), float((both**2).sum()))


def layers(init: str, depth: int, width: int, outputs: int, seed: int) -> list[Tensor]:
    """Square hidden layers and a readout; Gaussian ones keep the norm of a vector on average."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows in (*[width] * depth, outputs):
        w = torch.randn(rows, width, generator=generator, dtype=torch.float64)
        found.append(torch.linalg.qr(w.T)[0].T.contiguous() if init == "orthogonal" else w / width**0.5)
    return found


def steps_to_learn(weights: list[Tensor], data: Digits, rate: float, most: int) -> float:
    """Full-batch gradient steps until it is learnt; ``most`` where it is not by then, or training diverges."""
    goal = data.total - LEARNT * data.explained
    weights = [w.clone() for w in weights]
    for step in range(most):
        below = [torch.eye(weights[0].shape[1], dtype=torch.float64)]
        for w in weights:
            below.append(w @ below[-1])
        whole = below[-1]
        loss = data.total + float(((whole @ data.inputs) * whole).sum() - 2 * (whole * data.labels).sum())
        if loss <= goal:
            return float(step)
        if not np.isfinite(loss) or loss > 1e3 * data.total:
            break
        error = 2 * (whole @ data.inputs - data.labels)
        for i in reversed(range(len(weights))):
            gradient, error = error @ below[i].T, weights[i].T @ error
            weights[i] = weights[i] - rate * gradient
    return float(most)


def learning_time(init: str, depth: int, data: Digits, size: Size, seed: int) -> float:
    """The fewest steps over the learning rates, as the paper chooses them."""
    width, outputs = data.inputs.shape[0], data.labels.shape[0]
    drawn = layers(init, depth, width, outputs, seed)
    best = float(size.steps)
    for rate in size.rates:
        best = min(best, steps_to_learn(drawn, data, rate, int(best)))
    return best


def conditioning(init: str, depth: int, width: int, seed: int) -> float:
    """Share of the singular values of the product of all hidden layers above a hundredth of the largest."""
    product = torch.linalg.multi_dot(layers(init, depth, width, 1, seed)[:-1])
    values = torch.linalg.svdvals(product)
    return float((values > 0.01 * values[0]).double().mean())


def measure(size: Size) -> dict[str, list[float]]:
    """One value per network of everything that is asked."""
    data, found = digits(), {}
    for init in INITS:
        shallow, deep = size.depths[0], size.depths[-1]
        times = [[learning_time(init, depth, data, size, seed) for depth in (shallow, deep)]
                 for seed in range(size.seeds)]  # fmt: skip
        found[init] = [later / max(first, 1.0) for first, later in times]
        width = data.inputs.shape[0]
        found[f"{init} values"] = [conditioning(init, deep, width, seed) for seed in range(size.seeds)]
    return found


def replicate(*, quick: bool = False) -> Replication:
    """Measure, and compare with the paper."""
    size = QUICK if quick else Size()
    shallow, deep = size.depths[0], size.depths[-1]
    what = f"steps to learn with {deep} hidden layers over those with {shallow}"
    values = f"share of the singular values of {deep} layers' product above a hundredth of the largest"
    statements = (
        Statement(
            "With orthogonal initial weights the learning time does not depend on the depth (to within a factor of 2).",
            (_asked("orthogonal", what, 0.5, 2.0, "{} times as many steps"),),
        ),
        Statement(
            "With Gaussian initial weights, scaled to keep a vector's norm, it grows with the depth.",
            (_asked("Gaussian", what, 2.0, np.inf, "{} times as many steps"),),
        ),
        Statement(
            "A product of orthogonal matrices keeps every direction; one of Gaussian matrices keeps only few.",
            (_asked("orthogonal values", values, 0.99, np.inf, "{} of the directions", "orthogonal"),
             _asked("Gaussian values", values, -np.inf, 0.5, "{} of the directions", "Gaussian")),
        ),
    )  # fmt: skip
    measured = measure(size)
    return Replication(
        name="saxe",
        paper="Saxe, McClelland & Ganguli 2014, Exact solutions to the nonlinear dynamics of learning in deep linear "
        "neural networks",
        claims=tuple(statement.put_to(measured) for statement in statements),
        differs=(
            "1,797 digits of 8×8 pixels, whitened, not MNIST; full-batch gradient descent",
            f"{size.seeds} networks, {shallow} to {deep} hidden layers, the best of {len(size.rates)} learning rates, "
            f"at most {size.steps} steps (a network that has not learnt by then counts with them)",
            f"learnt means {LEARNT:.0%} of what the best linear map explains",
        ),
    )


def _asked(key: str, what: str, low: float, high: float, reads: str, where: str = "") -> Asked:
    log = key in INITS
    return Asked(where, what, lambda found: found[key], low, high, log=log, reads=reads, at=(where,))
