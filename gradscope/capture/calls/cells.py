"""``nn.RNNCell``, ``nn.LSTMCell`` and ``nn.GRUCell``: autograd itself delivers the total derivative of h_t and c_t.

Calls are joined to sequences by following the state. What a cell is not told by its class, but by data flow, is in
``found``: here the equations are known, so that gates and weights can be had as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscope.adjoint import CELLS, Adjoints, Order, Weights
from gradscope.capture import host
from gradscope.capture.calls.lineage import tupled
from gradscope.capture.calls.prehook import CannotRecordError
from gradscope.capture.calls.sequence import Line
from gradscope.capture.layers.discovery import Target
from gradscope.capture.layers.rows import sampled_rows

REORDERED = "the rows of its batch change between two steps in a way that cannot be followed (reordered, or added)"

PARTED = "one state of it is handed to several calls: its recurrence is followed by data flow, without its gates"

FROZEN = "its state requires no gradient (everything before it is frozen, or no_grad)"


@dataclass
class Step:
    """What one call of a cell left: detached rows of its input, states before and after."""

    x: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


@dataclass(eq=False, kw_only=True)
class CellSequence(Line):
    """Calls of one cell.

    Attributes
    ----------
    rows : Tensor of int64
        The sampled rows of the first batch; later ones may have lost their last rows.
    batches : list of int
        The batch of every step.
    carry_only : bool
        Whether what arrives at c_t leaves out the way through h_t: where one fused node makes both.
    """

    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    weights: Weights | None = None
    unbatched: bool = False
    carry_only: bool = False
    calls: list[Step] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, x: Tensor, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        """Take one more call."""
        batch = 1 if self.unbatched else after[0].shape[0]
        if self.batches and batch > self.batches[-1]:
            self.unfollowed = REORDERED
        self.batches.append(batch)
        self.calls.append(Step(self._of(x), tuple(map(self._of, before)), tuple(map(self._of, after))))

    def _of(self, x: Tensor) -> Tensor:
        """Copy the sampled rows of a (B, N) or (N,) tensor, detached."""
        x = x.detach()
        if self.unbatched:
            return x.reshape(1, -1).clone() if host.is_host(x) else host.begun(x)[None]
        rows = self.rows if self.batches[-1] == self.batches[0] else self.rows[self.rows < self.batches[-1]]
        return _rows_of(x, rows)

    def take(self, task: int, name: tuple[int, int], gradient: Tensor) -> None:
        """Keep the sampled rows of the gradient of a state, ``(timestep, state)``."""
        self.tasks.add(task)
        gradient = gradient.reshape(1, -1) if self.unbatched else gradient
        rows = self.rows[self.rows < len(gradient)] if len(gradient) != self.batches[0] else self.rows
        self.gradients[task][name] = _rows_of(gradient, rows)

    def adjoints(self, task: int, dtype: torch.dtype, scale: float, precise: bool = True) -> Adjoints:
        """Stack what arrived in backward pass ``task`` and derive what follows from it step by step.

        Unless ``precise``, gates of a float32 cell are computed in float32, as its own kernel does, at half the price.

        Raises
        ------
        CannotRecordError
            The rows of the batch cannot be followed.
        """
        arrived = self.gradients.pop(task)
        if self.unfollowed:
            raise CannotRecordError(self.unfollowed)
        lengths = None
        if self.batches[-1] != self.batches[0]:
            batches = torch.tensor(self.batches)[:, None]
            lengths = (self.rows < batches).sum(0)
        order = Order(self.steps, len(self.rows), lengths, reverse=False)
        states = len(self.calls[0].after)
        hidden = self._stack(arrived, 0, dtype) / scale
        cell = self._stack(arrived, 1, dtype) / scale if states > 1 else None
        if self.weights is None or self.target is None:
            return Adjoints(order, hidden, cell=cell)
        single = not precise and self.calls[0].after[0].dtype == self.weights.w_hh.dtype == torch.float32
        return self._derived(order, hidden, cell, dtype, torch.float32 if single else dtype)

    def _derived(
        self, order: Order, hidden: Tensor, cell: Tensor | None, dtype: torch.dtype, gates_in: torch.dtype
    ) -> Adjoints:
        assert self.target is not None
        assert self.weights is not None
        equations, weights = CELLS[self.target.mode], self.weights.to(dtype)
        trajectory = equations.at(
            self._rows([step.x for step in self.calls], gates_in),
            self._rows([step.after[0] for step in self.calls], gates_in),
            self._rows([step.before[0] for step in self.calls], gates_in),
            None if cell is None else self._rows([step.before[1] for step in self.calls], gates_in),
            self.weights.to(gates_in),
        )
        if gates_in != dtype:
            trajectory = trajectory.to(dtype)
        carry = None
        through = equations.through_output(trajectory, hidden)
        if through is not None and cell is not None:
            # Where one fused node makes h_t and c_t (CUDA), what reaches c_t leaves out the way through h_t.
            carry, cell = (cell, cell + through) if self.carry_only else (cell - through, cell)
        gates, gates_hh = equations.local(trajectory, hidden, cell)
        found = Adjoints(order, hidden, None, trajectory, weights, gates, gates_hh, cell, carry)
        found.initial_hidden, found.initial_cell = equations.initial(trajectory, weights, hidden, carry)
        return found

    def _rows(self, steps: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Stack (b, N) of every step to (T, b, N), 0 where rows are gone."""
        most = len(steps[0])
        padded = [s if len(s) == most else torch.cat((s, s.new_zeros(most - len(s), *s.shape[1:]))) for s in steps]
        return torch.stack(padded).to(dtype)

    def _stack(self, arrived: dict[tuple[int, int], Tensor], state: int, dtype: torch.dtype) -> Tensor:
        rows = []
        for t, step in enumerate(self.calls):
            gradient, like = arrived.get((t, state)), step.after[state]
            rows.append(torch.zeros_like(like) if gradient is None else gradient.to(like.dtype))
        return self._rows(rows, dtype)


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows) if host.is_host(x) else host.rows_of(x, 0, rows.tolist())


def states_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return input, states before (none where none were given) and after of a call of one of torch's cells."""
    x = args[0] if args else kwargs["input"]
    given = args[1] if len(args) > 1 else kwargs.get("hx")
    return x, tupled(given), tupled(output)


def open_sequence(target: Target, after: tuple[Tensor, ...], samples: int | None) -> CellSequence:
    """Begin a sequence with its first call."""
    unbatched = after[0].dim() == 1
    batch = 1 if unbatched else after[0].shape[0]
    chosen = sampled_rows(batch, samples)
    rows = torch.tensor(chosen if chosen is not None else range(batch))
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    values = [getattr(target.module, name) for name in names]
    weights = Weights(*(None if value is None else host.weight(value) for value in values))  # type: ignore[arg-type]
    return CellSequence(target=target, rows=rows, weights=weights, unbatched=unbatched)
