"""What one would use instead: a loop that keeps every state's gradient, captum, torchlens."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscope
from scripts.benchmark.models import CONFIGS, KINDS, Loop, Loss, Net, finish, twin
from scripts.benchmark.tables import cell, line

#: Timesteps beyond which torchlens would take minutes for a pass.
LONGEST_FOR_TORCHLENS = 100


COLUMNS = {
    "samples8": "recorded, 8 sequences",
    "full": "recorded, whole batch",
    "between": "between recorded steps",
    "every10": "every=10, all included",
    "unrolled": "cell loop with retain_grad",
    "input": "input gradient only",
    "captum": "captum Saliency",
    "torchlens": "torchlens on the cell loop",
}


class Bench:
    """The variants of one kind and configuration; each is one training step."""

    def __init__(self, kind: str, config: str, device: str) -> None:
        batch, steps, hidden, size = CONFIGS[config]
        torch.manual_seed(0)
        self.x = torch.randn(steps, batch, size, device=device)
        self.model = Net(KINDS[kind][0](size, hidden), hidden).to(device)
        self.loop = Net(Loop(KINDS[kind][1](size, hidden)), hidden).to(device)
        self.folder = tempfile.TemporaryDirectory()
        self.recorders: list[gradscope.Recorder] = []

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-6)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor | None = None) -> None:
        optimizer.zero_grad()
        model(self.x if x is None else x).pow(2).mean().backward()
        optimizer.step()

    def timed(self, action: Callable[[], None]) -> float:
        finish(self.x)
        begin = time.perf_counter()
        action()
        finish(self.x)
        return time.perf_counter() - begin

    def recorded(self, samples: int | None) -> Callable[[], dict[str, float]]:
        """Return a turn of a recording under way: a recorded step, and one before and after it.

        Every third step is recorded, so that the recorder rests while other variants have their turn.
        """
        _, step = self._recording(samples, every=3)
        step()
        step()

        def turn() -> dict[str, float]:
            before, taken, after = (self.timed(step) for _ in range(3))
            return {"samples8": taken, "between": (before + after) / 2} if samples else {"full": taken}

        return turn

    def every10(self) -> Callable[[], dict[str, float]]:
        """Return a turn of a recording at the defaults: ten steps, one of them recorded, and a flush, as one step."""
        recorder, step = self._recording(8, every=10)
        step()

        def ten() -> None:
            for _ in range(10):
                step()
            recorder.flush()

        return lambda: {"every10": self.timed(ten) / 10}

    def _recording(self, samples: int | None, every: int) -> tuple[gradscope.Recorder, Callable[[], None]]:
        model = twin(self.model)  # no recorder sees the steps of another variant
        optimizer = self.optimizer(model)
        path = Path(self.folder.name) / f"{samples}-{every}"
        recorder = gradscope.record(model, path, optimizer=optimizer, every=every, samples=samples)
        self.recorders.append(recorder)
        return recorder, lambda: self.step(model, optimizer)

    def close(self) -> None:
        for recorder in self.recorders:
            recorder.close()
        self.folder.cleanup()

    def variants(self) -> list[Callable[[], dict[str, float]]]:
        plain = self.optimizer(self.model)
        turns: list[Callable[[], dict[str, float]]] = [
            lambda: {"plain": self.timed(lambda: self.step(self.model, plain))},
            self.recorded(8),
            self.recorded(None),
        ]
        leaf = self.x.clone().requires_grad_()
        turns.append(lambda: {"input": self.timed(lambda: self.step(self.model, plain, leaf))})
        looped = self.optimizer(self.loop)
        turns.append(lambda: {"unrolled": self.timed(lambda: self.step(self.loop, looped))})
        turns.append(self.every10())
        try:
            from captum.attr import Saliency
        except ImportError:
            return turns
        # captum wants the batch first, and a score per example.
        saliency = Saliency(lambda x: self.model(x.transpose(0, 1)).squeeze(1))
        batch_first = self.x.transpose(0, 1).contiguous().requires_grad_()
        turns.append(lambda: {"captum": self.timed(lambda: saliency.attribute(batch_first))})
        return turns

    def torchlens(self) -> Callable[[], None] | None:
        """Return one forward and backward pass of the cell loop with every gradient kept by torchlens, if it can.

        Not on CUDA: torchlens 2.36 fails there on a state that gets no gradient, as the last of an LSTM's cell gets.
        """
        if len(self.x) > LONGEST_FOR_TORCHLENS or self.x.is_cuda:
            return None
        return torchlens_pass(Loss(self.loop), self.x)


def torchlens_pass(model: Loss, x: Tensor) -> Callable[[], None] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchlens
            from torchlens.options import CaptureOptions
    except ImportError:
        return None
    asked = CaptureOptions(unwrap_when_done=True, save_grads="all", backward_ready=True, recurrence_detection=False)

    def trace() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torchlens.trace(model, x, capture=asked)
            found.log_backward(found[found.output_layers[0]].out)
        assert found.num_saved_grad_ops >= len(x), "torchlens did not keep the gradient of every timestep"

    return trace


def measure(kind: str, config: str, repetitions: int, device: str) -> dict[str, list[float]]:
    """Return the ratios to the plain step, one per repetition, and the plain step in seconds."""
    bench = Bench(kind, config, device)
    bench.step(bench.model, bench.optimizer(bench.model))
    turns = bench.variants()
    found: dict[str, list[float]] = {}
    for repetition in range(repetitions + 1):
        values: dict[str, float] = {}
        for turn in turns:
            values.update(turn())
        if repetition:  # the first is a warm-up
            for name, value in values.items():
                found.setdefault(name, []).append(value if name == "plain" else value / values["plain"])
    if (trace := bench.torchlens()) is not None:
        # Once, and last: it takes a hundred times as long, and puts itself around every function of torch meanwhile.
        found["torchlens"] = [bench.timed(trace) / statistics.median(found["plain"])]
    bench.close()
    return found


def peers_row(kind: str, config: str, found: dict[str, list[float]]) -> str:
    shape = ", ".join(map(str, CONFIGS[config]))
    cells = [kind, f"({shape})"]
    cells.append(f"{statistics.median(found['plain']) * 1e3:.1f} ms")
    for name in COLUMNS:
        cells.append(cell(found.get(name)))
    cells.append(str(len(found["plain"])))
    return line(cells)
