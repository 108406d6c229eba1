"""What a node is like: the same operation of the same weights, whatever else entered at that step."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.capture.calls.graph import Graph

# Nodes that are looked at for the weights nearest to a tensor.
_NEAR = 256

#: What a node does, to how many axes, and with the weights nearest to it.
Kind = tuple[str, int, frozenset[int]]


def kind_of(graph: Graph, index: int, level: Sequence[int]) -> Kind:
    """Tell what makes a tensor within its own step.

    Where an output is fed back at some steps and the truth at others, operations differ from step to step, but not
    the weights.
    """
    return graph.names[index], len(graph.shape((index, 0))), _nearest_weights(graph, index, level)


def _nearest_weights(graph: Graph, index: int, level: Sequence[int]) -> frozenset[int]:
    """Return the weights met first on every way down, as far as the step reaches."""
    found: set[int] = set()
    todo, seen = [index], {index}
    for node in todo:
        own = _own(graph, node)
        found |= own
        if own or len(seen) > _NEAR:
            continue
        for child in graph.inner(node):
            if child not in seen and level[child] in (0, level[index]):
                seen.add(child)
                todo.append(child)
            elif child not in seen:
                # A product of what the step before gave back belongs to the step that it enters.
                found |= _own(graph, child)
    return frozenset(found)


def _own(graph: Graph, index: int) -> set[int]:
    """Return the weights that a node consumes."""
    return {_leaf(graph, child) for child, _ in graph.inputs[index] if child >= 0 and graph.of_weights[child]}


def _leaf(graph: Graph, index: int) -> int:
    """Return the parameter that a weight is made of: the first of several."""
    while index >= graph.first_inner:
        index = next(child for child, _ in graph.inputs[index] if child >= 0)
    return index
