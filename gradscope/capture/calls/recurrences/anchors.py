"""What is used several times, and may mark the steps: weights, calls of known layers, tensors cut into timesteps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter

import numpy as np

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.operations import PRODUCTS, SLICES, slice_of
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS


@dataclass(frozen=True, eq=False)
class Anchor:
    """Something that is used several times, and where.

    Attributes
    ----------
    index : int
    uses : frozenset of int
        Where it meets something else.
    parts : int
        Of a source, how many slices are cut from it.
    every : frozenset of int
        The uses, and those that depend on no other but meet the chain: where the truth is fed at times.
    order : dict of int to int
        Numbers of the uses, where several are one: a timestep that is cut out twice.
    """

    index: int
    uses: frozenset[int]
    parts: int = 0
    every: frozenset[int] = frozenset()
    order: dict[int, int] = field(default_factory=dict)

    @property
    def in_order(self) -> dict[int, int]:
        """Return the uses with their numbers, from 1, in the order in which they were made."""
        return self.order or {use: number for number, use in enumerate(sorted(self.uses), start=1)}


def weights_in(graph: Graph) -> list[Anchor]:
    """Return weights with at least three uses, and known layers with as many calls."""
    found, calls = [], defaultdict(list)
    for index, users in enumerate(graph.users):
        if graph.is_call(index):
            calls[graph.names[index]].append(index)
        elif users and graph.of_weights[index] and (index < graph.first_inner or len(users) >= MIN_STEPS):
            found.append(Anchor(index, _effective_uses(graph, index)))
    found += [Anchor(members[0], frozenset(members)) for members in calls.values()]
    return [anchor for anchor in found if len(anchor.uses) >= MIN_STEPS]


def sources_in(graph: Graph) -> list[Anchor]:
    """Return tensors that are cut into timesteps."""
    found = []
    for index in range(len(graph.nodes)):
        if graph.of_weights[index]:
            continue
        sliced = sum(graph.names[user].startswith(SLICES) for user, _ in graph.users[index])
        parted = graph.names[index].startswith(("Unbind", "Split"))
        if sliced >= MIN_STEPS or (parted and len(graph.users[index]) >= MIN_STEPS):
            found.append(_one_use_a_slice(graph, index))
    return [anchor for anchor in found if len(anchor.uses) >= MIN_STEPS]


def _one_use_a_slice(graph: Graph, index: int) -> Anchor:
    """Return the uses of the slices of a tensor; none where they are not so many slices as links of a chain."""
    every = set(_which_slices(graph, index))
    # A chunk that is cut into timesteps is used whole as well.
    cut = {slice_ for slice_ in every if slice_[0] == "slice"}
    slices = cut if len(cut) >= MIN_STEPS else every
    uses = frozenset(use for use in _effective_uses(graph, index) if not graph.names[use].startswith("Stack"))
    level = levels(graph, [dict.fromkeys(uses, 1)], add=True)[:, 0]
    return Anchor(index, uses if int(level.max()) <= len(slices) + 1 else frozenset(), len(slices))


def slices_of(graph: Graph, anchor: Anchor) -> Anchor:
    """Return a tensor that is cut into timesteps with the slices themselves as uses, in the order of their first."""
    numbers: dict[tuple[object, ...], int] = {}
    order = {}
    users = [user for user, _ in graph.users[anchor.index]]
    for user, slice_ in sorted(zip(users, _which_slices(graph, anchor.index), strict=True), key=itemgetter(0)):
        order[user] = numbers.setdefault(slice_, len(numbers) + 1)
    return replace(anchor, uses=frozenset(order), parts=len(numbers), order=order)


def _which_slices(graph: Graph, index: int) -> list[tuple[object, ...]]:
    """Return, of each user of a tensor, which slice it takes; graphs of one shape may differ in it."""
    return graph.ask(partial(_slices_of, index))


def _slices_of(index: int, graph: Graph) -> list[tuple[object, ...]]:
    return [_which_slice(graph, index, user, at) for user, at in graph.users[index]]


def _which_slice(graph: Graph, index: int, user: int, at: int) -> tuple[object, ...]:
    """Tell the slices of a tensor apart; the same one may be taken twice."""
    if not graph.names[user].startswith(SLICES):
        return "output", graph.inputs[user][at][1]
    return "slice", slice_of(graph.nodes[user]) or user


def _effective_uses(graph: Graph, index: int) -> frozenset[int]:
    """Return the nodes at which something meets something else: past slices, transposes, 1 − z."""
    found, todo, seen = set(), [user for user, _ in graph.users[index]], set()
    inputs, names, users = graph.inputs, graph.names, graph.users
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        consumed = inputs[node]
        alone = len(consumed) == 1 or sum(child >= 0 for child, _ in consumed) == 1
        if (alone and not names[node].startswith(PRODUCTS)) or graph.of_weights[node]:
            todo.extend([user for user, _ in users[node]])
        else:
            found.add(node)
    return frozenset(found)


def levels(graph: Graph, marked: Sequence[dict[int, int]], add: bool) -> np.ndarray:
    """Return, per node and set of marks, the longest chain of marks at or below it; or the largest number."""
    level = np.zeros((len(graph.nodes), len(marked)), dtype=np.int32)
    at: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for column, numbers in enumerate(marked):
        for index, number in numbers.items():
            at[index].append((column, number))
    first = graph.first_inner
    for index in range(first, len(graph.nodes)):
        below = [child for child, _ in graph.inputs[index] if child >= first]
        row = level[index]
        if len(below) == 1:
            row[:] = level[below[0]]
        elif below:
            level[below].max(axis=0, out=row)
        for column, number in at.get(index, ()):
            row[column] = row[column] + 1 if add else max(row[column], number)
    return level
