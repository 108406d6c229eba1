"""What replications measure on the adding problem: how much gradient arrives before training, and what is learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradscope.capture import snapshot
from gradscope.lab.zoo.models import build_model
from gradscope.lab.zoo.tasks import adding
from gradscope.lab.zoo.train import TrainSettings, train

BATCH = 32


@dataclass(frozen=True)
class Size:
    """Lengths that are learnt, lengths looked at before training only, units, optimizer steps and networks."""

    lengths: tuple[int, ...]
    looked_at: tuple[int, ...]
    units: int
    steps: int
    seeds: int


def reach(model_name: str, length: int, units: int, seed: int) -> float:
    """∂L/∂c of an LSTM, ∂L/∂h of others, at the first timestep over that at the last, before training.

    The geometric mean over 32 sequences.
    """
    task = adding(length)
    model = build_model(model_name, task, units, seed=seed).double()
    inputs, targets = task.draw(torch.Generator().manual_seed(seed), BATCH)
    taken = snapshot(model, lambda: task.loss(model(inputs.double()), targets.double()))["recurrent/l0"]
    adjoint = taken.cell if taken.info.curve == "cell" else taken.hidden
    norms = adjoint.norm(dim=2).log10().mean(1)
    return float(10 ** (norms[0] - norms[-1]))


def error(model_name: str, length: int, units: int, seed: int, *, steps: int, rate: float) -> float:
    """Held-out error after training by Adam with clipping at 1, over that of guessing; infinite where it diverged."""
    task = adding(length)
    model = build_model(model_name, task, units, seed=seed)
    settings = TrainSettings(steps=steps, batch_size=BATCH, learning_rate=rate, clip=1.0, seed=seed)
    result = train(model, task, settings, progress=False)
    return math.inf if result.diverged is not None else result.final.loss / task.baseline_loss


def measure(models: dict[str, str], size: Size, rate: float) -> dict[str, list[float]]:
    """One value per seed of `reach` and `error`, by what it is, the model's name here and the length."""
    found: dict[str, list[float]] = {}
    for seed in range(size.seeds):
        for name, model in models.items():
            for length in size.looked_at:
                found.setdefault(f"reach {name} {length}", []).append(reach(model, length, size.units, seed))
            for length in size.lengths:
                ended = error(model, length, size.units, seed, steps=size.steps, rate=rate)
                found.setdefault(f"error {name} {length}", []).append(ended)
    return found


def over(found: dict[str, list[float]], one: str, other: str, length: int) -> list[float]:
    """The error of one model over that of another, seed by seed."""
    pairs = zip(found[f"error {one} {length}"], found[f"error {other} {length}"], strict=True)
    return [a / b for a, b in pairs]
