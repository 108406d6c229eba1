"""Where the CPU's unrolled ``nn.GRU`` has its timesteps in the graph, found by its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# The node that makes h_t = (h_{t−1} − n) z + n, with n = tanh(W_in x + r (W_hn h)), and ways from there, as positions
# among the next functions: to the input of all timesteps, by timestep; to where the adjoint of W_hh h_{t−1} + b_hh
# arrives; and to where that arrives which the state itself keeps of the adjoint.
_STEP, _TO_INPUT, _TO_PRODUCT, _TO_KEPT = "AddBackward0", (1, 0, 0, 0), (1, 0, 1, 0, 0), (0, 0)

# What stands between the input of a layer and the output of the one below.
_BETWEEN = ("Unbind", "View", "UnsafeView", "Transpose", "Mul", "NativeDropout", "Mm", "Clone")

# In place of a timestep: the input of all of them, and the first one's share of h_0, through W_hh and past it.
INPUT, PRODUCT, KEPT = -2, -3, -4


@dataclass(frozen=True)
class SiteNodes:
    """The nodes of one layer and direction.

    Attributes
    ----------
    whole : Node
        Gathers the output of all timesteps.
    steps : list of Node
        One for each timestep, in input time order.
    more : dict of int to Node
        The node of ``INPUT``, ``PRODUCT`` and ``KEPT``, where it has a gradient.
    """

    whole: Any
    steps: list[Any]
    more: dict[int, Any]


def site_nodes(end: Any, module: nn.RNNBase, steps: int, inputs: bool) -> dict[tuple[int, int], SiteNodes] | None:
    """Return the nodes of every ``(layer, direction)``, from the output's down; None where the graph looks otherwise.

    ``inputs`` says whether the node at the input of all timesteps is wanted: without it there is nothing then.
    """
    directions = 1 + module.bidirectional
    sites: dict[tuple[int, int], SiteNodes] = {}
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
                or any(n is None or n.name() != _STEP for n in nodes)
            ):
                return None
            more = _more(nodes[-1 if direction else 0], inputs)
            if inputs and INPUT not in more:
                return None
            sites[layer, direction] = SiteNodes(whole, nodes, more)
        end = _follow(sites[layer, 0].steps[0], _TO_INPUT) if layer else end
    return sites


def _more(first: Any, inputs: bool) -> dict[int, Any]:
    """Find the nodes from which the gradients of the input and of the initial state follow, from the first step's."""
    found = {PRODUCT: _follow(first, _TO_PRODUCT), KEPT: _follow(first, _TO_KEPT)}
    if None in found.values():
        found = {}
    if inputs:
        by_step = _follow(first, _TO_INPUT)
        if by_step is not None and by_step.name() == "UnbindBackward0":
            found[INPUT] = by_step.next_functions[0][0]
    return {name: node for name, node in found.items() if node is not None}


def _follow(node: Any, way: tuple[int, ...]) -> Any:
    """Follow the edges at these positions; None where one leads to what needs no gradient."""
    for position in way:
        node = None if node is None else node.next_functions[position][0]
    return node


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
