"""Twenty labelled trainings: seeds, thresholds, lengths and cells, some of which went wrong; what counts, in numpy."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradscope
from tests.recordings import Raw

B, H = 4, 6
CELLS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


@dataclass(frozen=True)
class Training:
    cell: str
    init: str
    seed: int
    threshold: float | None
    length: int = 12
    steps: int = 12
    diverges_at: int | None = None
    logged: bool = True
    restarted: bool = False

    @property
    def clip(self) -> float:
        return np.inf if self.threshold is None else self.threshold

    @property
    def gone(self) -> bool:
        return self.diverges_at is not None


_BY_THRESHOLD = [
    Training("RNN", "default", seed, clip, diverges_at=6 if (clip, seed) == (None, 1) else None)
    for clip in (None, 1.0, 0.1)
    for seed in (0, 1, 2)
]
TRAININGS = [
    *_BY_THRESHOLD,
    *(Training("LSTM", "forget1", seed, 1.0, length) for length in (8, 12) for seed in (0, 1)),
    Training("LSTM", "forget1", 2, 1.0, restarted=True),
    *(Training("GRU", "default", seed, 1.0, 8) for seed in (0, 1)),
    Training("GRU", "default", 2, 1.0, 8, logged=False),
    Training("GRU", "default", 0, 1.0, diverges_at=4),
    *(Training("RNN", "default", seed, 1.0, 8) for seed in (0, 1)),
    Training("LSTM", "default", 0, 1.0, steps=1),
]


class Net(nn.Module):
    def __init__(self, of: Training) -> None:
        super().__init__()
        self.core, self.out = CELLS[of.cell](2, H), nn.Linear(H, 1)
        if of.init == "forget1":
            with torch.no_grad():
                self.core.bias_ih_l0[H : 2 * H], self.core.bias_hh_l0[H : 2 * H] = 1.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.core(x)[0][-1])


def record(path: Path, of: Training) -> gradscope.Run:
    torch.manual_seed(of.seed)
    model = Net(of)
    if of.restarted:
        _train(path, model, of, range(8))
        _train(path, model, of, range(6, of.steps))  # what the first attempt had from step 6 on is replaced
    else:
        _train(path, model, of, range(of.steps))
    return gradscope.open_run(path)


def _train(path: Path, model: Net, of: Training, steps: range) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    labels = {"cell": of.cell, "init": of.init, "seed": of.seed, "length": of.length, "chance_loss": 1.0}
    with gradscope.record(
        model, path, optimizer=optimizer, every=2, samples=B, labels=labels, first_step=steps.start,
        restart=steps.start > 0,
    ) as recorder:  # fmt: skip
        for step in steps:
            x = torch.randn(of.length, B, 2)
            loss = (model(x) - 3 * x[0, :, :1]).square().mean()
            if of.diverges_at is not None and step >= of.diverges_at:
                loss = loss * float("inf")
            optimizer.zero_grad()
            loss.backward()
            if of.threshold is not None:
                recorder.clip_grad_norm_(of.threshold)
            optimizer.step()
            if of.logged:
                late = {"held_out_loss": loss, "held_out_accuracy": float(torch.rand(()))} if step % 4 == 3 else {}
                recorder.log(loss=loss, **late)


# --- as a training counts: what a later attempt replaced is left out --------------------------------------------------


def _kept(attempt: np.ndarray, step: np.ndarray) -> np.ndarray:
    kept = np.ones(len(step), dtype=bool)
    for later in np.unique(attempt)[1:]:
        kept &= (attempt >= later) | (step < step[attempt == later].min())
    return kept


@functools.cache
def scalars(run: gradscope.Run) -> Any:
    """Rows of the steps that count, in order."""
    table = run.steps()
    return table[_kept(table["attempt"].to_numpy(), table["step"].to_numpy())].sort_values("step")


@functools.cache
def curves(run: gradscope.Run, quantity: str) -> dict[int, Raw]:
    """Recorded step to the norms of the run's site."""
    (site,) = run.sites
    records, norms = run.records(site), run.array(site, quantity)
    found = {}
    for at in np.flatnonzero(_kept(records["attempt"].to_numpy(), records["step"].to_numpy())):
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(np.isfinite(norms[at]) & (norms[at] > 0), np.log10(norms[at]), np.nan)
        found[int(records["step"].iloc[at])] = Raw(
            np.arange(norms.shape[2]), logs, norms[at], np.zeros(len(logs)), None, None
        )
    return dict(sorted(found.items()))


def reaching(raw: Raw) -> float:
    """log10 of what arrives at the first input, over what arrives at the last; inf where it is not finite."""
    curve = raw.curve
    return np.inf if np.isnan(curve[-1]) else float(curve[-1] - curve[0])
