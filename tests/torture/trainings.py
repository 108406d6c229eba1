"""Small trainings that between them reach nearly all of what runs beside a training.

Each is a user's script: it returns what its parameters were at the end, and takes a recorder where one could be made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import gradscope


class Recording(Protocol):
    """How a script asks for its recorder."""

    def __call__(self, model: nn.Module, **settings: Any) -> contextlib.AbstractContextManager[Any]:
        """Record inside the block; yields None where recording could not begin."""
        ...


Training = Callable[[Recording], list[Tensor]]


def _left(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


class Layers(nn.Module):
    """Fused layers: stacked with dropout, in both directions, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.2)
        self.gru = nn.GRU(4, 3, bidirectional=True)
        self.rnn = nn.RNN(6, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, state = self.lstm(x)
        y, _ = self.gru(y)
        packed = pack_padded_sequence(y, lengths, enforce_sorted=False)
        _, final = self.rnn(packed)
        return self.out(final[0]).pow(2).mean() + state[1].sum() * 1e-3


def layers(recording: Recording) -> list[Tensor]:
    """Train fused layers with torch's own clipping, and log, flush and close."""
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with recording(model, optimizer=optimizer, every=2, quantities="all", tensors=True) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3, 3), torch.tensor([5, 4, 2]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
            optimizer.step()
            if recorder is not None:
                recorder.log(loss=loss, step=step)
                if step == 1:
                    recorder.flush()
    return _left(model)


class Loops(nn.Module):
    """States in hand-written loops: found, marked, of a cell, of one-step calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(3, 4)
        self.cell, self.gated = nn.LSTMCell(4, 4), nn.GRUCell(4, 4)
        self.decoder = nn.LSTM(4, 4)
        self.embedding = nn.Embedding(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = marked = torch.zeros(tokens.shape[1], 4)
        c: Any = None
        g = state = None
        for x in self.embedding(tokens):
            h = torch.tanh(self.outer(x) + self.inner(h))
            marked = gradscope.state("marked", torch.sigmoid(self.inner(marked) + h))
            c = self.cell(marked, c)
            g = self.gated(c[0], g)
            _, state = self.decoder(g[None], state)
        assert state is not None
        return state[0].pow(2).mean() + h.mean()


def loops(recording: Recording) -> list[Tensor]:
    """Train loops, with the recorder's own clipping."""
    model = Loops()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    given = list(model.parameters())
    with recording(model, every=1) as recorder:
        for step in range(2):
            model(torch.randint(5, (4, 2))).backward()
            if recorder is None:
                torch.nn.utils.clip_grad_norm_(given, 0.5)
                torch.nn.utils.clip_grad_value_(given, 0.05)
            else:
                recorder.clip_grad_norm_(given, 0.5)
                recorder.clip_grad_value_(0.05, parameters=given)
            optimizer.step()
            optimizer.zero_grad()
            if recorder is not None:
                recorder.log(step=step)
    return _left(model)


def scaled(recording: Recording) -> list[Tensor]:
    """Train with a loss scale, two optimizers, accumulation and a step that is skipped."""
    model = nn.ModuleList([nn.GRU(3, 4), nn.Linear(4, 1)])
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with recording(model, optimizer=optimizers, every="auto", samples=2) as recorder:
        for step in range(5):
            for part in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=part == 1):
                    y = model[1](model[0](torch.randn(5, 3, 3))[0])
                loss = y.float().pow(2).mean() * (float("inf") if step == 2 else 1.0)
                scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
            if recorder is not None:
                recorder.log(loss=loss)
    return _left(model)


class Odd(nn.Module):
    """A black box, chunks run again by a checkpoint, a kernel called past the hooks, a gradient of a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.box = nn.Sequential(nn.Conv1d(3, 3, 1), nn.Tanh())
        self.lstm, self.rnn = nn.LSTM(3, 3), nn.RNN(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.box(x.permute(1, 2, 0)).permute(2, 0, 1)
        state = (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
        for part in y.chunk(2):
            out, state = checkpoint(self._chunk, part, state, use_reentrant=True)
        return self.rnn.forward(out)[0].pow(2).mean() + y.mean()

    def _chunk(self, part: Tensor, state: Any) -> Any:
        return self.lstm(part, state)


def odd(recording: Recording) -> list[Tensor]:
    """Train with a closure, and take gradients for something else beside it."""
    model = Odd()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    x = torch.randn(6, 2, 3, requires_grad=True)

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss.item()

    with recording(model, optimizer=optimizer, every=1, sites=["box", "lstm", "rnn"]) as recorder:
        for _ in range(2):
            optimizer.step(closure)
            if recorder is not None:
                recorder.log(one=1.0)
        model.lstm.zero_grad()
        (gradient,) = torch.autograd.grad(model.lstm(x)[0].sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
    return _left(model)


def by_hand(recording: Recording) -> list[Tensor]:
    """Train windows of a sequence without an optimizer, and mark the steps."""
    model = nn.LSTM(3, 4)
    state: Any = None
    with recording(model, every=1, samples=None) as recorder:
        for _ in range(3):
            y, state = model(torch.randn(4, 2, 3), state)
            state = tuple(value.detach() for value in state)
            y.pow(2).mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad  # type: ignore[operator]
            if recorder is not None:
                recorder.step()
            model.zero_grad()
    return _left(model)


#: The cheapest first: a function is tried where it is first reached.
TRAININGS: dict[str, Training] = {one.__name__: one for one in (by_hand, scaled, odd, layers, loops)}


@contextlib.contextmanager
def without(model: nn.Module, **settings: Any) -> Iterator[None]:
    """Record nothing: the twin of every training."""
    yield None
