"""Cells called once per timestep: autograd itself delivers the total derivative of every h_t and c_t.

Calls of a cell are joined to sequences by following the state: a call continues a sequence when the state it was given
was computed from that sequence's last one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscope.adjoint import CELLS, Adjoints, Order, Weights
from gradscope.capture.calls.fused import CannotRecordError, ancestors
from gradscope.capture.calls.views import behind_view
from gradscope.capture.layers.discovery import Target
from gradscope.capture.layers.rows import sampled_rows

if TYPE_CHECKING:
    from gradscope.capture.calls.watcher import Listener

# How far back through the graph a state is followed to the call it came from (masking, dropout, normalisation).
_LINK_DEPTH = 64


@dataclass
class Step:
    """What one call of a cell left: detached rows of its input, states before and after."""

    x: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


@dataclass(eq=False)
class Chain:
    """One sequence of calls of one cell."""

    target: Target
    use: int
    rows: Tensor
    weights: Weights | None
    carry_only: bool = False
    steps: list[Step] = field(default_factory=list)
    tail: Any = None
    gradients: dict[int, dict[tuple[int, int], Tensor]] = field(default_factory=dict)

    def adjoints(self, task: int, dtype: torch.dtype, scale: float) -> Adjoints:
        """Stack what arrived in backward pass ``task`` and derive what follows from it step by step."""
        arrived = self.gradients.pop(task)
        hidden = self._stack(arrived, 0, dtype) / scale
        order = Order(len(self.steps), hidden.shape[1], None, reverse=False)
        states = len(self.steps[0].after)
        cell = self._stack(arrived, 1, dtype) / scale if states > 1 else None
        if self.weights is None:
            return Adjoints(order, hidden, cell=cell)
        equations = CELLS[self.target.mode]
        trajectory = equations.at(
            torch.stack([step.x for step in self.steps]).to(dtype),
            torch.stack([step.after[0] for step in self.steps]).to(dtype),
            torch.stack([step.before[0] for step in self.steps]).to(dtype),
            torch.stack([step.before[1] for step in self.steps]).to(dtype) if states > 1 else None,
            self.weights.to(dtype),
        )
        carry = None
        through = equations.through_output(trajectory, hidden)
        if through is not None and cell is not None:
            # Where one fused node makes h_t and c_t (CUDA), what reaches c_t leaves out the way through h_t.
            carry, cell = (cell, cell + through) if self.carry_only else (cell - through, cell)
        gates, gates_hh = equations.local(trajectory, hidden, cell)
        weights = self.weights.to(dtype)
        found = Adjoints(order, hidden, None, trajectory, weights, gates, gates_hh, cell, carry)
        found.initial_hidden, found.initial_cell = equations.initial(trajectory, weights, hidden, carry)
        return found

    def _stack(self, arrived: dict[tuple[int, int], Tensor], state: int, dtype: torch.dtype) -> Tensor:
        zero = torch.zeros_like(self.steps[0].after[state], dtype=dtype)
        return torch.stack(
            [arrived[t, state].to(dtype) if (t, state) in arrived else zero for t in range(len(self.steps))]
        )


class Chains:
    """All sequences under way in the step being recorded."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        # Owned here, and only weakly by the hooks: a chain knows its last node, and a node must not own itself.
        self._open: dict[str, list[Chain]] = {}

    def clear(self) -> None:
        """Forget every sequence."""
        self._open.clear()

    def observe(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take one call of a cell."""
        x = args[0] if args else next(iter(kwargs.values()))
        given = _given_state(args, kwargs)
        after = _new_state(given, output)
        watched = [(i, state) for i, state in enumerate(after) if state.requires_grad]
        if not watched:
            raise CannotRecordError("its state requires no gradient (everything before it is frozen, or no_grad)")
        chain = self._continued(target, given)
        if chain is None:
            chain = self._begin(target, after)
        before = given if len(given) == len(after) else tuple(torch.zeros_like(state) for state in after)
        take = _Rows(chain.rows, unbatched=after[0].dim() == 1)
        chain.steps.append(Step(take(x), tuple(map(take, before)), tuple(map(take, after))))
        chain.tail = [behind_view(state).tensor.grad_fn for _, state in watched]
        for i, state in watched:
            _watch(chain, len(chain.steps) - 1, i, state, take, self._listener)

    def _continued(self, target: Target, given: tuple[Tensor, ...]) -> Chain | None:
        chains = self._open.get(target.path, [])
        nodes = [state.grad_fn for state in given if state.grad_fn is not None]
        if not nodes or not chains:
            return None
        tails = {node: chain for chain in chains for node in chain.tail}
        return next((tails[node] for node in ancestors(nodes, _LINK_DEPTH) if node in tails), None)

    def _begin(self, target: Target, after: tuple[Tensor, ...]) -> Chain:
        batch = 1 if after[0].dim() == 1 else after[0].shape[0]
        chosen = sampled_rows(batch, self._listener.samples)
        rows = torch.tensor(chosen if chosen is not None else range(batch), device=after[0].device)
        nodes = [behind_view(state).tensor.grad_fn for state in after]
        fused = len(nodes) > 1 and nodes[0] is not None and nodes[0] is nodes[1]
        chain = Chain(target, self._listener.opened(target), rows, _cell_weights(target), carry_only=fused)
        self._open.setdefault(target.path, []).append(chain)
        return chain


class _Rows:
    """Copy the sampled rows of a (B, N) or (N,) tensor, detached."""

    def __init__(self, rows: Tensor, unbatched: bool) -> None:
        self.rows, self.unbatched = rows, unbatched

    def __call__(self, x: Tensor) -> Tensor:
        x = x.detach()
        return x[None].clone() if self.unbatched else x.index_select(0, self.rows)


def _watch(chain: Chain, t: int, state: int, tensor: Tensor, take: _Rows, listener: Listener) -> None:
    behind = behind_view(tensor)
    held, place, layout = weakref.ref(chain), behind.tensor.output_nr, behind.layout

    def prehook(gradients: tuple[Tensor | None, ...]) -> None:
        chain, gradient = held(), gradients[place]
        if chain is None or gradient is None:
            return
        task = torch._C._current_graph_task_id()
        if task not in chain.gradients:
            chain.gradients[task] = {}
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: _finish(chain, task, listener))
        with torch.no_grad():
            chain.gradients[task][t, state] = take(layout(gradient))

    assert behind.tensor.grad_fn is not None
    behind.tensor.grad_fn.register_prehook(prehook)


def _finish(chain: Chain, task: int, listener: Listener) -> None:
    try:
        with torch.no_grad():
            adjoints = chain.adjoints(task, torch.float64, listener.loss_scale())
            for info in chain.target.sites:
                listener.measured(chain.target, chain.use, info.site, adjoints, chain.rows, 0)
    except Exception as error:
        listener.failed(chain.target, error)


def _given_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    given = args[1] if len(args) > 1 else next((v for k, v in kwargs.items() if k not in ("input", "x")), None)
    return _tensors(given)


def _new_state(given: tuple[Tensor, ...], output: Any) -> tuple[Tensor, ...]:
    """Find the new state in what a cell returned: ``h``, ``(h, c)``, ``(output, h)`` or ``(output, (h, c))``."""
    if isinstance(output, Tensor):
        return (output,)
    if not isinstance(output, tuple | list) or not output:
        raise CannotRecordError(f"it returned a {type(output).__name__}, in which no state was found")
    if isinstance(output[-1], tuple | list):
        return _tensors(output[-1])
    flat = _tensors(output)
    return flat[-1:] if len(given) == 1 and len(flat) > 1 else flat[:2]


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, Tensor):
        return (value,)
    return tuple(v for v in value if isinstance(v, Tensor)) if isinstance(value, tuple | list) else ()


def _cell_weights(target: Target) -> Weights | None:
    if target.mode not in CELLS:
        return None
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    values = [getattr(target.module, name) for name in names]
    return Weights(*(None if value is None else value.detach() for value in values))  # type: ignore[arg-type]
