"""Adjoints that autograd itself computes, where the CPU unrolls ``nn.RNN`` and ``nn.GRU`` into a node per timestep.

What arrives at the node that made h_t is ∂L/∂h_t, total: with a hook there nothing is computed twice. The nodes are
found by the shape of the graph. At the first surprise, and where float32 runs out, the replay takes over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, Order
from gradscope.adjoint.magnitude import FADES_BELOW, largest
from gradscope.capture.calls.prehook import on_passing
from gradscope.capture.layers.rows import Selection

# The node that makes h_t, and the way from there to the input of all timesteps: positions among the next functions.
_STEPS = {
    "RNN_TANH": ("TanhBackward0", (0, 1)),
    "RNN_RELU": ("ReluBackward0", (0, 1)),
    "GRU": ("AddBackward0", (1, 0, 0, 0)),
}

# What stands between the input of a layer and the output of the one below.
_BETWEEN = ("Unbind", "View", "UnsafeView", "Transpose", "Mul", "NativeDropout", "Mm", "Clone")

# Watched beyond where they last faded, for training moves that.
_MARGIN = 8

# In place of a timestep: what arrives at all of them from above.
_ABOVE = -1

# The adjoint at the last step is what arrives there from above: both are seen, and differ by rounding only.
_TOLERANCE = 1e-4

# Multiplications that a replay needs for a timestep, in the time a hook takes.
_WORTH_IT = 2**18


class StepNodes:
    """Gradients as they arrive at the timesteps of one forward call.

    Parameters
    ----------
    sites : mapping
        ``(layer, direction)`` to the node that gathers the output of all timesteps, and the node of each.
    steps : int
    reach : int
        How many of the last processed timesteps to watch.

    Attributes
    ----------
    reach : int
        After the backward pass: for how many timesteps of such a call it is worth while next time.
    """

    def __init__(self, sites: Mapping[tuple[int, int], tuple[Any, list[Any]]], steps: int, reach: int) -> None:
        self.reach = reach
        self._places, self._steps = tuple(sites), steps
        self._watched = min(steps, reach)
        self._arrived: dict[int, dict[tuple[int, int, int], Tensor]] = defaultdict(dict)
        for (layer, direction), (whole, nodes) in sites.items():
            on_passing(whole, self._arrived, (layer, direction, _ABOVE))
            for t in self._processed(direction)[steps - self._watched :]:
                on_passing(nodes[t], self._arrived, (layer, direction, t))

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self._arrived.pop(task, None)

    def adjoints(
        self, task: int, layers: set[int], selection: Selection, grad_hn: Tensor | None, scale: float
    ) -> dict[tuple[int, int], tuple[Adjoints, int]] | None:
        """Return the adjoints of backward pass ``task`` over ``scale``, and from which processed step on they hold.

        None where nothing does. ``grad_hn`` (layers·D, b, H) is the gradient that arrived at the final states of the
        selected sequences.
        """
        arrived = self._arrived.pop(task, {})
        directions = 1 + max(direction for _, direction in self._places)
        found = {}
        for layer, direction in self._places:
            if layer not in layers:
                continue
            final = None if grad_hn is None else grad_hn[layer * directions + direction]
            site = self._site(arrived, (layer, direction), selection, final, scale)
            if site is None:
                self.reach = 0
                return None
            found[layer, direction] = site
        worst = max(since for _, since in found.values())
        if worst:
            limited = worst == self._steps - self._watched
            self.reach = 2 * self._watched if limited else self._steps - worst + _MARGIN
        return found

    def _processed(self, direction: int) -> range:
        return range(self._steps - 1, -1, -1) if direction else range(self._steps)

    def _site(
        self,
        arrived: dict[tuple[int, int, int], Tensor],
        place: tuple[int, int],
        selection: Selection,
        final: Tensor | None,
        scale: float,
    ) -> tuple[Adjoints, int] | None:
        first = self._steps - self._watched
        steps = [arrived.get((*place, t)) for t in self._processed(place[1])[first:]]
        reached = [step is not None for step in steps]
        last = max((t for t, here in enumerate(reached) if here), default=-1)
        if last < 0 or not all(reached[:last]):
            return None  # part of the pass was left out: autograd.grad for some of the inputs
        like = next(step for step in steps if step is not None)
        nothing, above = torch.zeros_like(like), arrived.get((*place, _ABOVE))
        seen = torch.stack([nothing if step is None else step for step in steps])
        if not selection.every_row:
            seen = seen.index_select(1, selection.rows)
            above = None if above is None else above.index_select(1, selection.rows)
        hidden = seen
        if first:
            hidden = seen.new_zeros(self._steps, *seen.shape[1:])
            hidden[first:] = seen
        direct = torch.zeros_like(hidden) if above is None else above.flip(0) if place[1] else above
        if final is not None:
            direct = direct.clone()
            direct[-1] += final
        since = first + _holds_since(seen, direct[-1])
        if since == self._steps:
            return None
        if scale != 1.0:
            hidden, direct = hidden.double() / scale, direct.double() / scale
        return Adjoints(Order(self._steps, hidden.shape[1], None, reverse=place[1] == 1), hidden, direct), since


def _holds_since(hidden: Tensor, direct_last: Tensor) -> int:
    """Return the first step from which on adjoints in processing order are within the range of their type.

    Their number where not even the last one is, or is not what arrived there from above.
    """
    size = largest(hidden).numpy()
    expected = float((hidden[-1] - direct_last).abs().max()) <= _TOLERANCE * size[-1].max()
    if not expected or not np.isfinite(size).all():
        return len(size)
    if hidden.dtype == torch.float64:
        return 0
    reached = np.maximum.accumulate(size[::-1])[::-1] > 0
    faded = (reached & (size < FADES_BELOW)).any(1)
    return int(np.flatnonzero(faded)[-1]) + 1 if faded.any() else 0


def step_nodes(module: nn.RNNBase, output: Tensor | None, selection: Selection, reach: int) -> StepNodes | None:
    """Watch the last ``reach`` timesteps of a forward call.

    None where they are not nodes of the graph that can be recognised, or where it would take longer than a replay.
    """
    if output is None or module.mode not in _STEPS or not reach:
        return None
    if output.device.type != "cpu" or output.dtype not in (torch.float32, torch.float64):
        return None
    if selection.gather is not None or selection.unbatched or not selection.size:
        return None
    sites = module.num_layers * (1 + module.bidirectional)
    multiplications = selection.size * sum(w.numel() for w in module._flat_weights if w is not None) // sites
    if multiplications < _WORTH_IT:
        return None
    steps = output.shape[1 - selection.batch_dim]
    try:
        found = _sites(output.grad_fn, module, steps)
    except (AttributeError, IndexError, ValueError):  # another torch, another graph
        return None
    return None if found is None else StepNodes(found, steps, reach)


def _sites(end: Any, module: nn.RNNBase, steps: int) -> dict[tuple[int, int], tuple[Any, list[Any]]] | None:
    name, to_input = _STEPS[module.mode]
    directions = 1 + module.bidirectional
    sites: dict[tuple[int, int], tuple[Any, list[Any]]] = {}
    for layer in range(module.num_layers - 1, -1, -1):
        end = _below(end)
        gathered = [node for node, _ in end.next_functions] if directions == 2 else [end]
        if len(gathered) != directions:
            return None
        for direction, whole in enumerate(gathered):
            nodes = [node for node, _ in whole.next_functions]
            if (
                whole.name() != "StackBackward0"
                or len(nodes) != steps
                or any(n is None or n.name() != name for n in nodes)
            ):
                return None
            sites[layer, direction] = whole, nodes
        end = sites[layer, 0][1][0]
        for position in to_input if layer else ():
            end = end.next_functions[position][0]
    return sites


def _below(node: Any) -> Any:
    """Follow the input of a layer down to where the output of the one below is gathered."""
    while True:
        name = node.name()
        if name.startswith("Addmm"):
            node = node.next_functions[1][0]
        elif name.startswith(_BETWEEN):
            node = node.next_functions[0][0]
        else:
            return node
