"""What recording costs, as a ratio to the plain training step: one process, one thread, interleaved, medians.

Variants of a configuration take turns within every repetition, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.calls.searching import Search

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
#: Timesteps beyond which torchlens would take minutes for a pass.
LONGEST_FOR_TORCHLENS = 100
# Repetitions that are left out at the beginning of a row.
_WARM_UP = 3
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


class OwnLSTM(nn.Module):
    """An LSTM as written by hand: two products and the gates, in a Python loop."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.i2h, self.h2h = nn.Linear(size, 4 * hidden), nn.Linear(hidden, 4 * hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(x.shape[1], self.h2h.in_features)
        outputs = []
        for x_t in x:
            i, f, g, o = (self.i2h(x_t) + self.h2h(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), (h, c)


class Stepped(nn.Module):
    """A fused layer called once a timestep, as a decoder is; or a cell."""

    def __init__(self, recurrent: nn.RNNBase | nn.RNNCellBase) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        state, outputs = None, []
        for x_t in x:
            if isinstance(self.recurrent, nn.RNNCellBase):
                state = self.recurrent(x_t, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            else:
                output, state = self.recurrent(x_t[None], state)
                outputs.append(output[0])
        return torch.stack(outputs), state


@dataclass(frozen=True)
class Written:
    """One way to write a recurrence, and what a recorded step of it may cost.

    Attributes
    ----------
    name : str
    make : callable
        From the sizes of input and hidden state to the recurrent part.
    ratio : float
        Most that a recorded step may cost, over the plain one.
    share : float
        Most that looking for recurrences may take of a recorded step.
    config : str
        Sizes, of ``CONFIGS``.
    features : int
        How many hidden states stand side by side in the output.
    new_lengths : bool
        Whether every batch has a length of its own, up to that of ``config``.
    samples : int or None
        Sequences that are recorded.
    """

    name: str
    make: Callable[[int, int], nn.Module]
    ratio: float
    share: float = 0.02
    config: str = "c1"
    features: int = 1
    new_lengths: bool = False
    samples: int | None = 8


def _deep(kind: type[nn.RNNBase]) -> Callable[[int, int], nn.Module]:
    return lambda size, hidden: kind(size, hidden, num_layers=2, bidirectional=True)


WRITTEN = {
    "rnn": Written("`nn.RNN`, one call", nn.RNN, 1.20),
    "gru": Written("`nn.GRU`, one call", nn.GRU, 1.10),
    "lstm": Written("`nn.LSTM`, one call", nn.LSTM, 1.25),
    "lengths": Written("`nn.LSTM`, a new length each step", nn.LSTM, 1.20, new_lengths=True),
    "stepped": Written("`nn.LSTM`, one call a timestep", lambda i, h: Stepped(nn.LSTM(i, h)), 1.25),
    "cell": Written("`nn.LSTMCell` in a loop", lambda i, h: Stepped(nn.LSTMCell(i, h)), 1.25),
    "loop": Written("LSTM written by hand in a loop", OwnLSTM, 1.15, 0.15),
    "deep": Written("`nn.LSTM`, 2 layers, 2 directions", _deep(nn.LSTM), 1.24, features=2),
    "deep gru": Written("`nn.GRU`, 2 layers, 2 directions", _deep(nn.GRU), 1.03, features=2),
    "long": Written("`nn.LSTM`, one call", nn.LSTM, 1.20, config="c3"),
    "wide": Written("`nn.LSTM`, one call", nn.LSTM, 1.06, config="c4"),
    "whole": Written("`nn.LSTM`, one call, whole batch", nn.LSTM, 1.66, samples=None),
}
#: Those on which ``every="auto"`` is held to its budget.
FOR_AUTO = ("rnn", "lstm", "stepped", "loop")
#: Those that torchlens can follow, as torch makes a node of every operation there.
FOR_TORCHLENS = ("loop", "cell")


class Searching:
    """Add up the CPU time that looking for recurrences takes, at the beginning and the end of every backward pass."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __enter__(self) -> Searching:
        self._original = Search.begin, Search.end
        Search.begin, Search.end = map(self._timed, self._original)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Search.begin, Search.end = self._original  # type: ignore[method-assign]

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            begin = time.process_time()
            try:
                method(*arguments)
            finally:
                self.spent += time.process_time() - begin

        return timed


class Loss(nn.Module):
    """A model and the loss of a step, for a tool that takes both as one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).pow(2).mean()


class Bench:
    """The variants of one kind and configuration; each is one training step."""

    def __init__(self, kind: str, config: str, device: str) -> None:
        batch, steps, hidden, size = CONFIGS[config]
        torch.manual_seed(0)
        self.device = device
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
        self._wait()
        begin = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

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
        optimizer = self.optimizer(self.model)
        path = Path(self.folder.name) / f"{samples}-{every}"
        recorder = gradscope.record(self.model, path, optimizer=optimizer, every=every, samples=samples)
        self.recorders.append(recorder)
        return recorder, lambda: self.step(self.model, optimizer)

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
        """Return one forward and backward pass of the cell loop with every gradient kept by torchlens, if it can."""
        if len(self.x) > LONGEST_FOR_TORCHLENS:
            return None
        return _torchlens(Loss(self.loop), self.x)


def _torchlens(model: Loss, x: Tensor) -> Callable[[], None] | None:
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


class Pair:
    """A model that is recorded and a twin that never is, to be trained side by side, a step at a time."""

    def __init__(self, way: str, config: str | None = None) -> None:
        self.way = WRITTEN[way]
        batch, self.longest, hidden, size = CONFIGS[config or self.way.config]
        torch.manual_seed(0)
        self.x = torch.randn(self.longest, batch, size)
        self.model = Net(self.way.make(size, hidden), hidden * self.way.features)
        self.twin = copy.deepcopy(self.model)
        self.optimizers = {each: torch.optim.SGD(each.parameters(), lr=1e-6) for each in (self.model, self.twin)}
        self._lengths = itertools.cycle(range(self.longest, self.longest // 2, -1))
        self._length = self.longest

    def next_length(self) -> None:
        """Let the steps that follow have a length of their own where they are to."""
        self._length = next(self._lengths) if self.way.new_lengths else self.longest

    def step(self, of: nn.Module) -> tuple[float, float]:
        """Make one training step; return the CPU time and the wall time that it took."""
        begin = time.process_time(), time.perf_counter()
        self.optimizers[of].zero_grad()
        of(self.x[: self._length]).pow(2).mean().backward()
        self.optimizers[of].step()
        return time.process_time() - begin[0], time.perf_counter() - begin[1]

    def record(self, path: Path, every: int | str) -> gradscope.Recorder:
        """Begin to record the model."""
        optimizer = self.optimizers[self.model]
        return gradscope.record(self.model, path, optimizer=optimizer, every=every, samples=self.way.samples)


def measure_written(
    way: str, repetitions: int, torchlens: bool = True, config: str | None = None
) -> dict[str, list[float]]:
    """Return what a recorded step of a recurrence costs that is written in this way.

    Of every repetition: the plain step in CPU seconds, the recorded step over it in CPU and in wall time, the share
    of the recorded step in which recurrences are looked for, and a step between recorded ones.
    """
    pair = Pair(way, config)
    found: dict[str, list[float]] = {name: [] for name in ("plain", "cpu", "wall", "search", "between")}
    with (
        tempfile.TemporaryDirectory() as folder,
        Searching() as searching,
        pair.record(Path(folder) / "run", every=3),
    ):
        for repetition in range(repetitions + _WARM_UP):
            pair.next_length()
            searching.spent = 0.0
            recorded = pair.step(pair.model)
            spent = searching.spent
            plain, between = pair.step(pair.twin), pair.step(pair.model)
            pair.step(pair.model)  # at its end the recorder wakes up
            if repetition >= _WARM_UP:
                found["plain"].append(plain[0])
                found["cpu"].append(recorded[0] / plain[0])
                found["wall"].append(recorded[1] / plain[1])
                found["search"].append(spent / recorded[0])
                found["between"].append(between[0] / plain[0])
    if torchlens and way in FOR_TORCHLENS and (seconds := _in_own_process("--trace", way, config or "c1")) is not None:
        found["torchlens"] = [seconds / statistics.median(found["plain"])]
    return found


def traced(way: str, config: str) -> float | None:
    """Return the CPU seconds of one pass with torchlens: in a process of its own, for it leaves torch slower there."""
    pair = Pair(way, config)
    if (trace := _torchlens(Loss(pair.twin), pair.x)) is None:
        return None
    begin = time.process_time()
    trace()
    return time.process_time() - begin


def _in_own_process(*arguments: str) -> Any:
    """Return what this script measures in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_auto(way: str, blocks: int, length: int = 30, config: str | None = None) -> dict[str, Any]:
    """Return what a training of ``blocks`` times ``length`` steps costs with ``every="auto"``, all included.

    Over the twin, step by step in turn: each block in CPU and wall time, and the whole, with the flush at its end, from
    the first step on and from the second, for what torch does once at its beginning is no cost of recording.
    """
    pair = Pair(way, config)
    for _ in range(_WARM_UP):
        pair.step(pair.twin)
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = pair.record(Path(folder) / "run", every="auto")
        pace, elsewhere = recorder._pace, [0.0]
        pace._clock = lambda: time.perf_counter() - elsewhere[0]  # stands still while the twin is trained
        for step in range(blocks * length):
            ours, twin = pair.step(pair.model), pair.step(pair.twin)
            elsewhere[0] += twin[1]
            times.append((ours, twin))
            if (step + 1) % length == 0:
                begin = time.process_time(), time.perf_counter()
                recorder.flush()
                spent = time.process_time() - begin[0], time.perf_counter() - begin[1]
                times[-1] = (ours[0] + spent[0], ours[1] + spent[1]), twin
        recorder.close()
        settings = gradscope.open_run(Path(folder) / "run").settings
    parts = [times[at : at + length] for at in range(0, len(times), length)]
    ratio = [[sum(ours[k] for ours, _ in part) / sum(twin[k] for _, twin in part) for part in parts] for k in (0, 1)]
    whole = [sum(ours[k] for ours, _ in times) / sum(twin[k] for _, twin in times) for k in (0, 1)]
    plain = statistics.median(twin[0] for _, twin in times)
    return {"plain": plain, "cpu": ratio[0], "wall": ratio[1], "whole": whole, "every": settings["chosen_every"]}


def _written_row(way: str, found: dict[str, list[float]], config: str | None = None) -> str:
    of = WRITTEN[way]
    search = statistics.median(found["search"])
    shape = f"({', '.join(map(str, CONFIGS[config or of.config]))})"
    cells = [of.name, shape, f"{statistics.median(found['plain']) * 1e3:.1f} ms"]
    cells += [_cell(found["cpu"]), f"{of.ratio:.2f}", _cell(found["wall"]), f"{search:.1%}", f"{of.share:.0%}"]
    cells += [_cell(found["between"]), _cell(found.get("torchlens")), str(len(found["cpu"]))]
    return _line(cells)


def _auto_row(way: str, found: dict[str, Any], config: str | None = None) -> str:
    of = WRITTEN[way]
    shape = f"({', '.join(map(str, CONFIGS[config or of.config]))})"
    cells = [of.name, shape, f"{found['plain'] * 1e3:.1f} ms", str(found["every"])]
    cells += [f"{found['whole'][0]:.3f}", "1.02", f"{found['whole'][1]:.3f}", _cell(found["cpu"])]
    return _line([*cells, str(len(found["cpu"]))])


WRITTEN_COLUMNS = (
    *("written as", "(B, T, H, I)", "plain step", "recorded, CPU time", "target", "recorded, wall time"),
    *("share of the search", "target", "between recorded steps", "torchlens", "repetitions"),
)
AUTO_COLUMNS = (
    *("written as", "(B, T, H, I)", "plain step", "every", "all steps, CPU time", "target", "all steps, wall time"),
    *("blocks of 30 steps, CPU time", "blocks"),
)


def memory(steps: int, warm_up: int = 500, how: str = "fixed") -> dict[str, Any]:
    """Return the growth of the resident set over ``steps`` recorded steps of a small model, in MB.

    ``how``: of one ``fixed`` length, a new one at each step (``lengths``), or called once a timestep (``stepped``).
    """
    torch.manual_seed(0)
    layer = nn.LSTM(8, 16)
    model = Net(Stepped(layer) if how == "stepped" else layer, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(100 if how == "lengths" else 20, 8, 8)
    sizes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        gradscope.record(model, Path(folder) / "run", optimizer=optimizer, every=1),
    ):
        for step in range(steps + warm_up):
            optimizer.zero_grad()
            model(x[: 5 + step % 96] if how == "lengths" else x).pow(2).mean().backward()
            optimizer.step()
            if step in (warm_up - 1, steps + warm_up - 1):
                sizes.append(_resident())
    return {"how": how, "steps": steps, "growth_mb": sizes[1] - sizes[0]}


def peak(kind: str, variant: str) -> list[float]:
    """Return in MB, over what was resident before: after the forward pass, and the most during one step."""
    bench = Bench(kind, "c2", "cpu")
    optimizer = bench.optimizer(bench.model)
    memory(1, warm_up=1)  # what is imported at the first record is no cost of this one
    before = _resident()
    if variant != "plain":
        samples = None if variant == "full" else 8
        path = Path(bench.folder.name) / "run"
        bench.recorders.append(gradscope.record(bench.model, path, optimizer=optimizer, samples=samples))
    loss = bench.model(bench.x).pow(2).mean()
    kept = _resident() - before
    loss.backward()
    optimizer.step()
    most = _peak() - before
    bench.close()
    return [kept, most]


def peaks() -> dict[str, dict[str, list[float]]]:
    """Return :func:`peak` of every kind and variant, each in a process of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        for variant in ("plain", "samples8", "full"):
            found.setdefault(kind, {})[variant] = _in_own_process("--peak", kind, variant)
    return found


def _peak_table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "| layer | activations kept by the plain step | its peak | recorded, 8 sequences | recorded, whole batch |"
    ]
    lines.append("|---|---|---|---|---|")
    for kind, at in found.items():
        kept, most = at["plain"]
        more = [f"{at[variant][1] - most:+.0f} MB" for variant in ("samples8", "full")]
        lines.append(f"| {kind} | {kept:.0f} MB | {most:.0f} MB | {more[0]} | {more[1]} |")
    return "\n".join(lines)


def _resident() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def _peak() -> float:
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def _row(kind: str, config: str, found: dict[str, list[float]]) -> str:
    shape = ", ".join(map(str, CONFIGS[config]))
    cells = [kind, f"({shape})"]
    cells.append(f"{statistics.median(found['plain']) * 1e3:.1f} ms")
    for name in COLUMNS:
        cells.append(_cell(found.get(name)))
    cells.append(str(len(found["plain"])))
    return _line(cells)


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
    parser.add_argument("--written", choices=WRITTEN, nargs="*", help="measure recorded steps; all rows without names")
    parser.add_argument("--auto", choices=WRITTEN, nargs="*", help="measure trainings with every='auto'")
    parser.add_argument("--peers", choices=KINDS, nargs="*", help="measure what one would use instead")
    parser.add_argument("--memory", type=int, nargs="?", const=10_000, help="over so many recorded steps")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--config", choices=CONFIGS, help="other sizes than a row's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --peers")
    parser.add_argument("--json", type=Path, help="write every measured value here")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--trace", nargs=2, metavar=("WAY", "CONFIG"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak or options.trace:
        print(json.dumps(peak(*options.peak) if options.peak else traced(*options.trace)))
        return
    if all(part is None for part in (options.written, options.auto, options.peers, options.memory)):
        options.written, options.auto, options.peers, options.memory = [], [], [], 10_000
    print(f"{_processor()}, torch {torch.__version__}, Python {platform.python_version()}, one thread", flush=True)
    everything: dict[str, Any] = {}
    if options.written is not None:
        _begin_table(WRITTEN_COLUMNS)
        for way in options.written or WRITTEN:
            found = everything[way] = measure_written(way, options.repetitions, config=options.config)
            print(_written_row(way, found, options.config), flush=True)
    if options.auto is not None:
        _begin_table(AUTO_COLUMNS)
        for way in options.auto or FOR_AUTO:
            auto = everything[f"auto {way}"] = measure_auto(way, options.repetitions, config=options.config)
            print(_auto_row(way, auto, options.config), flush=True)
    if options.peers is not None:
        _begin_table(("layer", "(B, T, H, I)", "plain step", *COLUMNS.values(), "repetitions"))
        config = options.config or "c1"
        for kind in options.peers or KINDS:
            found = everything[kind] = measure(kind, config, options.repetitions, options.device)
            print(_row(kind, config, found), flush=True)
    if options.memory is not None:
        print(flush=True)
        for how in ("fixed", "lengths", "stepped"):
            grown = everything[f"memory {how}"] = memory(options.memory, how=how)
            print(f"Memory over {grown['steps']} recorded steps, {how}: {grown['growth_mb']:+.1f} MB", flush=True)
        everything["peaks"] = peaks()
        print("\n" + _peak_table(everything["peaks"]))
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


def _begin_table(columns: Sequence[str]) -> None:
    print("\n" + _line(columns) + "\n|" + "---|" * len(columns), flush=True)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
