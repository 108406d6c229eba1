"""How often in a row the same data enters: a solver that iterates between two inputs is given each of them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gradscope.capture.calls.graph import Graph, from_zero
from gradscope.capture.calls.recurrences.initial import saved_operand
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS


def in_a_row(graph: Graph, level: np.ndarray, orders: Iterable[Mapping[int, int]], links: int) -> int:
    """Return how many links of a chain in a row are given the same data, where it is the same number throughout; or 1.

    Only values can tell: data without a graph leaves no other trace. They are those that operations saved.
    """
    if not graph.values_may_be_read:
        return 1
    given: dict[int, list[Tensor]] = {}
    for index in range(graph.first_inner, len(graph.nodes)):
        if level[index] and graph.names[index].startswith("CatBackward"):
            for user, part in _part_without_graph(graph, index):
                given.setdefault(int(level[user]), []).append(part)
    for order in orders:
        for use, at in order.items():
            if operands := _operands_without_graph(graph, use):
                given.setdefault(at, []).extend(operands)
    known = sorted(given)
    # What the first one is given may not be told from the state it starts from.
    if len(known) < links - 1 or known[-1] - known[0] != len(known) - 1:
        return 1
    shift = links - known[-1]
    changes = [later + shift for earlier, later in pairwise(known) if not _same(given[earlier], given[later])]
    each = min((later - earlier for earlier, later in pairwise(changes)), default=1)
    regular = changes == list(range(1 + each, links + 1, each))
    return each if regular and links % each == 0 and links // each >= MIN_STEPS else 1


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True)
    )


def _operands_without_graph(graph: Graph, index: int) -> list[Tensor]:
    values = [saved_operand(graph, index, at) for at, (child, _) in enumerate(graph.inputs[index]) if child < 0]
    return [value for value in values if value is not None]


def _part_without_graph(graph: Graph, cat: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the part of a concatenation that has no graph, out of what an operation after it saved, and which did."""
    outside = [at for at, (child, _) in enumerate(graph.inputs[cat]) if child < 0]
    for user, place in graph.users[cat] if len(outside) == 1 else ():
        whole = saved_operand(graph, user, place)
        if whole is not None:
            axis = from_zero(graph.nodes[cat]._saved_dim, whole.dim())
            before = sum(graph.shape(of)[axis] for of in graph.inputs[cat][: outside[0]])
            rest = whole.shape[axis] - sum(graph.shape(of)[axis] for of in graph.inputs[cat] if of[0] >= 0)
            yield user, whole.narrow(axis, before, rest)
            return
