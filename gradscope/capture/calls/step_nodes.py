"""Adjoints that autograd itself computes, where the CPU unrolls ``nn.GRU`` into a node per timestep.

What arrives at the node that made h_t is ∂L/∂h_t, total: with a hook there nothing is computed twice. One node projects
the input of all timesteps, and what arrives there are the adjoints of all gates: ∂L/∂x_t is one product away. So is
∂L/∂h_0 from what arrives at the first step's share of h_0. The nodes are found by the shape of the graph. At the first
surprise, and where float32 runs out, the replay takes over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, Order, Weights
from gradscope.adjoint.magnitude import FADES_BELOW, largest
from gradscope.capture.calls.prehook import on_passing
from gradscope.capture.calls.step_graph import INPUT, KEPT, PRODUCT, SiteNodes, site_nodes
from gradscope.capture.host import is_host
from gradscope.capture.layers.rows import Selection

# Watched beyond where they last faded, for training moves that.
_MARGIN = 8

# In place of a timestep: what arrives at all of them from above.
_ABOVE = -1

# The adjoint at the last step is what arrives there from above: both are seen, and differ by rounding only.
_TOLERANCE = 1e-4


class StepNodes:
    """Gradients as they arrive at the timesteps of one forward call.

    Parameters
    ----------
    sites : mapping
        ``(layer, direction)`` to its nodes.
    steps : int
    reach : int
        How many of the last processed timesteps to watch.
    selection : Selection
    weights : tuple of tuple of Weights
        ``weights[layer][direction]``.

    Attributes
    ----------
    reach : int
        After the backward pass: for how many timesteps of such a call it is worth while next time.
    """

    def __init__(
        self,
        sites: Mapping[tuple[int, int], SiteNodes],
        steps: int,
        reach: int,
        selection: Selection,
        weights: tuple[tuple[Weights, ...], ...],
    ) -> None:
        self.reach = reach
        self._places, self._steps, self._selection, self._weights = tuple(sites), steps, selection, weights
        self._watched = min(steps, reach)
        self._more = {name for nodes in sites.values() for name in nodes.more}
        self._arrived: dict[int, dict[tuple[int, int, int], Tensor]] = defaultdict(dict)
        for (layer, direction), nodes in sites.items():
            on_passing(nodes.whole, self._arrived, (layer, direction, _ABOVE))
            for t in self._processed(direction)[steps - self._watched :]:
                on_passing(nodes.steps[t], self._arrived, (layer, direction, t))
            for name, node in nodes.more.items():
                # At once: the gradient at the input of all timesteps is as large as the layer's own gates.
                take = self._entering(layer, direction) if name == INPUT else None
                on_passing(node, self._arrived, (layer, direction, name), take)

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self._arrived.pop(task, None)

    def _entering(self, layer: int, direction: int) -> Callable[[Tensor], Tensor]:
        """Return what makes ∂L/∂x_t of the watched timesteps and selected sequences of the gates' adjoints."""
        selection, first = self._selection, self._steps - self._watched
        weight = self._weights[layer][direction].w_ih

        def entering(gates: Tensor) -> Tensor:
            gates = gates[: self._watched] if direction else gates[first:]
            if not selection.every_row:
                steps, batch = gates.shape[:2]
                # Along one flat axis: along the middle one of three, index_select takes ten times as long.
                wanted = torch.arange(0, steps * batch, batch, device="cpu")[:, None] + selection.rows
                gates = gates.flatten(0, 1).index_select(0, wanted.flatten()).unflatten(0, wanted.shape)
            with torch.autocast("cpu", enabled=False):  # backward may run inside the user's
                return gates @ weight.to(gates.dtype)

        return entering

    def adjoints(
        self, task: int, layers: set[int], grad_hn: Tensor | None, scale: float
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
            site = self._site(arrived, (layer, direction), final, scale)
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
        final: Tensor | None,
        scale: float,
    ) -> tuple[Adjoints, int] | None:
        seen, entering = self._seen(arrived, place), arrived.get((*place, INPUT))
        if seen is None or (entering is None and INPUT in self._more):
            return None  # part of the pass was left out: autograd.grad for some of the inputs
        first, rows = self._steps - self._watched, self._selection
        hidden, above = self._whole(seen), arrived.get((*place, _ABOVE))
        if above is None:
            direct = torch.zeros_like(hidden)
        else:
            direct = above if rows.every_row else above.index_select(1, rows.rows)
            direct = direct.flip(0) if place[1] else direct
        if final is not None:
            direct = direct.clone()
            direct[-1] += final
        since = first + _holds_since(seen, direct[-1])
        if scale != 1.0:
            hidden, direct = hidden.double() / scale, direct.double() / scale
        site = Adjoints(Order(self._steps, hidden.shape[1], None, reverse=place[1] == 1), hidden, direct)
        if entering is not None:
            entering = entering.flip(0) if place[1] else entering
            site.input_gradient = self._whole(entering if scale == 1.0 else entering.double() / scale)
            if seen.dtype == torch.float32:
                since = max(since, first + _reaches(site.input_norms.numpy()[first:]))
        if first == 0:
            site.initial_hidden = self._initial(arrived, place, scale)
        return None if since == self._steps else (site, since)

    def _seen(self, arrived: dict[tuple[int, int, int], Tensor], place: tuple[int, int]) -> Tensor | None:
        """Return what arrived at the watched timesteps, (steps, b, H) in processing order; None for part of them."""
        steps = [arrived.get((*place, t)) for t in self._processed(place[1])[self._steps - self._watched :]]
        reached = [step is not None for step in steps]
        last = max((t for t, here in enumerate(reached) if here), default=-1)
        if last < 0 or not all(reached[:last]):
            return None
        nothing = torch.zeros_like(next(step for step in steps if step is not None))
        seen = torch.stack([nothing if step is None else step for step in steps])
        return seen if self._selection.every_row else seen.index_select(1, self._selection.rows)

    def _whole(self, values: Tensor) -> Tensor:
        """Put 0 in place of the timesteps that were not watched."""
        if len(values) == self._steps:
            return values
        whole = values.new_zeros(self._steps, *values.shape[1:])
        whole[-len(values) :] = values
        return whole

    def _initial(
        self, arrived: dict[tuple[int, int, int], Tensor], place: tuple[int, int], scale: float
    ) -> Tensor | None:
        """Return ∂L/∂h_0 of the selected sequences from what arrived at the first step's share of it."""
        wanted = (PRODUCT, KEPT)
        if any((*place, name) not in arrived for name in wanted):
            return None
        product, kept = (arrived[(*place, name)].index_select(0, self._selection.rows) for name in wanted)
        # Under autocast the product is narrow, and what is kept of the state is not.
        dtype = torch.promote_types(product.dtype, kept.dtype)
        weight = self._weights[place[0]][place[1]].w_hh.to(dtype)
        return torch.addmm(kept.to(dtype), product.to(dtype), weight).double() / scale


def _holds_since(hidden: Tensor, direct_last: Tensor) -> int:
    """Return the first step from which on adjoints in processing order are within the range of their type.

    Their number where not even the last one is, or is not what arrived there from above.
    """
    size = largest(hidden).numpy()
    expected = float((hidden[-1] - direct_last).abs().max()) <= _TOLERANCE * size[-1].max()
    if not expected or not np.isfinite(size).all():
        return len(size)
    return 0 if hidden.dtype == torch.float64 else _reaches(size)


def _reaches(size: np.ndarray) -> int:
    """Return the first step from which on sizes (T, b) are not lost to the lower end of float32."""
    reached = np.maximum.accumulate(size[::-1])[::-1] > 0
    faded = (reached & (size < FADES_BELOW)).any(1)
    return int(np.flatnonzero(faded)[-1]) + 1 if faded.any() else 0


def step_nodes(
    module: nn.RNNBase,
    output: Tensor | None,
    selection: Selection,
    weights: tuple[tuple[Weights, ...], ...],
    reach: int,
    inputs: bool = False,
) -> StepNodes | None:
    """Watch the last ``reach`` timesteps of a forward call, and what enters them where ``inputs`` are wanted.

    None where they are not nodes of the graph that can be recognised.
    """
    if output is None or module.mode != "GRU" or not reach:
        return None
    if not is_host(output) or output.dtype not in (torch.float32, torch.float64):
        return None
    if selection.gather is not None or selection.unbatched or not selection.size:
        return None
    steps = output.shape[1 - selection.batch_dim]
    try:
        found = site_nodes(output.grad_fn, module, steps, inputs)
    except (AttributeError, IndexError, ValueError):  # another torch, another graph
        return None
    return None if found is None else StepNodes(found, steps, reach, selection, weights)
