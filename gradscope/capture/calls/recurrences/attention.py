"""Which axis of a state attention keeps apart: that is the batch, wherever it stands."""

from __future__ import annotations

from math import prod

from gradscope.capture.calls.graph import Graph, from_zero
from gradscope.capture.calls.recurrences.recurrence import Place

# Nodes that are looked at on the way.
_NEAR = 256


def way_to_attention(graph: Graph, place: Place, level: list[int]) -> list[tuple[int, int]] | None:
    """Return the nodes from a state to the attention of the next step, each with the place at which it is entered."""
    came: dict[int, tuple[int, int]] = {}
    todo = [place[0]]
    for index in todo:
        for user, at in graph.users[index]:
            near = level[user] in (level[place[0]], level[place[0]] + 1) and len(todo) < _NEAR
            if user in came or not near or (index == place[0] and graph.inputs[user][at][1] != place[1]):
                continue
            came[user] = index, at
            if _attends(graph, user, at):
                way = [(user, at)]
                while index != place[0]:
                    index, at = came[node := index]
                    way.append((node, at))
                return way[::-1]
            todo.append(user)
    return None


def _attends(graph: Graph, index: int, at: int) -> bool:
    """Whether a node multiplies what is made of a state with another activation, for each sequence apart."""
    name = graph.names[index].rstrip("0123456789")
    if name.startswith("ScaledDotProduct"):
        return at < 3
    first = {"BmmBackward": 0, "BaddbmmBackward": 1}.get(name)
    if first is None or at < first:
        return False
    return not any(child >= 0 and graph.of_weights[child] for child, _ in graph.inputs[index][first : first + 2])


def kept_apart(graph: Graph, place: Place, way: list[tuple[int, int]]) -> int | None:
    """Return the axis of a state that becomes the first of what attention multiplies; None where that is not told.

    An axis is followed by how many elements stand before it, which no reshape changes.
    """
    before: int | None = 1
    for index, at in reversed(way[:-1]):
        if before is not None:
            before = _before(graph, index, at, before)
    found = None if before is None else _axis_at(graph.shape(place), before)
    return found[0] if found is not None and found[1] == 1 else None


def _before(graph: Graph, index: int, at: int, before: int) -> int | None:
    """Return what stands before an axis in the operand of a node, from what does in its output."""
    made, taken = graph.shape((index, 0)), graph.shape(graph.inputs[index][at])
    node, kind = graph.nodes[index], graph.names[index].rstrip("0123456789")
    if kind in ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "SqueezeBackward", "UnsqueezeBackward"):
        return before
    found = _axis_at(made, before)
    if found is None:
        return None
    axis, within = found
    try:
        if kind == "TBackward":
            axis = 1 - axis
        elif kind == "TransposeBackward":
            ends = from_zero(node._saved_dim0, len(made)), from_zero(node._saved_dim1, len(made))
            axis = ends[1 - ends.index(axis)] if axis in ends else axis
        elif kind == "PermuteBackward":
            axis = from_zero(node._saved_dims[axis], len(made))
        elif kind == "SelectBackward":
            axis += axis >= from_zero(node._saved_dim, len(taken))
        elif len(made) != len(taken) or made[axis] != taken[axis]:
            return None
    except (AttributeError, IndexError, TypeError):
        return None
    return prod(taken[:axis]) * within


def _axis_at(shape: tuple[int, ...], before: int) -> tuple[int, int] | None:
    """Return the axis in which what has so many elements before it begins, and how many of them are of that axis."""
    passed = 1
    for axis, size in enumerate(shape):
        if passed <= before < passed * size and before % passed == 0:
            return axis, before // passed
        passed *= size
    return None
