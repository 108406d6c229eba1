"""Which axis of a state is the batch, and which rows of it go on to the next step: read off the operations on the way.

A product with a weight takes its rows one by one: where a state enters one, the rows are followed back to an axis of
the state. Where none is met (elementwise recurrences), the first axis is the batch, as everywhere in torch.nn.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.capture.calls.graph import Graph, from_zero
from gradscope.capture.calls.recurrences.attention import kept_apart, way_to_attention
from gradscope.capture.calls.recurrences.recurrence import Place

# Which axis of the operand is the rows, by operation and place of the operand, where the other operand is a weight.
_ROWS = {
    ("AddmmBackward", 1): 0,
    ("MmBackward", 0): 0,
    ("MmBackward", 1): 1,
    ("ConvolutionBackward", 0): 0,
    ("BmmBackward", 0): 1,
    ("BmmBackward", 1): 2,
    ("BaddbmmBackward", 1): 1,
    ("LinearBackward", 0): 0,
}

# No rows at all: the state is a single vector.
_VECTORS = {("MvBackward", 1), ("AddmvBackward", 2), ("DotBackward", 0), ("DotBackward", 1)}

_SELECTS_ROWS = (
    "SliceBackward",
    "IndexSelectBackward",
    "IndexBackward",
    "GatherBackward",
    "FlipBackward",
    "RollBackward",
)

#: A state that is one vector, of a single sequence.
UNBATCHED = -1


def way_on(graph: Graph, place: Place, level: list[int], step: int) -> list[tuple[int, int]] | None:
    """Return the nodes from a state to the first one of the next step, each with the place at which it is entered.

    Rather a way into a product with a weight: it tells what the axes are. What is written into a larger tensor mostly
    leaves the loop: that way is taken where there is no other.
    """
    way = _way(graph, place, level, step, past_copies=False)
    return _way(graph, place, level, step, past_copies=True) if way is None else way


def _way(graph: Graph, place: Place, level: list[int], step: int, past_copies: bool) -> list[tuple[int, int]] | None:
    came: dict[int, tuple[int, int] | None] = {}
    todo = [(user, at) for user, at in graph.users[place[0]] if graph.inputs[user][at][1] == place[1]]
    entered = dict(todo)
    came.update(dict.fromkeys(entered))
    best: int | None = None
    for index, _ in todo:
        if _tells(graph, index, entered[index]):
            best = index
            break
        if level[index] > step:
            best = index if best is None else best
        if level[index] > step + 1 or len(todo) > 256:
            continue
        if graph.names[index].endswith("CopySlices") and not past_copies:
            continue
        for user, at in graph.users[index]:
            if user not in came and level[user]:
                came[user], entered[user] = (index, entered[index]), at
                todo.append((user, at))
    if best is None:
        return None
    way = [(best, entered[best])]
    while (before := came[way[-1][0]]) is not None:
        way.append(before)
    return way[::-1]


def _tells(graph: Graph, index: int, at: int) -> bool:
    """Whether a node is a product with a weight."""
    key = (_kind(graph.names[index]), at)
    if key not in _ROWS and key not in _VECTORS:
        return False
    return any(
        child >= 0 and graph.of_weights[child] for place, (child, _) in enumerate(graph.inputs[index]) if place != at
    )


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def batch_axis(
    graph: Graph, place: Place, way: list[tuple[int, int]] | None, level: list[int], by_depth: bool
) -> int | None:
    """Return the batch axis of a state; None where it has none that can be told, ``UNBATCHED`` for a single vector."""
    shape = graph.shape(place)
    if not shape:
        return UNBATCHED
    if way:
        last, at = way[-1]
        key = (_kind(graph.names[last]), at)
        if _tells(graph, last, at) and key in _VECTORS:
            return UNBATCHED
        if _tells(graph, last, at):
            rows = frozenset((_ROWS[key],))
            for index, entered in reversed(way[:-1]):
                rows = frozenset().union(*(_before(graph, index, entered, axis) for axis in rows))
            if not rows and len(shape) == 1:
                return UNBATCHED
            if sum(shape[axis] > 1 for axis in rows if axis < len(shape)) > 1:
                return _of_two(graph, place, rows, level, by_depth)
            if rows and min(rows) < len(shape):
                return min(rows)
    # A first axis of size 1 may be one sequence, or one layer of a stack.
    return None if len(shape) == 1 or (len(shape) > 2 and shape[0] == 1) else 0


def _of_two(graph: Graph, place: Place, rows: frozenset[int], level: list[int], by_depth: bool) -> int | None:
    """Return which of the axes that rows are made of is the batch: the one that attention keeps apart.

    Without attention it is the first by custom, where time is in the loop; in depth it may be time as well.
    """
    way = way_to_attention(graph, place, level)
    if way is None:
        return None if by_depth else min(rows)
    apart = kept_apart(graph, place, way)
    return apart if apart in rows else None


def _before(graph: Graph, index: int, at: int, axis: int) -> frozenset[int]:
    """Return the axes that an axis of a node's output was in its operand; none where it was none."""
    node, kind = graph.nodes[index], _kind(graph.names[index])
    try:
        made, taken = graph.shape((index, 0)), graph.shape(graph.inputs[index][at])
        if kind == "TBackward":
            return frozenset((1 - axis,))
        if kind == "TransposeBackward":
            swapped = {from_zero(node._saved_dim0, len(made)): from_zero(node._saved_dim1, len(made))}
            swapped |= {b: a for a, b in swapped.items()}
            return frozenset((swapped.get(axis, axis),))
        if kind == "PermuteBackward":
            return frozenset((from_zero(node._saved_dims[axis], len(made)),))
        if kind == "SelectBackward":
            return frozenset((axis + (axis >= from_zero(node._saved_dim, len(taken))),))
        if kind in ("UnsqueezeBackward", "StackBackward"):
            added = from_zero(node._saved_dim, len(made))
            return frozenset() if axis == added else frozenset((axis - (axis > added),))
    except (AttributeError, IndexError, TypeError):
        return frozenset()
    return _by_size(made, taken, axis)


def _by_size(made: tuple[int, ...], taken: tuple[int, ...], axis: int) -> frozenset[int]:
    """Follow an axis through a reshape: the same number of elements stands before it; it may be made of several."""
    if len(made) == len(taken) and made[axis] == taken[axis]:
        return frozenset((axis,))
    before = 1
    for size in made[:axis]:
        before *= size
    passed = 1
    for candidate, size in enumerate(taken):
        if passed == before and (size > 1 or made[axis] == 1) and made[axis] % size == 0:
            return frozenset(_merged(taken, candidate, made[axis]))
        passed *= size
    return frozenset()


def _merged(taken: tuple[int, ...], first: int, size: int) -> Iterator[int]:
    """Yield the axes, from the first on, that make up one of a size."""
    whole = 1
    for axis in range(first, len(taken)):
        if whole == size:
            return
        if size % (whole * taken[axis]):
            return
        whole *= taken[axis]
        if taken[axis] > 1 or axis == first:
            yield axis


def changes_rows(graph: Graph, way: list[tuple[int, int]], axis: int) -> str:
    """Say how the rows of a state are changed on the way to the next step: ``""``, ``first``, or ``other``."""
    changed = ""
    for index, at in way:
        kind = _kind(graph.names[index])
        if kind not in _SELECTS_ROWS:
            continue
        node = graph.nodes[index]
        try:
            taken = graph.shape(graph.inputs[index][at])
            if kind == "SliceBackward":
                if from_zero(node._saved_dim, len(taken)) != axis:
                    continue
                if int(node._saved_start or 0) == 0 and int(node._saved_step) == 1:
                    changed = changed or "first"
                    continue
            elif kind == "IndexBackward":
                indices = node._saved_indices
                if (
                    all(given is None for position, given in enumerate(indices) if position == axis)
                    and len(indices) > axis
                ):
                    continue
            elif kind in ("IndexSelectBackward", "GatherBackward") and from_zero(node._saved_dim, len(taken)) != axis:
                continue
        except (AttributeError, IndexError, TypeError, RuntimeError):
            pass
        return "other"
    return changed


def rows_taken(graph: Graph, way: list[tuple[int, int]], axis: int, count: int) -> Tensor | None:
    """Return which row of a state each row of the next step comes from, where they are put into another order.

    None where they are not: rows are repeated, dropped, or taken in a way that is not told by an index.
    """
    order = torch.arange(count, device="cpu")
    for index, at in way:
        kind, node = _kind(graph.names[index]), graph.nodes[index]
        if kind not in _SELECTS_ROWS:
            continue
        try:
            taken = graph.shape(graph.inputs[index][at])
            if kind == "IndexSelectBackward" and from_zero(node._saved_dim, len(taken)) == axis:
                chosen = node._saved_index
            elif kind == "IndexBackward" and [i for i, of in enumerate(node._saved_indices) if of is not None] == [
                axis
            ]:
                chosen = node._saved_indices[axis]
            else:
                return None
        except (AttributeError, IndexError, TypeError, RuntimeError):
            return None
        chosen = chosen.detach().cpu()
        if chosen.dtype != torch.int64 or not torch.equal(
            chosen.remainder(count).sort()[0], torch.arange(count, device="cpu")
        ):
            return None
        order = order[chosen]
    return order
