"""Gate activations and cell states that the CPU's fused LSTM kernel keeps for its own backward pass (oneDNN).

Taking them saves most of what a replay costs, but their place in the kernel's workspace is its private matter. So what
is where it is expected is checked when a layer of that size is first seen, against gates computed anew, and left alone
at the first surprise: the replay computes everything again then.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Kept, StackCall, Weights
from gradscope.adjoint.cells.lstm import LSTMCell
from gradscope.capture.host import is_host
from gradscope.capture.layers.rows import Selection
from gradscope.capture.torch_private import saving_is_hooked

#: What oneDNN's LSTM is in the graph, a layer and direction a node.
NODE = "MkldnnRnnLayerBackward0"

# Gates lie between -1 and 1; a wrong layout is off by far more, the kernel's own rounding by far less.
_TOLERANCE = 1e-4

# oneDNN rounds a row up to this many floats, and keeps rows from following each other at multiples of 256; each array
# of a workspace begins at a page.
_ALIGNMENT, _STRIDE_TO_AVOID, _PAGE = 16, 256, 1024

# Timesteps that are looked at in every call.
_CHECKED = 5


@dataclass(frozen=True)
class _Layout:
    """Where things are in a workspace, in floats.

    Attributes
    ----------
    stride : int
        From the gates of one sequence to those of the next, (T, B) of them from the beginning.
    cell : int or None
        Beginning of the cell states, (T − 1, B, H) without gaps: the last is c_n. None where they are elsewhere.
    """

    stride: int
    cell: int | None


# What was found at each size; None where it was not as expected.
_layouts: OrderedDict[tuple[Any, ...], _Layout | None] = OrderedDict()

# Sizes whose gates were compared with new ones, but for the number of timesteps: at another one :func:`_fit` is enough.
_compared: OrderedDict[tuple[Any, ...], None] = OrderedDict()

# Sizes that are remembered.
_REMEMBERED = 64


def kept_gates(
    module: nn.RNNBase, call: StackCall, output: Tensor, selection: Selection
) -> tuple[tuple[Kept, ...], ...] | None:
    """Return what the kernel kept of every layer and direction, rows selected; None where it cannot be relied on.

    To be called before the backward pass, which frees it.
    """
    if module.mode != "LSTM" or output.dtype != torch.float32 or not is_host(output) or selection.unbatched:
        return None
    if selection.gather is not None or not selection.size or saving_is_hooked():
        return None
    try:
        nodes = _nodes(output.grad_fn, len(call.weights), call.directions)
        if nodes is None:
            return None
        kept = [
            [_of_node(node, weights, selection) for node, weights in zip(*at_layer, strict=True)]
            for at_layer in zip(nodes, call.weights, strict=True)
        ]
    except (AttributeError, RuntimeError, IndexError, ValueError):  # another torch, another graph
        return None
    found = tuple(tuple(site for site in layer if site is not None) for layer in kept)
    return found if all(len(layer) == call.directions for layer in found) else None


def key_of(node: Any) -> tuple[Any, ...]:
    """Return what the layout of a node's workspace depends on."""
    sizes = (node._saved_result3.numel() // 4, *node._saved_input.shape, node._saved_result0.shape[2])
    return (*sizes, node._saved_train, node._saved_reverse, node._saved_has_biases)


def _any_length(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what of a key stays where the number of timesteps is another one."""
    return key[2:]


def width_of(node: Any) -> int:
    """Return how far apart the gates of two sequences are in the workspace of a timestep's node; 0 where unknown."""
    layout = _layouts.get(key_of(node))
    return 0 if layout is None else layout.stride


def gates_in(workspace: Tensor, width: int) -> Tensor:
    """Return the gates of all sequences, (B, ``width``) and perhaps more, in the workspace of a call of one step."""
    floats = workspace.view(torch.float32)
    return floats[: len(floats) // width * width].view(-1, width)


def mistaken(key: tuple[Any, ...]) -> None:
    """Take note that gates were not where they had been found."""
    _layouts[key] = None


def _nodes(end: Any, layers: int, directions: int) -> list[list[Any]] | None:
    """Find the node of every layer and direction, from the top down along the edge of the input."""
    found: list[list[Any]] = []
    for _ in range(layers):
        end = _below(end)
        at_layer = [node for node, _ in end.next_functions] if directions == 2 and end is not None else [end]
        if len(at_layer) != directions or any(node is None or node.name() != NODE for node in at_layer):
            return None
        if [node._saved_reverse for node in at_layer] != [False, True][:directions]:
            return None
        found.append(at_layer)
        end = at_layer[0].next_functions[0][0]
    return found[::-1]


def _remember(where: OrderedDict[tuple[Any, ...], Any], key: tuple[Any, ...], value: _Layout | None) -> None:
    where[key] = value
    where.move_to_end(key)
    if len(where) > _REMEMBERED:
        where.popitem(last=False)


def _below(node: Any) -> Any:
    """Pass over what stands between the layers and changes no state: a transposition, a dropout."""
    while node is not None and node.name().startswith(("Transpose", "Mul", "NativeDropout")):
        node = node.next_functions[0][0]
    return node


def _of_node(node: Any, weights: Weights, selection: Selection) -> Kept | None:
    output = node._saved_result0.detach()
    workspace = node._saved_result3.view(torch.float32)
    key = key_of(node)
    if key not in _layouts:
        expected = _expected(node) if _any_length(key) in _compared else _compare(node, weights, workspace, output)
        _remember(_layouts, key, expected)
    output = output if selection.every_row else output.index_select(1, selection.rows)
    first, last = (output[-1], output[0]) if node._saved_reverse else (output[0], output[-1])
    for again in (False, True):
        if (layout := _layouts[key]) is None:
            return None
        gates, cell = _read(workspace, layout, node._saved_result0.shape, node._saved_result2.detach(), selection)
        if _fit(gates, cell, _rows_of_state(node._saved_cx_, selection), first, last):
            return Kept(output, gates, cell)
        _layouts[key] = None if again else _compare(node, weights, workspace, node._saved_result0.detach())
    return None


def _rows_of_state(state: Tensor, selection: Selection) -> Tensor:
    """Return the sampled rows of an initial state, (b, H)."""
    state = state.detach().reshape(-1, state.shape[-1])
    return state if selection.every_row else state.index_select(0, selection.rows)


def _fit(gates: Tensor, cell: Tensor | None, c0: Tensor, first: Tensor, last: Tensor) -> bool:
    """Whether gates and cell states are of one call, whose first and last processed output is (b, H).

    A cell state has to follow from the one before, and the output from the last that is known: looked at in a few
    timesteps, for what is of another call is so in all of them.
    """
    if cell is None:
        return _same(gates[0, :, 3] * _next_cell(gates[0], c0).tanh(), first)
    if not _same(gates[-1, :, 3] * cell[-1].tanh(), last):
        return False
    after = torch.linspace(0, len(cell) - 1, _CHECKED, device="cpu").long().unique()
    before = cell[(after - 1).clamp_min(0)]
    before[0] = c0
    return _same(cell[after].flatten(0, 1), _next_cell(gates[after].flatten(0, 1), before.flatten(0, 1)))


def _read(
    workspace: Tensor, layout: _Layout, shape: torch.Size, c_n: Tensor, selection: Selection | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return gates (T, b, 4, H) and cell states (T, b, H)."""
    steps, batch, size = shape
    gates = workspace[: steps * batch * layout.stride].view(steps * batch, layout.stride)
    cell = None
    if layout.cell is not None:
        cell = workspace[layout.cell : layout.cell + (steps - 1) * batch * size].view(steps - 1, batch, size)
        c_n = c_n.reshape(1, batch, size)
    if selection is not None and not selection.every_row:
        # Along one flat axis: along the middle one of three, index_select takes ten times as long.
        wanted = torch.arange(0, steps * batch, batch, device="cpu")[:, None] + selection.rows
        gates, c_n = gates.index_select(0, wanted.flatten()), c_n.index_select(-2, selection.rows)
        cell = None if cell is None else cell.index_select(1, selection.rows)
    return gates[:, : 4 * size].view(steps, -1, 4, size), None if cell is None else torch.cat((cell, c_n))


def _expected(node: Any) -> _Layout:
    """Return where gates and cell states are as oneDNN lays out a workspace."""
    (steps, batch, size), inputs = node._saved_result0.shape, node._saved_input.shape[2]
    if steps == 1:
        return _Layout(_row(4 * size), batch * _row(4 * size))  # there is no cell state but c_n
    # Gates; states below and above; outputs; and before the first cell state that is left, two that are given.
    place = _paged(steps * batch * _row(4 * size)) + _paged(2 * (steps + 1) * batch * _row(max(size, inputs)))
    return _Layout(_row(4 * size), place + _paged(steps * batch * _row(size)) + (steps + 2) * batch * size)


def _compare(node: Any, weights: Weights, workspace: Tensor, output: Tensor) -> _Layout | None:
    """Return the layout of a workspace; None unless the gates in it are those of the layer."""
    layout, c_n = _expected(node), node._saved_result2.detach()
    gates, _ = _read(workspace, replace(layout, cell=None), output.shape, c_n)
    if not _are_gates(gates, node, weights, output):
        return None
    _remember(_compared, _any_length(key_of(node)), None)
    c0, c_n = (state.reshape(output.shape[1:]) for state in (node._saved_cx_.detach(), c_n))
    return layout if _holds_cell(workspace[layout.cell :], gates, c0, c_n) else replace(layout, cell=None)


def _row(floats: int) -> int:
    floats = -(-floats // _ALIGNMENT) * _ALIGNMENT
    return floats + _ALIGNMENT if floats % _STRIDE_TO_AVOID == 0 else floats


def _paged(floats: int) -> int:
    return -(-floats // _PAGE) * _PAGE


def _are_gates(gates: Tensor, node: Any, weights: Weights, output: Tensor) -> bool:
    """Compare gates at the first, middle and last timestep with new ones."""
    x, h0, reverse = node._saved_input.detach(), node._saved_hx_.detach(), node._saved_reverse
    steps = len(x)
    processed = torch.tensor(sorted({0, steps // 2, steps - 1}), device="cpu")
    time = steps - 1 - processed if reverse else processed
    before = time + 1 if reverse else time - 1
    inside = (before >= 0) & (before < steps)
    previous = torch.where(inside[:, None, None], output[before.clamp(0, steps - 1)], h0)
    return _close(gates[processed], LSTMCell.gates(x[time], previous, weights, output.shape[2]))


def _holds_cell(part: Tensor, gates: Tensor, c0: Tensor, c_n: Tensor) -> bool:
    """Whether the cell states begin here: they follow from c0 by the gates, and end with c_n."""
    steps = len(gates)
    if len(part) < (steps - 1) * c0.numel():
        return False
    states = [c0, *part[: (steps - 1) * c0.numel()].view(steps - 1, *c0.shape).unbind(), c_n]
    # The first and the last steps, the middle one and the second: all of them would be another copy of everything.
    wanted = {0, 1, steps // 2, steps - 2, steps - 1} & {*range(steps)}
    return all(_close(states[t + 1], _next_cell(gates[t], states[t])) for t in wanted)


def _next_cell(gates: Tensor, before: Tensor) -> Tensor:
    i, f, g, _ = gates.unbind(1)
    return f * before + i * g


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool(torch.isclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True).all())


def _same(found: Tensor, expected: Tensor) -> bool:
    """The same for what is expected to be close: a look at the largest difference first."""
    return float((found - expected).abs_().max()) <= _TOLERANCE or _close(found, expected)
