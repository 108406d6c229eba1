"""Source–target adjoints: ∂L_t/∂s_s of many losses L_t at once, carried as a batch in one reverse sweep.

A target is one more row of the batch that shares its trajectory with the others, so gates and coefficients are computed
once. Exact; memory grows with the number of targets in a sweep, so callers pass them in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.adjoint.cells import CELLS
from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.magnitude import norms
from gradscope.adjoint.order import Order
from gradscope.adjoint.stack import StackCall
from gradscope.adjoint.types import Adjoints


@dataclass(frozen=True)
class Targets:
    """Direct gradients of N losses at a fused module, in input time order.

    Attributes
    ----------
    output : Tensor, shape (T, B, N, D·P)
    h_n : Tensor of shape (layers·D, B, N, P) or None
    c_n : Tensor of shape (layers·D, B, N, H) or None
    """

    output: Tensor
    h_n: Tensor | None = None
    c_n: Tensor | None = None


@dataclass(frozen=True)
class _Site:
    maps: Linearization
    order: Order
    columns: slice
    index: int


def source_target_norms(
    call: StackCall, sites: dict[tuple[int, int], Adjoints], place: tuple[int, int], targets: Targets
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Norms of ∂L_n/∂h_s, of the total ∂L_n/∂c_s for an LSTM, and of ∂L_n/∂x_s, at one site of a fused module.

    Parameters
    ----------
    call : StackCall
    sites : dict
        What :func:`~gradscope.adjoint.stack_adjoints` gave for the call (its gradients do not matter): the site and
        every one of the layers above it.
    place : tuple of int
        Layer and direction.
    targets : Targets

    Returns
    -------
    hidden : Tensor, shape (N, T, B)
        In input time order.
    cell : Tensor of shape (N, T, B) or None
    input : Tensor, shape (N, T, B)
        Through this site only.
    """
    layer, direction = place
    with torch.no_grad():
        from_above = targets.output
        for upper in range(len(call.weights) - 1, layer, -1):
            parts = [_input_gradient(_site(call, sites, upper, d), from_above, targets) for d in range(call.directions)]
            from_above = parts[0] if len(parts) == 1 else parts[0] + parts[1]
            if call.masks is not None:
                from_above *= call.masks[upper - 1].to(from_above.dtype)[:, :, None]
        site = _site(call, sites, layer, direction)
        return _norms(site, from_above, targets)


def _site(call: StackCall, sites: dict[tuple[int, int], Adjoints], layer: int, direction: int) -> _Site:
    adjoints = sites[layer, direction]
    assert adjoints.trajectory is not None
    assert adjoints.weights is not None
    maps = CELLS[call.mode].linearise(adjoints.trajectory, adjoints.weights)
    columns = slice(direction * maps.hidden_size, (direction + 1) * maps.hidden_size)
    return _Site(maps, adjoints.order, columns, layer * call.directions + direction)


def _input_gradient(site: _Site, from_above: Tensor, targets: Targets) -> Tensor:
    """Return ∂L_n/∂x_s through this site, (T, B, N, I)."""
    maps, steps = site.maps, site.maps.steps
    gradient = from_above.new_zeros(*from_above.shape[:3], maps.weights.w_ih.shape[1])
    cotangents, direct = _begin(site, from_above, targets)
    for s in range(steps - 1, -1, -1):
        cotangents[..., : maps.hidden_size] += direct[s]
        _inject_final(site, cotangents, targets, s)
        gradient[s] = maps.pull_input(s, cotangents)
        cotangents = maps.pull(s, cotangents)
    return site.order.apply(gradient)


def _norms(site: _Site, from_above: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None, Tensor]:
    maps, steps = site.maps, site.maps.steps
    cotangents, direct = _begin(site, from_above, targets)
    hidden = direct.new_zeros(steps, *direct.shape[1:3])
    cell = torch.zeros_like(hidden) if maps.cell_size else None
    entering = torch.zeros_like(hidden)
    start = _last_step(site, direct, targets)
    for s in range(start, -1, -1):
        cotangents[..., : maps.hidden_size] += direct[s]
        _inject_final(site, cotangents, targets, s)
        hidden[s] = norms(cotangents[..., : maps.hidden_size])
        if (total := maps.total_cell(s, cotangents)) is not None and cell is not None:
            cell[s] = norms(total)
        entering[s] = norms(maps.pull_input(s, cotangents))
        cotangents = maps.pull(s, cotangents)
    h, c, x = (None if found is None else _in_time(site, found) for found in (hidden, cell, entering))
    assert h is not None
    assert x is not None
    return h, c, x


def _in_time(site: _Site, found: Tensor) -> Tensor:
    return site.order.apply(found).permute(2, 0, 1)


def _begin(site: _Site, from_above: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    direct = site.order.apply(from_above[..., site.columns])
    if (mask := site.order.mask(direct.dtype)) is not None:
        direct = direct * mask[..., None]
    return direct.new_zeros(*direct.shape[1:3], site.maps.size), direct


def _last_step(site: _Site, direct: Tensor, targets: Targets) -> int:
    """Return the last step at which any gradient arrives: after it every adjoint is exactly 0."""
    if targets.h_n is not None or targets.c_n is not None:
        return site.maps.steps - 1
    arrived = direct.flatten(1).ne(0).any(1).nonzero()
    return int(arrived[-1]) if len(arrived) else -1


def _inject_final(site: _Site, cotangents: Tensor, targets: Targets, s: int) -> None:
    """Add the gradients of h_n and c_n where ``s`` is a sequence's last processed step."""
    lengths = site.order.lengths
    here = slice(None) if lengths is None else lengths == s + 1
    if lengths is None and s != site.maps.steps - 1:
        return
    size = site.maps.hidden_size
    if targets.h_n is not None:
        cotangents[here, :, :size] += targets.h_n[site.index][here]
    if targets.c_n is not None:
        cotangents[here, :, size:] += targets.c_n[site.index][here]
