"""Gate activations that the CPU's fused LSTM kernel keeps for its own backward pass (oneDNN).

Taking them saves most of what a replay costs, but their place in the kernel's workspace is its private matter. So they
are found by the shape of the graph, compared with gates computed anew when a layer of that size is first seen, and left
alone at the first surprise: the replay computes them all again then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Kept, StackCall, Weights
from gradscope.adjoint.lstm import LSTMCell
from gradscope.capture.rows import Selection

_NODE = "MkldnnRnnLayerBackward0"

# Gates lie between -1 and 1; a wrong layout is off by far more, the kernel's own rounding by far less.
_TOLERANCE = 1e-4

# oneDNN rounds a row of gates up to this many floats, and keeps rows from following each other at multiples of 256.
_ALIGNMENT, _STRIDE_TO_AVOID = 16, 256

# Sizes at which the layout was seen to be as expected, and those at which it was not.
_layouts: dict[tuple[Any, ...], bool] = {}


def kept_gates(
    module: nn.RNNBase, call: StackCall, output: Tensor, selection: Selection
) -> tuple[tuple[Kept, ...], ...] | None:
    """Return what the kernel kept of every layer and direction, rows selected; None where it cannot be relied on.

    To be called before the backward pass, which frees it.
    """
    if module.mode != "LSTM" or output.dtype != torch.float32 or output.device.type != "cpu" or selection.unbatched:
        return None
    if selection.gather is not None or _saving_is_hooked():
        return None
    try:
        nodes = _nodes(output.grad_fn, len(call.weights), call.directions)
        if nodes is None:
            return None
        kept = tuple(tuple(_of_node(node, selection) for node in layer) for layer in nodes)
        trusted = all(
            _layout_known(node, site, weights, selection)
            for at_layer in zip(nodes, kept, call.weights, strict=True)
            for node, site, weights in zip(*at_layer, strict=True)
        )
    except (AttributeError, RuntimeError, IndexError, ValueError):  # another torch, another graph
        return None
    return kept if trusted else None


def _saving_is_hooked() -> bool:
    """Whether reading a saved tensor would run somebody's code (checkpointing, offloading)."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def _nodes(end: Any, layers: int, directions: int) -> list[list[Any]] | None:
    """Find the node of every layer and direction, from the top down along the edge of the input."""
    found: list[list[Any]] = []
    for _ in range(layers):
        end = _below(end)
        at_layer = [node for node, _ in end.next_functions] if directions == 2 and end is not None else [end]
        if len(at_layer) != directions or any(node is None or node.name() != _NODE for node in at_layer):
            return None
        if [node._saved_reverse for node in at_layer] != [False, True][:directions]:
            return None
        found.append(at_layer)
        end = at_layer[0].next_functions[0][0]
    return found[::-1]


def _below(node: Any) -> Any:
    """Pass over what stands between the layers and changes no state: a transposition, a dropout."""
    while node is not None and node.name().startswith(("Transpose", "Mul", "NativeDropout")):
        node = node.next_functions[0][0]
    return node


def _of_node(node: Any, selection: Selection) -> Kept:
    output = node._saved_result0.detach()
    steps, batch, size = output.shape
    stride = -(-4 * size // _ALIGNMENT) * _ALIGNMENT
    if stride % _STRIDE_TO_AVOID == 0:
        stride += _ALIGNMENT
    rows = node._saved_result3.view(torch.float32)[: steps * batch * stride].view(steps * batch, stride)
    if not selection.every_row:
        # One flat axis: along the middle one of three, index_select takes ten times as long.
        wanted = torch.arange(0, steps * batch, batch)[:, None] + selection.rows
        rows, output = rows.index_select(0, wanted.flatten()), output.index_select(1, selection.rows)
    return Kept(output, rows[:, : 4 * size].view(steps, -1, 4, size))


def _layout_known(node: Any, kept: Kept, weights: Weights, selection: Selection) -> bool:
    shape, workspace = node._saved_input.shape, node._saved_result3.numel()
    how = node._saved_train, node._saved_reverse, node._saved_has_biases
    key = (*shape, kept.gates.shape[3], workspace, *how)
    if key not in _layouts:
        _layouts[key] = _agrees(node, kept, weights, selection)
    return _layouts[key]


def _agrees(node: Any, kept: Kept, weights: Weights, selection: Selection) -> bool:
    """Compare the gates at the first, middle and last timestep with new ones."""
    x, h0 = node._saved_input.detach(), node._saved_hx_.detach()
    steps, size = len(x), kept.gates.shape[3]
    processed = torch.tensor(sorted({0, steps // 2, steps - 1}))
    reverse = node._saved_reverse
    time = steps - 1 - processed if reverse else processed
    before = time + 1 if reverse else time - 1
    inside = (before >= 0) & (before < steps)
    previous = kept.output[before.clamp(0, steps - 1)]
    previous = torch.where(inside[:, None, None], previous, h0[selection.rows])
    anew = LSTMCell.gates(x[time][:, selection.rows], previous, weights, size)
    return bool(torch.isclose(kept.gates[processed], anew, rtol=0, atol=_TOLERANCE, equal_nan=True).all())
