"""Which anchors are used again on what they made, and which side by side; sequences of one weight apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.anchors import Anchor, levels
from gradscope.capture.calls.recurrences.joins import accumulators
from gradscope.capture.calls.recurrences.operations import ADDS
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS
from gradscope.capture.calls.recurrences.steps import is_tree


def chained(graph: Graph, anchors: list[Anchor]) -> tuple[list[tuple[Anchor, np.ndarray]], list[Anchor], list[Anchor]]:
    """Separate anchors whose uses depend on each other, each with its levels, from those used side by side.

    The last are anchors of both: some of their uses depend on others.
    """
    level = levels(graph, [dict.fromkeys(anchor.uses, 1) for anchor in anchors], add=True)
    deepest = level.max(axis=0)
    chains: list[tuple[Anchor, np.ndarray]] = []
    beside: list[Anchor] = []
    split: list[Anchor] = []
    mixed: list[Anchor] = []
    for column, anchor in enumerate(anchors):
        if deepest[column] < MIN_STEPS:
            beside.append(anchor)
        elif _only_adds_up(graph, anchor, level[:, column]):
            continue
        elif is_tree(np.bincount(level[list(anchor.uses), column])[1:].tolist()):
            chains.append((anchor, level[:, column]))
        elif sum(level[use, column] == 1 for use in anchor.uses) >= MIN_STEPS:
            mixed.append(anchor)
            split += [replace(a, uses=_in_chain(graph, a), every=a.every) for a in _sequences(graph, anchor)]
        elif len(anchor.uses) > deepest[column]:
            mixed.append(anchor)
            split.extend(_sequences(graph, anchor))
        else:
            chains.append((anchor, level[:, column]))
    if split:
        level = levels(graph, [dict.fromkeys(anchor.uses, 1) for anchor in split], add=True)
        chains += [(a, level[:, column]) for column, a in enumerate(split) if level[:, column].max() >= MIN_STEPS]
    return chains, beside, mixed


def separate(graph: Graph, anchor: Anchor) -> Iterator[Anchor]:
    """Separate independent sequences that run through the same weights."""
    parent = {use: use for use in anchor.uses}

    def root(use: int) -> int:
        while parent[use] != use:
            use = parent[use]
        return use

    nothing: frozenset[int] = frozenset()
    nearest: dict[int, frozenset[int]] = {}
    for index in range(graph.first_inner, len(graph.nodes)):
        below = [found for child in graph.inner(index) if (found := nearest.get(child, nothing))]
        union = below[0] if len(below) == 1 else frozenset().union(*below)
        if index in anchor.uses:
            for use in union:
                parent[root(use)] = root(index)
            union = frozenset((index,))
        if union:
            nearest[index] = union
    sequences = defaultdict(set)
    for use in anchor.uses:
        sequences[root(use)].add(use)
    for uses in sequences.values():
        yield replace(anchor, uses=frozenset(uses))


def _sequences(graph: Graph, anchor: Anchor) -> Iterator[Anchor]:
    """Separate independent sequences; a use that stands alone and meets one of them may be a step of it."""
    apart = list(separate(graph, anchor))
    alone = {use for sequence in apart if len(sequence.uses) == 1 for use in sequence.uses}
    for sequence in apart:
        if len(sequence.uses) > 1:
            below = levels(graph, [dict.fromkeys(sequence.uses, 1)], add=True)[:, 0] > 0
            meeting = {use for use in alone if any(below[user] for user in _next(graph, use))}
            yield replace(sequence, every=sequence.uses | meeting)


def _next(graph: Graph, start: int) -> Iterator[int]:
    """Yield what is made of a tensor, the nearest first."""
    todo, seen = [start], {start}
    for index in todo:
        for user, _ in graph.users[index]:
            if user not in seen and len(seen) < 64:
                seen.add(user)
                todo.append(user)
                yield user


def _only_adds_up(graph: Graph, anchor: Anchor, level: np.ndarray) -> bool:
    """Whether the uses of an anchor do nothing but add up: the losses, or the outputs, of all timesteps."""
    if not all(graph.names[use].startswith(ADDS) for use in anchor.uses):
        return False
    later = [use for use in anchor.uses if level[use] > 1]
    return bool(later) and set(later) <= accumulators(graph, level, set(anchor.uses))


def _in_chain(graph: Graph, anchor: Anchor) -> frozenset[int]:
    """Leave out uses beside the chain: a weight, or a slice of a source, that meets the input as well as the state."""
    level = levels(graph, [dict.fromkeys(anchor.uses, 1)], add=True)[:, 0]
    first = [use for use in anchor.uses if level[use] == 1]
    common = Counter(graph.names[use] for use in first)
    return anchor.uses - {use for use in first if len(first) >= MIN_STEPS and common[graph.names[use]] >= MIN_STEPS}
