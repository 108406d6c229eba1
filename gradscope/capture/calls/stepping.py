"""A fused layer called one timestep at a time, as decoders are: what a call leaves, at the least price.

The first call of a sequence is looked at like any other. Those that go on from it share its rows and weights, so little
is left to do a hundred times a step. What arrives at a call of one timestep is total, so that nothing is replayed.

Where one node makes all that a call returns (oneDNN's LSTM), that node keeps what the equations need, in the very
values that autograd goes on with, and gives it when the gradients arrive: then nothing is copied at the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import CELLS, Adjoints, Keep, Order, StackCall, Trajectory, Weights
from gradscope.adjoint.cells.lstm import LSTMCell
from gradscope.adjoint.known import from_totals
from gradscope.adjoint.walk import BLOCK
from gradscope.capture.calls.blocks import Blocks
from gradscope.capture.calls.fused import FusedCall, left_float32, returned_by
from gradscope.capture.calls.kept_gates import NODE, gates_in, key_of, mistaken, width_of
from gradscope.capture.calls.prehook import CannotRecordError
from gradscope.capture.host import brought
from gradscope.capture.layers.rows import Selection


class NextStep:
    """A call of one timestep that goes on from another.

    Attributes
    ----------
    first : FusedCall
        The call that the sequence began with.
    input, output, h0, c0 : Tensor or None
        As in :class:`~gradscope.adjoint.StackCall`; all None where a node gives them in the backward pass.
    """

    __slots__ = ("c0", "first", "h0", "input", "output")
    steps = 1
    step_nodes = None

    def __init__(self, first: FusedCall) -> None:
        self.first = first
        self.input: Tensor | None = None
        self.output: Tensor | None = None
        self.h0: Tensor | None = None
        self.c0: Tensor | None = None

    def copy(self, x: Tensor, given: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the sampled rows of what the call was given and returned."""
        rows = self.selection
        self.input, self.output = rows.sequence(x.detach()), rows.sequence(output.detach())
        self.h0, self.c0 = (*(rows.state(state.detach()) for state in given), None)[:2]

    @property
    def call(self) -> StackCall:
        assert self.input is not None
        assert self.output is not None
        assert self.h0 is not None
        return replace(self.first.call, input=self.input, output=self.output, h0=self.h0, c0=self.c0, kept=None)

    @property
    def selection(self) -> Selection:
        return self.first.selection

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def rows_of(self, name: str, gradient: Tensor) -> Tensor:
        """Take the sampled rows out of the gradient of the output, h_n or c_n."""
        return self.first.rows_of(name, gradient)


def origin_of(call: FusedCall | NextStep) -> FusedCall:
    """Return the call that a call of one timestep goes on from in the end, or itself."""
    return call.first if isinstance(call, NextStep) else call


OTHER_WEIGHTS = "its weights are other ones from one call of its sequence to the next (dropped anew at each?)"


def same_weights(module: nn.RNNBase, call: FusedCall | NextStep) -> bool:
    """Whether a module has the weights of an earlier call: the very tensors, or such as are computed anew each time."""
    weights, then = module._flat_weights, origin_of(call).parameters
    pairs = [*zip(weights, then, strict=False)]
    return len(weights) == len(then) and all(a is b or bool(torch.equal(brought(a), brought(b))) for a, b in pairs)  # type: ignore[arg-type]


def next_step(
    like: FusedCall | NextStep | None, module: nn.RNNBase, x: Any, given: tuple[Tensor, ...], output: Any
) -> tuple[NextStep, dict[str, Tensor]] | None:
    """Take a call that goes on from ``like``; None where it is to be looked at like a first one.

    Returns the call and the output tensors that carry gradient, as :func:`~gradscope.capture.calls.fused.open_call`.
    """
    if like is None or like.steps != 1 or not isinstance(x, Tensor) or x.shape != like.shape:
        return None
    if module.num_layers > 1 and module.dropout and module.training:
        return None  # its masks have to be drawn again
    first = origin_of(like)
    weights = module._flat_weights
    if len(weights) != len(first.parameters) or not all(map(is_, weights, first.parameters)):
        return None
    watched = {name: value for name, value in returned_by(output).items() if value.requires_grad}
    return (NextStep(first), watched) if len(watched) == 1 + len(given) else None


def made_by_node(
    first: FusedCall, ends: Mapping[tuple[int, int], int], module: nn.RNNBase, args: tuple[Any, ...], output: Any
) -> tuple[Any, dict[tuple[int, int], int], tuple[tuple[Any, int], ...]] | None:
    """Look at a call of one timestep with as little as possible, where one node makes all that it returns.

    Returns that node, the places of what was returned in the graph, and of the states that were given; None where the
    call does not go on from the very states, ``ends``, that the one before has left, or not in the same way.
    """
    if len(args) != 2 or len(first.call.weights) > 1 or not isinstance(output[1], tuple):
        return None
    (x, given), (whole, finals) = args, output
    weights = module._flat_weights
    if not isinstance(given, tuple) or not isinstance(x, Tensor) or x.shape != first.shape:
        return None
    if len(weights) != len(first.parameters) or not all(map(is_, weights, first.parameters)):
        return None
    edges = []
    for slot, state in enumerate(given, start=1):
        before = state.grad_fn
        if before is None or ends.get((before._sequence_nr(), state.output_nr)) != slot:
            return None
        edges.append((before, state.output_nr))
    made = whole._base if whole._is_view() else whole
    node = None if made is None else made.grad_fn
    if node is None or node.name() != NODE:
        return None
    number = node._sequence_nr()
    places = {(number, 0): 0, (number, 1): 1, (number, 2): 2, (whole.grad_fn._sequence_nr(), whole.output_nr): 0}
    for slot, final in enumerate(finals, start=1):
        places[final.grad_fn._sequence_nr(), final.output_nr] = slot
    return node, places, tuple(edges)


_Rows = dict[str, Tensor]


class Arrived:
    """What arrives at single nodes of a sequence's calls in one backward pass, and what the nodes keep, rows selected.

    Parameters
    ----------
    selection : Selection
    calls : int
        How many there are.
    """

    def __init__(self, selection: Selection, calls: int) -> None:
        self._blocks = Blocks(selection.rows, calls)
        self._calls = calls
        self._key: tuple[Any, ...] = ()
        self._width = 0

    def take(self, position: int, gradients: tuple[Tensor | None, ...], node: Any) -> None:
        """Take the gradients that have arrived at the node of a call, and what the node keeps."""
        if not self._key:
            self._key, self._width = key_of(node), width_of(node)
            self._read = partial(gates_in, width=self._width)
        add = self._blocks.add
        for name, gradient in zip(_ARRIVING, gradients, strict=False):
            if gradient is not None:
                add(name, position, gradient)
        add("c0", position, node._saved_cx_)
        if self._width:
            add("gates", position, node._saved_result3, self._read)
        else:
            add("input", position, node._saved_input)
            add("h0", position, node._saved_hx_)

    def rows(self, positions: list[int]) -> dict[str, Tensor]:
        """Return it by name, (n, b, N), of the calls at these positions; 0 where nothing arrived.

        Raises
        ------
        CannotRecordError
            What was taken for gates is none.
        """
        found, c0 = {}, self._blocks.get("c0")
        assert c0 is not None
        for name in (*_ARRIVING, "c0", *(("gates",) if self._width else ("input", "h0"))):
            values = self._blocks.get(name)
            values = torch.zeros_like(c0) if values is None else values
            if name == "gates":
                values = values[..., : 4 * c0.shape[-1]].unflatten(-1, (4, -1))
                self._check(values, c0)
            found[name] = values if len(positions) == self._calls else values[positions]
        return found

    def _check(self, gates: Tensor, c0: Tensor) -> None:
        """See whether c_t = f c_{t−1} + i g goes on with what the next call was given, at a few calls."""
        seen = self._blocks.at("c0")
        pairs = [(t, t + 1) for t in sorted(seen)[:: max(1, len(seen) // _CHECKED)] if t + 1 in seen]
        if not pairs:
            return
        here, there = map(list, zip(*pairs, strict=True))
        i, f, g, _ = gates[here].unbind(2)
        off = (torch.addcmul(i * g, f, c0[here]) - c0[there]).abs().amax((1, 2)) > _TOLERANCE
        # A state may be edited between two calls; gates that are none are so at every call.
        if int(off.sum()) > len(off) // 2:
            mistaken(self._key)
            raise CannotRecordError("what its kernel keeps was not as it had been found; the next step is recorded")


# Gates lie between -1 and 1; so many calls are looked at.
_TOLERANCE, _CHECKED = 1e-3, 5

# What arrives at the node of a call.
_ARRIVING = ("grad_output", "grad_hn", "grad_cn")


Calls = Mapping[int, FusedCall | NextStep]


def known_by_step(call: StackCall) -> bool:
    """Whether the adjoints of calls like this, of one timestep each, follow from what arrives at them."""
    return len(call.weights) == len(call.weights[0]) == 1 and call.weights[0][0].w_hr is None


def rows_of(calls: Calls, gradients: Mapping[Any, Tensor], nodes: Arrived | None) -> dict[str, Tensor]:
    """Put in a row what the calls were given and returned, and what arrived at them, (T, b, N) by name.

    ``calls`` by position, in order; ``gradients`` are those that arrived one by one, by position and name.
    """
    kept = {i: call.call for i, call in calls.items() if not isinstance(call, NextStep) or call.input is not None}
    if not kept:
        assert nodes is not None
        return nodes.rows([*calls])
    first = next(iter(kept.values()))
    nothing, found = torch.zeros_like(first.output), {}
    for name in _ARRIVING[: 2 if first.c0 is None else 3]:
        found[name] = torch.cat([gradients.get((i, name), nothing) for i in kept])
    for name in ("input", "output", "h0", *(() if first.c0 is None else ("c0",))):
        found[name] = torch.cat([getattr(call, name) for call in kept.values()])
    if nodes is None:
        return found
    whole = nodes.rows([*calls])
    if "gates" in whole:
        weights = first.weights[0][0].to(first.output.dtype)
        found["gates"] = LSTMCell.gates(found["input"], found["h0"], weights, found["h0"].shape[2])
    there = [*calls]
    for name, values in whole.items():
        values[[there.index(i) for i in kept]] = found[name]
    return whole


def adjoints_of_steps(
    first: StackCall, rows: dict[str, Tensor], scale: float, precise: bool, keep: Keep, ends: bool = True
) -> Adjoints:
    """Return the adjoints of calls of one timestep each, in a row.

    What arrives at output and h_n of a call is together ∂L/∂h_t, total; at c_n it is ∂L/∂c_t with h_t held fixed.
    ``ends``: whether nothing follows, so that what arrives at the last h_n and c_n comes from above.
    """
    if not precise and first.output.dtype != torch.float64:
        found = _adjoints(torch.float32, first, rows, scale, keep, ends)
        if not left_float32(found):
            return found
    return _adjoints(torch.float64, first, rows, scale, keep, ends)


def _adjoints(
    dtype: torch.dtype, first: StackCall, rows: dict[str, Tensor], scale: float, keep: Keep, ends: bool
) -> Adjoints:
    def of(name: str) -> Tensor:
        values = rows[name]
        return (values if scale == 1.0 or not name.startswith("grad") else values.double() / scale).to(dtype)

    direct, through = of("grad_output"), of("grad_hn")
    hidden, weights = direct + through, first.weights[0][0].to(dtype)
    carry = of("grad_cn") if "grad_cn" in rows else None
    steps, batch = hidden.shape[:2]
    block, parts = steps if keep.gates else BLOCK, []
    for low in range(0, steps, block):
        here = slice(low, min(low + block, steps))
        trajectory = _trajectory(first.mode, {n: v[here].to(dtype) for n, v in rows.items() if n in _GIVEN}, weights)
        wanted = replace(keep, begins=keep.begins if low == 0 else 0)
        order, cell = Order(here.stop - low, batch, None, reverse=False), None if carry is None else carry[here]
        parts.append(from_totals(first.mode, trajectory, weights, order, hidden[here], cell, True, wanted))
    found = parts[0]
    if len(parts) > 1:
        found.order, found.hidden = Order(steps, batch, None, reverse=False), hidden
        for name in ("cell", "input_gradient"):
            if getattr(found, name) is not None:
                setattr(found, name, torch.cat([getattr(part, name) for part in parts]))
    found.direct = direct
    if ends:
        found.direct = torch.cat((direct[:-1], hidden[-1:]))
        if carry is not None and bool(carry[-1].any()):
            found.direct_cell = torch.zeros_like(carry)
            found.direct_cell[-1] = carry[-1]
    return found


def _trajectory(mode: str, given: Mapping[str, Tensor], weights: Weights) -> Trajectory:
    if "gates" in given:
        gates, c0 = given["gates"], given["c0"]
        return Trajectory(c0, None, gates, gates[:, :, 1] * c0 + gates[:, :, 0] * gates[:, :, 2], c0)
    output = given.get("output", given["h0"])  # of which nothing is wanted where it was not kept
    return CELLS[mode].at(given["input"], output, given["h0"], given.get("c0"), weights)


# What the calls were given and returned.
_GIVEN = ("input", "output", "h0", "c0", "gates")


def parts_of(whole: Adjoints) -> list[Adjoints]:
    """Return the adjoints of each step alone."""
    parts = []
    for t in range(whole.order.steps):
        values = {name: getattr(whole, name) for name in ("hidden", "direct", "cell", "input_gradient")}
        cut: dict[str, Any] = {name: None if value is None else value[t : t + 1] for name, value in values.items()}
        parts.append(replace(whole, order=Order(1, whole.order.batch, None, reverse=False), direct_cell=None, **cut))
    return parts
