"""``nn.RNNCell``, ``nn.LSTMCell`` and ``nn.GRUCell``: autograd itself delivers the total derivative of h_t and c_t.

Calls are joined to sequences by following the state. What a cell is not told by its class, but by data flow, is in
``found``: here the equations are known, so that gates and weights can be had as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscope.adjoint import CELLS, Adjoints, Keep, Order, Trajectory, Weights
from gradscope.adjoint.known import from_totals
from gradscope.adjoint.types import KEEP_GATES
from gradscope.capture import host
from gradscope.capture.calls.blocks import Blocks
from gradscope.capture.calls.fused import left_float32
from gradscope.capture.calls.lineage import tupled
from gradscope.capture.calls.prehook import CannotRecordError
from gradscope.capture.calls.sequence import Line
from gradscope.capture.layers.discovery import Target
from gradscope.capture.layers.rows import sampled_rows

REORDERED = "the rows of its batch change between two steps in a way that cannot be followed (reordered, or added)"

PARTED = "one state of it is handed to several calls: its recurrence is followed by data flow, without its gates"

UNLIKE = "torch runs some of its calls in this step in another way than the first"

IN_PART = "the pass was asked for the gradients of some tensors only, and did not go through its gates"

FROZEN = "its state requires no gradient (everything before it is frozen, or no_grad)"


#: Which state of a cell arrives at a node, and in place of one: the adjoints of the gates.
GATES = -1

# From the node that makes h_t, the way to the one at which the adjoints of the gates arrive; and what is on it.
_TO_GATES = {
    "RNN_TANH": ((0,), ("TanhBackward0", "AddBackward0")),
    "RNN_RELU": ((0,), ("ReluBackward0", "AddBackward0")),
    "GRU": ((1, 0, 0, 0), ("AddBackward0", "TanhBackward0", "AddBackward0", "UnsafeSplitBackward0", "AddmmBackward0")),
    "LSTM": ((0, 0, 0), ("MulBackward0", "SigmoidBackward0", "UnsafeSplitBackward0", "AddBackward0")),
}


def gate_node(mode: str, hidden: Tensor) -> Any:
    """Return the node at which the adjoints of a cell's gates arrive (of GRU's, those of W_ih x + b_ih).

    None where the CPU's kernel is not the one that unrolls a step so.
    """
    node = hidden.grad_fn
    way, names = _TO_GATES.get(mode, ((), ("",)))
    for name, place in zip(names, (*way, None), strict=True):
        if node is None or node.name() != name:
            return None
        if place is not None:
            node = node.next_functions[place][0]
    return node


def multiplies(node: Any, weight: object) -> bool:
    """Whether a product with ``weight`` is what a node makes, or a part of it."""
    parts = [node] if node.name() == "AddmmBackward0" else [part for part, _ in node.next_functions]
    factors = [factor for part in parts if part is not None for factor, _ in part.next_functions]
    leaves = [leaf for factor in factors if factor is not None for leaf, _ in factor.next_functions]
    return any(getattr(leaf, "variable", None) is weight for leaf in leaves)


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
    seen : bool
        Whether the adjoints of the gates arrive by themselves: but for the first, nothing is kept of the calls then.
    """

    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    weights: Weights | None = None
    unbatched: bool = False
    carry_only: bool = False
    seen: bool = False
    calls: list[Step | None] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, x: Tensor, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        """Take one more call; ``before`` is empty where it was given no state."""
        batch = 1 if self.unbatched else after[0].shape[0]
        if self.batches and batch > self.batches[-1]:
            self.unfollowed = REORDERED
        self.batches.append(batch)
        if self.seen and self.calls:
            self.calls.append(None)
        else:
            before = before or tuple(torch.zeros(state.shape, dtype=state.dtype, device="cpu") for state in after)
            self.calls.append(Step(self._of(x), tuple(map(self._of, before)), tuple(map(self._of, after))))

    def _of(self, x: Tensor) -> Tensor:
        """Copy the sampled rows of a (B, N) or (N,) tensor, detached."""
        x = x.detach()
        if self.unbatched:
            return x.reshape(1, -1).clone() if host.is_host(x) else host.begun(x)[None]
        rows = self.rows if self.batches[-1] == self.batches[0] else self.rows[self.rows < self.batches[-1]]
        return _rows_of(x, rows)

    def take(self, task: int, name: tuple[int, int], gradient: Tensor) -> None:
        """Keep the sampled rows of the gradient of a state, ``(timestep, state)``, or of the gates."""
        self.tasks.add(task)
        held = self.gradients[task]
        if not held:
            held[None] = Blocks(self.rows, len(self.calls))
        held[None].add(name[1], name[0], gradient)

    def adjoints(self, task: int, scale: float, precise: bool = True, keep: Keep = KEEP_GATES) -> Adjoints:
        """Return what arrived in backward pass ``task``, and what follows from it step by step.

        Unless ``precise``, what follows is computed in a float32 cell's own type, as far as its range goes.

        Raises
        ------
        CannotRecordError
            The rows of the batch cannot be followed.
        """
        arrived: Blocks = self.gradients.pop(task)[None]
        if self.unfollowed:
            raise CannotRecordError(self.unfollowed)
        state = self._first.after[0]
        if not precise and state.dtype == torch.float32:
            found = self._in(torch.float32, arrived, scale, keep)
            if not left_float32(found):
                return found
        return self._in(torch.float64, arrived, scale, keep)

    @property
    def _first(self) -> Step:
        assert self.calls[0] is not None
        return self.calls[0]

    def _in(self, dtype: torch.dtype, arrived: Blocks, scale: float, keep: Keep) -> Adjoints:
        def of(which: int) -> Tensor:
            values = arrived.get(which)
            if values is None:
                values = self._first.after[which].new_zeros(len(self.calls), *self._first.after[which].shape)
            return (values if scale == 1.0 else values.double() / scale).to(dtype)

        lengths = None
        if self.batches[-1] != self.batches[0]:
            lengths = (self.rows < torch.tensor(self.batches, device="cpu")[:, None]).sum(0)
        order = Order(self.steps, len(self.rows), lengths, reverse=False)
        hidden, cell = of(0), of(1) if len(self._first.after) > 1 else None
        if self.weights is None or self.target is None:
            return Adjoints(order, hidden, cell=cell)
        mode, weights = self.target.mode, self.weights.to(dtype)
        if not self.seen:
            trajectory = self._trajectory(self.calls, dtype, weights)
            return from_totals(mode, trajectory, weights, order, hidden, cell, self.carry_only, keep)
        first = self._trajectory(self.calls[:1], dtype, weights)
        begin = Order(1, len(self.rows), None, reverse=False), hidden[:1], None if cell is None else cell[:1]
        found = from_totals(mode, first, weights, *begin, self.carry_only, Keep(gates=False))
        found.order, found.hidden, found.cell = order, hidden, cell
        if keep.input and self.gates_arrived(arrived):
            found.input_gradient = torch.matmul(of(GATES), weights.w_ih)
        return found

    def gates_arrived(self, arrived: Blocks) -> bool:
        """Whether the adjoints of the gates arrived wherever those of a state did: not a part of a pass."""
        return arrived.at(GATES) >= arrived.at(0) | arrived.at(1)

    def _trajectory(self, steps: list[Step | None], dtype: torch.dtype, weights: Weights) -> Trajectory:
        assert self.target is not None
        kept = [step for step in steps if step is not None]
        return CELLS[self.target.mode].at(
            self._rows([step.x for step in kept], dtype),
            self._rows([step.after[0] for step in kept], dtype),
            self._rows([step.before[0] for step in kept], dtype),
            None if len(kept[0].before) < 2 else self._rows([step.before[1] for step in kept], dtype),
            weights,
        )

    def _rows(self, steps: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Stack (b, N) of every step to (T, b, N), 0 where rows are gone."""
        most = len(steps[0])
        padded = [s if len(s) == most else torch.cat((s, s.new_zeros(most - len(s), *s.shape[1:]))) for s in steps]
        return torch.stack(padded).to(dtype)


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
    rows = torch.tensor(chosen if chosen is not None else range(batch), device="cpu")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    values = [getattr(target.module, name) for name in names]
    weights = Weights(*(None if value is None else host.weight(value) for value in values))  # type: ignore[arg-type]
    return CellSequence(target=target, rows=rows, weights=weights, unbatched=unbatched)
