"""Adjoints of a whole fused module: layers and directions, chained from the top down.

The output of the top layer is known; those of lower layers are recomputed under ``no_grad`` with the same fused
kernel, one layer and direction at a time. The input gradient of a layer is the direct gradient of the one below.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradscope.adjoint.cells import CELLS
from gradscope.adjoint.cells.cell import shifted
from gradscope.adjoint.cells.lstm import LSTMCell
from gradscope.adjoint.order import Order
from gradscope.adjoint.types import KEEP_GATES, Adjoints, GateClip, Keep, Trajectory, Weights
from gradscope.adjoint.walk import BLOCK


@dataclass(frozen=True)
class Kept:
    """What an LSTM kernel kept of one layer and direction, so that it need not be computed again.

    Attributes
    ----------
    output : Tensor, shape (T, B, H)
        In input time order.
    gates : Tensor, shape (T, B, 4, H)
        Gate activations, in processing order.
    cell : Tensor of shape (T, B, H) or None
        Cell states, in processing order.
    """

    output: Tensor
    gates: Tensor
    cell: Tensor | None = None


@dataclass(frozen=True)
class StackCall:
    """One forward pass of a fused module, detached, and the gradients that reached it.

    All time axes come first and run in input time order; rows may be a subset of the batch, for sequences do not mix.

    Attributes
    ----------
    mode : str
        ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU``.
    weights : tuple of tuple of Weights
        ``weights[layer][direction]``.
    input : Tensor, shape (T, B, I)
    output : Tensor, shape (T, B, D·P)
    h0 : Tensor, shape (layers·D, B, P)
    c0 : Tensor of shape (layers·D, B, H) or None
    lengths : Tensor of int64, shape (B,), or None
        None when every sequence has T steps.
    masks : tuple of Tensor of shape (T, B, D·P) or None
        Dropout multipliers between layer l and l+1, as they were drawn; None without dropout.
    grad_output, grad_hn, grad_cn : Tensor or None
        Direct gradients, shaped like ``output``, ``h0`` and ``c0``; None where no gradient arrived.
    kept : tuple of tuple of Kept, or None
        ``kept[layer][direction]``, in the type of the kernel; None where layers and gates are to be computed again.
    """

    mode: str
    weights: tuple[tuple[Weights, ...], ...]
    input: Tensor
    output: Tensor
    h0: Tensor
    c0: Tensor | None = None
    lengths: Tensor | None = None
    masks: tuple[Tensor, ...] | None = None
    grad_output: Tensor | None = None
    grad_hn: Tensor | None = None
    grad_cn: Tensor | None = None
    kept: tuple[tuple[Kept, ...], ...] | None = None

    @property
    def directions(self) -> int:
        return len(self.weights[0])

    def to(self, dtype: torch.dtype) -> StackCall:
        """Return the call with every floating tensor in ``dtype``."""
        cast = {
            name: value.to(dtype)
            for name in ("input", "output", "h0", "c0", "grad_output", "grad_hn", "grad_cn")
            if (value := getattr(self, name)) is not None
        }
        weights = tuple(tuple(w.to(dtype) for w in layer) for layer in self.weights)
        masks = None if self.masks is None else tuple(mask.to(dtype) for mask in self.masks)
        return replace(self, weights=weights, masks=masks, **cast)

    def again(self) -> StackCall:
        """Return the call without what the kernel kept: everything is to be computed from input and output."""
        return replace(self, kept=None)


def stack_adjoints(
    call: StackCall,
    dtype: torch.dtype = torch.float64,
    layers: Collection[int] | None = None,
    clip: GateClip | None = None,
    keep: Keep = KEEP_GATES,
) -> dict[tuple[int, int], Adjoints]:
    """Compute the adjoints at every site of a fused module.

    Parameters
    ----------
    call : StackCall
    dtype : torch.dtype
        Arithmetic of the replay. Float64 gives the adjoints themselves; float32 is walked with a scale, so that 1e-60
        is not mistaken for 0, and leaves it to be divided out (:meth:`Adjoints.true`).
    layers : collection of int, optional
        Layers whose adjoints are wanted; those above them are computed on the way.
    clip : callable, optional
        Clips the pre-activation adjoint in place at every step (Graves 2013); float64 only.
    keep : Keep
        What is wanted beside the total adjoints of the states.

    Returns
    -------
    dict
        ``(layer, direction)`` to :class:`Adjoints`, direction 1 being the reverse one.
    """
    top = len(call.weights) - 1
    wanted = range(top + 1) if layers is None else layers
    lowest = min(wanted, default=top + 1)
    with torch.no_grad():
        inputs, outputs = _layer_inputs(call)
        call = call.to(dtype)
        direct = torch.zeros_like(call.output) if call.grad_output is None else call.grad_output
        found: dict[tuple[int, int], Adjoints] = {}
        for layer in range(top, lowest - 1, -1):
            x, output = inputs[layer], outputs[layer].to(dtype)
            x = None if x is None else x.to(dtype)
            # The gradient of its input is the direct gradient of the layer below.
            here = replace(keep, input=keep.input or layer > lowest)
            sites = [_site(call, layer, d, x, output, direct, clip, here) for d in range(call.directions)]
            found.update({(layer, direction): site for direction, site in enumerate(sites) if layer in wanted})
            if layer > lowest:
                direct = _below(sites)
                if call.masks is not None:
                    direct *= call.masks[layer - 1]
    return found


def _site(
    call: StackCall,
    layer: int,
    direction: int,
    x: Tensor | None,
    output: Tensor,
    direct: Tensor,
    clip: GateClip | None,
    keep: Keep,
) -> Adjoints:
    trajectory = _trajectory(call, layer, direction, x, output, whole=keep.gates)
    order = _order(call, direction)
    cell, weights = CELLS[call.mode], call.weights[layer][direction]
    index, columns = _place(call, layer, direction)
    from_above = order.apply(direct[:, :, columns]).contiguous()
    if (mask := order.mask(from_above.dtype)) is not None:
        from_above = from_above * mask
    if call.grad_hn is not None:
        from_above = from_above.clone()
        order.inject_last(from_above, call.grad_hn[index])
    direct_cell = None
    if call.grad_cn is not None:
        direct_cell = torch.zeros_like(trajectory.cell)  # type: ignore[arg-type]
        order.inject_last(direct_cell, call.grad_cn[index])
    return cell.reverse(trajectory, weights, from_above, direct_cell, order, clip, keep)


def _below(sites: list[Adjoints]) -> Tensor:
    """Return ∂L/∂x_t of a layer, (T, B, I) float64 in time order: what reaches the output of the one below directly.

    A block of timesteps at a time: whole copies in float64 would be most of the work.
    """
    steps = sites[0].order.steps
    total: Tensor | None = None
    for site in sites:
        assert site.input_gradient is not None
        if site.order.reverse and site.order.lengths is not None:
            assert total is not None
            total += site.order.apply(site.true(site.input_gradient))
            continue
        for low in range(0, steps, BLOCK):
            high = min(low + BLOCK, steps)
            part = site.input_gradient[low:high].double()
            if site.scale is not None:
                part = part / site.scale[low:high]
            if total is None:
                total = part.new_empty(site.input_gradient.shape)
            if site.order.reverse:
                total[steps - high : steps - low] += part.flip(0)
            else:
                total[low:high] = part
    assert total is not None
    return total


def _order(call: StackCall, direction: int) -> Order:
    steps, batch = call.output.shape[:2]
    return Order(steps, batch, call.lengths, reverse=direction == 1)


def _place(call: StackCall, layer: int, direction: int) -> tuple[int, slice]:
    """Return where a site stands in the states, and in the columns of its layer's output."""
    size = call.h0.shape[2]
    return layer * call.directions + direction, slice(direction * size, (direction + 1) * size)


def _trajectory(
    call: StackCall,
    layer: int,
    direction: int,
    x: Tensor | None,
    output: Tensor,
    whole: bool,
    steps: int | None = None,
) -> Trajectory:
    """Return the forward pass of a site, or its first processed ``steps``, gates computed again if need be."""
    order, (index, columns) = _order(call, direction), _place(call, layer, direction)
    h0, c0 = call.h0[index], None if call.c0 is None else call.c0[index]
    hidden = order.apply(output[:, :, columns])[:steps].contiguous()
    if x is None:
        assert call.kept is not None
        assert c0 is not None
        kept, previous = call.kept[layer][direction], shifted(hidden, h0) if whole else None
        return LSTMCell.of_gates(kept.gates, hidden, previous, c0, kept.cell)
    x = order.apply(x)[:steps].contiguous()
    return CELLS[call.mode].trajectory(x, hidden, h0, c0, call.weights[layer][direction], whole)


def earlier_adjoints(
    call: StackCall, direction: int, known: Adjoints, since: int, dtype: torch.dtype = torch.float64
) -> Adjoints:
    """Complete the adjoints of a single layer from those at its last steps.

    Parameters
    ----------
    call : StackCall
        Of one layer.
    direction : int
    known : Adjoints
        ``hidden``, and ``input_gradient`` where it is not None, are right at the processed steps from ``since`` on, and
        are filled in place before; ``direct`` is right everywhere.
    since : int
    dtype : torch.dtype
        Arithmetic of the steps before.
    """
    assert known.hidden is not None
    assert known.direct is not None
    steps, order = since + 1, known.order
    with torch.no_grad():
        call = replace(call, grad_output=None, grad_hn=None, grad_cn=None).to(dtype)
        trajectory = _trajectory(call, 0, direction, call.input, call.output, whole=False, steps=steps)
        weights, first = call.weights[0][direction], Order(steps, order.batch, None, order.reverse)
        last = known.hidden[since]
        cell = CELLS[call.mode]
        keep = Keep(gates=False, input=known.input_gradient is not None)
        before = cell.reverse(trajectory, weights, known.direct[:steps], None, first, keep=keep, last=last)
        for target, source in ((known.hidden, before.hidden), (known.input_gradient, before.input_gradient)):
            if target is not None and source is not None:
                target[:since] = source[:since]
        scale = None
        if before.scale is not None:
            scale = torch.cat((before.scale[:since], before.scale.new_ones(order.steps - since, 1, 1)))
        faded = [*(before.faded or [False] * steps)[:since], *[False] * (order.steps - since)]
    return replace(known, initial_hidden=before.initial_hidden, scale=scale, faded=faded)


def _layer_inputs(call: StackCall) -> tuple[dict[int, Tensor | None], dict[int, Tensor]]:
    """Return the input and output of every layer, recomputing those inside the stack.

    An input is only good for the gates: None where the kernel kept those.
    """
    top = len(call.weights) - 1
    if call.kept is not None:
        kept = [torch.cat([site.output for site in layer], dim=2) for layer in call.kept[:-1]]
        return dict.fromkeys(range(top + 1)), dict(enumerate([*kept, call.output]))
    inputs, outputs = {0: call.input}, {top: call.output}
    for layer in range(top):
        parts = [_run_layer(call, layer, direction, inputs[layer]) for direction in range(call.directions)]
        outputs[layer] = torch.cat(parts, dim=2)
        masked = outputs[layer] if call.masks is None else outputs[layer] * call.masks[layer].to(parts[0].dtype)
        inputs[layer + 1] = masked
    return {**inputs}, outputs


def _run_layer(call: StackCall, layer: int, direction: int, x: Tensor) -> Tensor:
    """Run one layer and direction with the fused kernel; in processing order a packed batch needs no packing."""
    order = Order(x.shape[0], x.shape[1], call.lengths, reverse=direction == 1)
    index = layer * call.directions + direction
    # The kernel ran in the output's type; under autocast the parameters are kept in another.
    dtype = call.output.dtype
    weights = call.weights[layer][direction].to(dtype)
    flat = [w for w in weights.flat() if w is not None]
    state = call.h0[index : index + 1].to(dtype)
    initial = state if call.c0 is None else (state, call.c0[index : index + 1].to(dtype))
    kernel = getattr(torch, CELLS[call.mode].kernel)
    output = kernel(
        order.apply(x.to(dtype)).contiguous(), initial, flat, weights.b_ih is not None, 1, 0.0, False, False, False
    )[0]
    return order.apply(output)
