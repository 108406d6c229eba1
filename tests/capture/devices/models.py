"""A model of every kind of site, each in the shortest form that its users write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import gradscope

T, B, FEATURES, H = 9, 8, 3, 5


class Sequence(nn.Module):
    """One call a sequence; ``lengths`` packs it, unsorted."""

    def __init__(self, layer: nn.Module, lengths: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, x: Tensor) -> Tensor:
        given: Any = x
        if self.lengths:
            given = pack_padded_sequence(x, torch.tensor(self.lengths, device="cpu"), enforce_sorted=False)
        output, final = self.layer(given)
        output = output.data if isinstance(output, PackedSequence) else output
        return output.pow(2).sum() + sum(s.sin().sum() for s in (final if isinstance(final, tuple) else (final,)))


class LearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.start = nn.LSTM(FEATURES, H), nn.Parameter(torch.randn(1, 1, H) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(1, x.shape[1], H).contiguous()
        return self.lstm(x, (h, h.cos()))[0][-3:].pow(2).sum()


class OneStepCalls(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for x_t in x.split(1):
            output, state = self.layer(x_t, state)
            outputs.append(output)
        return torch.cat(outputs).pow(2).sum()


class Cell(nn.Module):
    """A cell in a loop; ``shrinks``: sequences end one after the other."""

    def __init__(self, cell: nn.Module, shrinks: bool = False) -> None:
        super().__init__()
        self.cell, self.shrinks = cell, shrinks

    def forward(self, x: Tensor) -> Tensor:
        state, loss = None, torch.zeros((), dtype=x.dtype)
        for t, x_t in enumerate(x):
            if self.shrinks and t > 3:
                x_t = x_t[: B - t + 3]
                state = tuple(s[: B - t + 3] for s in state) if isinstance(state, tuple) else state[: B - t + 3]  # type: ignore[index]
            state = self.cell(x_t, state)
            loss = loss + (state[0] if isinstance(state, tuple) else state).pow(2).sum()
        return loss


class Loop(nn.Module):
    """A loop without a cell; chunks of it may be checkpointed, or its state be marked."""

    def __init__(self, reentrant: bool | None = None, marks: bool = False) -> None:
        super().__init__()
        self.i2h, self.h2h, self.reentrant, self.marks = nn.Linear(FEATURES, H), nn.Linear(H, H), reentrant, marks

    def chunk(self, x: Tensor, h: Tensor) -> Tensor:
        for x_t in x:
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            if self.marks:
                h = gradscope.state("memory", h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], H, dtype=x.dtype)
        if self.reentrant is None:
            return self.chunk(x, h).pow(2).sum()
        x = x.clone().requires_grad_()
        for part in x.split(3):
            h = checkpoint(self.chunk, part, h, use_reentrant=self.reentrant)
        return h.pow(2).sum()


class Windows(nn.Module):
    """The state goes on from call to call, without its graph; the third window is the loss's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, x.shape[1], H, dtype=x.dtype)
        for part in x.split(3):
            output, state = self.layer(part, state.detach())
        return output.pow(2).sum()


class Leaky(nn.Module):
    """A layer of somebody's own, which gradscope knows by its adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.start, self.batch_first = nn.Linear(FEATURES, H), nn.Parameter(torch.randn(H) / 4), False

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(0.5 * h + self.mix(x))

    def initial_state(self, x: Tensor) -> Tensor:
        return self.start.expand(x.shape[1], H)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = self.initial_state(x), []
        for x_t in x:
            h = self.step(x_t, h)
            outputs.append(h)
        return torch.stack(outputs)


class Whole(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).pow(2).sum()


class Smoothing(nn.Module):
    """A black box."""

    batch_first = False

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES, H)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.cumsum(0)).tanh()


LENGTHS = (4, 9, 2, 7, 9, 5, 3, 8)

MODELS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Sequence(nn.RNN(FEATURES, H)),
    "relu RNN": lambda: Sequence(nn.RNN(FEATURES, H, nonlinearity="relu", num_layers=2)),
    "GRU of two layers": lambda: Sequence(nn.GRU(FEATURES, H, num_layers=2)),
    "LSTM of three layers": lambda: Sequence(nn.LSTM(FEATURES, H, num_layers=3)),
    "LSTM in both directions": lambda: Sequence(nn.LSTM(FEATURES, H, num_layers=2, bidirectional=True)),
    "GRU batch first": lambda: Sequence(nn.GRU(FEATURES, H, batch_first=True)),
    "LSTM without bias": lambda: Sequence(nn.LSTM(FEATURES, H, bias=False)),
    "LSTM with projection": lambda: Sequence(nn.LSTM(FEATURES, H, proj_size=2, bidirectional=True)),
    "packed LSTM": lambda: Sequence(nn.LSTM(FEATURES, H, num_layers=2, bidirectional=True), LENGTHS),
    "packed GRU": lambda: Sequence(nn.GRU(FEATURES, H), LENGTHS),
    "learned start": LearnedStart,
    "LSTM by step": lambda: OneStepCalls(nn.LSTM(FEATURES, H)),
    "GRU by step": lambda: OneStepCalls(nn.GRU(FEATURES, H, num_layers=2)),
    "LSTMCell": lambda: Cell(nn.LSTMCell(FEATURES, H)),
    "GRUCell": lambda: Cell(nn.GRUCell(FEATURES, H)),
    "RNNCell": lambda: Cell(nn.RNNCell(FEATURES, H)),
    "LSTMCell of fewer and fewer": lambda: Cell(nn.LSTMCell(FEATURES, H), shrinks=True),
    "loop": Loop,
    "checkpointed loop": lambda: Loop(reentrant=False),
    "reentrantly checkpointed loop": lambda: Loop(reentrant=True),
    "marked state": lambda: Loop(marks=True),
    "windows of a layer": lambda: Windows(nn.GRU(FEATURES, H)),
    "adapter": lambda: Whole(Leaky()),
    "black box": lambda: Whole(Smoothing()),
}

#: What has to be asked for by name.
NAMED = {"black box": ["layer"]}


def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Return a model and its input."""
    torch.manual_seed(3)
    return MODELS[name]().to(dtype), torch.randn(T, B, FEATURES, dtype=torch.float64).to(dtype)
