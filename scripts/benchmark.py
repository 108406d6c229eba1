"""What recording costs, as a ratio to the plain training step: one process, one thread, interleaved, medians.

Variants of a configuration take turns within every repetition, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope

CONFIGS = {
    "c1": (32, 100, 128, 64),
    "c2": (64, 500, 256, 128),
    "c3": (16, 2000, 128, 64),
    "c4": (128, 50, 512, 256),
}
KINDS: dict[str, tuple[type[nn.RNNBase], type[nn.RNNCellBase]]] = {
    "RNN": (nn.RNN, nn.RNNCell),
    "GRU": (nn.GRU, nn.GRUCell),
    "LSTM": (nn.LSTM, nn.LSTMCell),
}
COLUMNS = {
    "samples8": "recorded, 8 sequences",
    "full": "recorded, whole batch",
    "between": "between recorded steps",
    "every10": "every=10, all included",
    "unrolled": "cell loop with retain_grad",
    "input": "input gradient only",
    "captum": "captum Saliency",
}


class Net(nn.Module):
    """A recurrent layer and a readout of its last step."""

    def __init__(self, recurrent: nn.Module, features: int) -> None:
        super().__init__()
        self.recurrent, self.readout = recurrent, nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.recurrent(x)[0][-1])


class Loop(nn.Module):
    """What a user writes instead: a cell in a Python loop that keeps the gradient of every state."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell
        self.states: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        state, outputs, self.states = None, [], []
        for x_t in x:
            state = self.cell(x_t, state)
            for s in state if isinstance(state, tuple) else (state,):
                s.retain_grad()
                self.states.append(s)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state


class Bench:
    """The variants of one kind and configuration; each is one training step."""

    def __init__(self, kind: str, config: str, deep: bool, device: str) -> None:
        batch, steps, hidden, size = CONFIGS[config]
        torch.manual_seed(0)
        options: dict[str, Any] = {"num_layers": 2, "bidirectional": True} if deep else {}
        self.device = device
        self.x = torch.randn(steps, batch, size, device=device)
        self.model = Net(KINDS[kind][0](size, hidden, **options), hidden * (2 if deep else 1)).to(device)
        self.loop = None if deep else Net(Loop(KINDS[kind][1](size, hidden)), hidden).to(device)
        self.folder = tempfile.TemporaryDirectory()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-6)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor | None = None) -> None:
        optimizer.zero_grad()
        model(self.x if x is None else x).pow(2).mean().backward()
        optimizer.step()

    def timed(self, action: Callable[[], None]) -> float:
        self._wait()
        begin = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def recorded(self, samples: int | None) -> Callable[[], dict[str, float]]:
        """Return a turn: open a recorder, time one recorded step and one between."""
        count = 0

        def turn() -> dict[str, float]:
            nonlocal count
            count += 1
            optimizer = self.optimizer(self.model)
            path = Path(self.folder.name) / f"{samples}-{count}"
            with gradscope.record(self.model, path, optimizer=optimizer, every=2, samples=samples):
                taken = self.timed(lambda: self.step(self.model, optimizer))
                between = self.timed(lambda: self.step(self.model, optimizer))
            return {"samples8": taken, "between": between} if samples else {"full": taken}

        return turn

    def every10(self) -> dict[str, float]:
        """Time ten steps of a recording at the defaults, closing not included, as one step."""
        optimizer = self.optimizer(self.model)
        path = Path(self.folder.name) / f"ten-{time.monotonic_ns()}"
        with gradscope.record(self.model, path, optimizer=optimizer) as recorder:

            def ten() -> None:
                for _ in range(10):
                    self.step(self.model, optimizer)
                recorder.flush()

            return {"every10": self.timed(ten) / 10}

    def variants(self, repeat_ten: bool) -> list[Callable[[], dict[str, float]]]:
        plain = self.optimizer(self.model)
        turns: list[Callable[[], dict[str, float]]] = [
            lambda: {"plain": self.timed(lambda: self.step(self.model, plain))},
            self.recorded(8),
            self.recorded(None),
        ]
        leaf = self.x.clone().requires_grad_()
        turns.append(lambda: {"input": self.timed(lambda: self.step(self.model, plain, leaf))})
        if self.loop is not None:
            loop, looped = self.loop, self.optimizer(self.loop)
            turns.append(lambda: {"unrolled": self.timed(lambda: self.step(loop, looped))})
        if repeat_ten:
            turns.append(self.every10)
        try:
            from captum.attr import Saliency
        except ImportError:
            return turns
        # captum wants the batch first, and a score per example.
        saliency = Saliency(lambda x: self.model(x.transpose(0, 1)).squeeze(1))
        batch_first = self.x.transpose(0, 1).contiguous().requires_grad_()
        turns.append(lambda: {"captum": self.timed(lambda: saliency.attribute(batch_first))})
        return turns


def measure(kind: str, config: str, deep: bool, seconds: float, device: str) -> dict[str, list[float]]:
    """Return the ratios to the plain step, one per repetition, and the plain step in seconds."""
    bench = Bench(kind, config, deep, device)
    bench.step(bench.model, bench.optimizer(bench.model))
    plain = bench.timed(lambda: bench.step(bench.model, bench.optimizer(bench.model)))
    turns = bench.variants(repeat_ten=plain < seconds / 40)
    found: dict[str, list[float]] = {}
    end = time.monotonic() + seconds
    repetition = 0
    while repetition < 3 or time.monotonic() < end:
        values: dict[str, float] = {}
        for turn in turns:
            values.update(turn())
        if repetition:  # the first is a warm-up
            for name, value in values.items():
                found.setdefault(name, []).append(value if name == "plain" else value / values["plain"])
        repetition += 1
    bench.folder.cleanup()
    return found


def memory(steps: int) -> dict[str, float]:
    """Return the growth of the resident set over ``steps`` recorded steps of a small model, in MB."""
    torch.manual_seed(0)
    model = Net(nn.LSTM(8, 16), 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(20, 8, 8)
    sizes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        gradscope.record(model, Path(folder) / "run", optimizer=optimizer, every=1),
    ):
        for step in range(steps + 500):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
            if step in (499, steps + 499):
                sizes.append(_resident())
    return {"steps": steps, "growth_mb": sizes[1] - sizes[0]}


def peak(kind: str, samples: int | None, recorded: bool) -> float:
    """Return the peak resident set of one step in a process of its own, in MB over that before the step."""
    bench = Bench(kind, "c2", False, "cpu")
    optimizer = bench.optimizer(bench.model)
    before = _resident()
    if recorded:
        path = Path(bench.folder.name) / "run"
        with gradscope.record(bench.model, path, optimizer=optimizer, samples=samples):
            bench.step(bench.model, optimizer)
    else:
        bench.step(bench.model, optimizer)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before


def _resident() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def _row(kind: str, config: str, deep: bool, found: dict[str, list[float]]) -> str:
    shape = ", ".join(map(str, CONFIGS[config]))
    cells = [f"{kind}{', 2 layers, 2 directions' if deep else ''}", f"({shape})"]
    cells.append(f"{statistics.median(found['plain']) * 1e3:.1f} ms")
    for name in COLUMNS:
        cells.append(_cell(found.get(name)))
    cells.append(str(len(found["plain"])))
    return "| " + " | ".join(cells) + " |"


def _cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    if len(values) < 4:
        return f"{statistics.median(values):.3f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.2f}–{high:.2f})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--config", choices=CONFIGS, nargs="*", default=list(CONFIGS))
    parser.add_argument("--seconds", type=float, default=15.0, help="time for each row")
    parser.add_argument("--shallow", action="store_true", help="leave out two layers in two directions")
    parser.add_argument("--memory-steps", type=int, default=10_000, help="0 leaves memory out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write every measured value here")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak:
        variant = options.peak[1]
        print(peak(options.peak[0], 8 if variant == "8" else None, variant != "plain"))
        return
    print(f"{_processor()}, torch {torch.__version__}, Python {platform.python_version()}, one thread\n", flush=True)
    header = ["layer", "(B, T, H, I)", "plain step", *COLUMNS.values(), "repetitions"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    everything = {}
    for deep in (False,) if options.shallow else (False, True):
        for kind in options.only:
            for config in options.config:
                found = measure(kind, config, deep, options.seconds, options.device)
                everything[f"{kind} {config}{' deep' if deep else ''}"] = found
                print(_row(kind, config, deep, found), flush=True)
    if options.memory_steps and options.device == "cpu":
        grown = memory(options.memory_steps)
        everything["memory"] = grown  # type: ignore[assignment]
        print(f"\nResident memory over {grown['steps']} recorded steps: {grown['growth_mb']:+.1f} MB")
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    sys.exit(main())
