"""The state a loop starts from, where it has no graph: read off what the operations of the first step saved."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradscope.capture.calls.graph import Graph, from_zero
from gradscope.capture.calls.recurrences.recurrence import Place, Recurrence
from gradscope.capture.host import brought

_SAVED = {
    ("AddmmBackward", 1): "_saved_mat1",
    ("MmBackward", 0): "_saved_self",
    ("MmBackward", 1): "_saved_mat2",
    ("MulBackward", 0): "_saved_self",
    ("MulBackward", 1): "_saved_other",
    ("ConvolutionBackward", 0): "_saved_input",
    ("BmmBackward", 0): "_saved_self",
    ("BmmBackward", 1): "_saved_mat2",
}


def state_before(graph: Graph, found: Recurrence) -> Tensor | None:
    """Return the values a loop starts from; None where no operation saved them."""
    which = initial_state(found)
    if which is None:
        return None
    first = found.states[which][0]
    assert first is not None
    for user, at in graph.users[first[0]]:
        if graph.inputs[user][at][1] == first[1] and (value := _value(graph, user, at, found)) is not None:
            return value
    return None


def initial_state(found: Recurrence) -> int | None:
    """Return the state by which a window is known to go on where another ended: the hidden one, or the first."""
    order = sorted(range(len(found.states)), key=lambda i: found.roles[i] != "hidden")
    return next((i for i in order if len(found.states[i]) > 1 and found.states[i][0] and found.states[i][1]), None)


def value_of(graph: Graph, place: Place | None, depth: int = 4) -> Tensor | None:
    """Return the values of a tensor, from what the operation that made it saved; None where it saved too little."""
    if place is None or not depth or place[0] < graph.first_inner or graph.is_call(place[0]):
        return None
    node, kind = graph.nodes[place[0]], graph.names[place[0]].rstrip("0123456789")
    if kind in ("TanhBackward", "SigmoidBackward", "ReluBackward"):
        return _saved_as(node, "_saved_result")
    if kind == "MulBackward":
        factors = _saved_as(node, "_saved_self"), _saved_as(node, "_saved_other")
        return None if factors[0] is None or factors[1] is None else factors[0] * factors[1]
    if kind in ("AddBackward", "SubBackward") and getattr(node, "_saved_alpha", None) == 1:
        parts = [value_of(graph, consumed, depth - 1) for consumed in graph.inputs[place[0]]]
        if len(parts) == 2 and parts[0] is not None and parts[1] is not None:
            return parts[0] + parts[1] if kind == "AddBackward" else parts[0] - parts[1]
    return None


def _saved_as(node: Any, name: str) -> Tensor | None:
    value = _as_saved(node, name)
    return None if value is None else brought(value)


def _as_saved(node: Any, name: str) -> Tensor | None:
    try:
        value = getattr(node, name)
    except (AttributeError, RuntimeError):
        return None
    return value if isinstance(value, Tensor) else None


def _value(graph: Graph, user: int, at: int, found: Recurrence) -> Tensor | None:
    """Return what the first step has in place of what ``user`` consumes in the second."""
    if graph.names[user].startswith("CatBackward"):
        return _part(graph, user, at, found)
    before = _counterpart(graph, user, found)
    if before is None or at >= len(graph.inputs[before]) or graph.inputs[before][at][0] >= 0:
        return None
    return saved_operand(graph, before, at)


def saved_operand(graph: Graph, index: int, at: int) -> Tensor | None:
    """Return the values that an operation saved of one of its operands; None where it did not."""
    saved = saved_of(graph, index, at)
    return None if saved is None else brought(saved)


def saved_of(graph: Graph, index: int, at: int) -> Tensor | None:
    """Return the very tensor that an operation saved of one of its operands, wherever it lies; None if it did not."""
    key = graph.names[index].rstrip("0123456789"), at
    return _as_saved(graph.nodes[index], _SAVED[key]) if key in _SAVED else None


def _counterpart(graph: Graph, user: int, found: Recurrence) -> int | None:
    """Return the node of the first step that does what ``user`` does in the second."""
    states: list[tuple[Place | None, Place | None]] = [(s[0], s[1]) for s in found.states if len(s) > 1]
    for first, second in states:
        if first is None or second is None:
            continue
        index = user - second[0] + first[0]
        if graph.first_inner <= index < len(graph.nodes) and graph.names[index] == graph.names[user]:
            return index
    return None


def _part(graph: Graph, cat: int, at: int, found: Recurrence) -> Tensor | None:
    """Return one part of the first step's concatenation, out of what the operation after it saved."""
    for user, place in graph.users[cat]:
        before = _counterpart(graph, user, found)
        if before is None:
            continue
        whole = saved_operand(graph, before, place)
        if whole is None:
            continue
        axis = from_zero(graph.nodes[cat]._saved_dim, whole.dim())
        sizes: list[int | None] = []
        for child, nr in graph.inputs[cat]:
            sizes.append(graph.shape((child, nr))[axis] if child >= graph.first_inner else None)
        length, rest = sizes[at], whole.shape[axis] - sum(size or 0 for size in sizes)
        if sizes.count(None) > 1 or length is None:
            return None
        return whole.narrow(axis, sum(rest if size is None else size for size in sizes[:at]), length)
    return None
