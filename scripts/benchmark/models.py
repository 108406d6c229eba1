"""The recurrences that are measured, however they are written, and a twin of each that is never recorded."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
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


class Loss(nn.Module):
    """A model and the loss of a step, for a tool that takes both as one module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).pow(2).mean()


def twin(model: nn.Module) -> nn.Module:
    """Return a copy whose weights lie in one piece, as cuDNN wants them: a deep copy leaves them apart."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return copied


def finish(x: Tensor) -> None:
    """Wait until the device of a tensor has done what it was asked."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


class Pair:
    """A model that is recorded and a twin that never is, to be trained side by side, a step at a time."""

    def __init__(self, way: str, config: str | None = None, device: str = "cpu") -> None:
        self.way = WRITTEN[way]
        batch, self.longest, hidden, size = CONFIGS[config or self.way.config]
        torch.manual_seed(0)
        self.x = torch.randn(self.longest, batch, size, device=device)
        self.model = Net(self.way.make(size, hidden), hidden * self.way.features).to(device)
        self.twin = twin(self.model)
        self.optimizers = {each: torch.optim.SGD(each.parameters(), lr=1e-6) for each in (self.model, self.twin)}
        self._lengths = itertools.cycle(range(self.longest, self.longest // 2, -1))
        self._length = self.longest

    def next_length(self) -> None:
        """Let the steps that follow have a length of their own where they are to."""
        self._length = next(self._lengths) if self.way.new_lengths else self.longest

    def step(self, of: nn.Module) -> tuple[float, float]:
        """Make one training step; return the CPU time and the wall time that it took."""
        finish(self.x)
        begin = time.process_time(), time.perf_counter()
        self.optimizers[of].zero_grad()
        of(self.x[: self._length]).pow(2).mean().backward()
        self.optimizers[of].step()
        finish(self.x)
        return time.process_time() - begin[0], time.perf_counter() - begin[1]

    def record(self, path: Path, every: int | str) -> gradscope.Recorder:
        """Begin to record the model."""
        optimizer = self.optimizers[self.model]
        return gradscope.record(self.model, path, optimizer=optimizer, every=every, samples=self.way.samples)
