"""Number steps by the uses of input projections, where nothing trainable lies in the chain.

What an earlier step made meets the next one in a join; joins that only add up are losses or outputs, no state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.anchors import Anchor, levels
from gradscope.capture.calls.recurrences.operations import ADDS, REARRANGES
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS
from gradscope.capture.calls.recurrences.steps import Steps


def numbered_by_input(graph: Graph, beside: list[Anchor], taken: set[int]) -> Iterator[Steps]:
    """Number steps by the uses of input projections, where nothing trainable lies in the chain."""
    if not beside:
        return
    counts = [max(anchor.in_order.values()) for anchor in beside]
    level = levels(graph, [anchor.in_order for anchor in beside], add=False)
    waiting = sorted(range(len(beside)), key=lambda column: -min(beside[column].uses))
    # The last in forward order is the deepest: what it explains is not part of those before.
    while waiting:
        column = waiting.pop(0)
        together, of = [column], level[:, column]
        joins = _chained_joins(graph, of, taken)
        for other in list(waiting):
            # Two gates of one step: neither depends on the other, and they meet in the same places.
            a, b = beside[column], beside[other]
            if counts[column] == counts[other] and not level[min(a.uses), other] and not level[min(b.uses), column]:
                both = np.maximum(of, level[:, other])
                more = _chained_joins(graph, both, taken)
                alone = _chained_joins(graph, level[:, other], taken)
                if joins and more and (alone & joins or _take_turns(graph, joins, alone)):
                    together.append(other)
                    waiting.remove(other)
                    joins, of = more, both
        if len({int(of[index]) for index in joins}) >= MIN_STEPS - 1:
            last = int(max(of[index] for index in joins))
            chosen = tuple(beside[member] for member in together)
            starts = frozenset(use for anchor in chosen for use in anchor.uses)
            yield Steps(graph, chosen, np.minimum(of, last).tolist(), frozenset(joins), last, starts)


def _take_turns(graph: Graph, some: set[int], others: set[int]) -> bool:
    """Whether what is made at some places leads to the others, and back."""
    some, others = some - others, others - some
    if not some or not others:
        return False
    middle = sorted(some)[len(some) // 2]
    there = _next_of(graph, middle, others)
    return there is not None and _next_of(graph, there, some) is not None


def _next_of(graph: Graph, start: int, wanted: set[int]) -> int | None:
    todo, seen = deque([start]), {start}
    while todo and len(seen) < 256:
        for user, _ in graph.users[todo.popleft()]:
            if user in wanted:
                return user
            if user not in seen:
                seen.add(user)
                todo.append(user)
    return None


def _chained_joins(graph: Graph, level: np.ndarray, taken: set[int]) -> set[int]:
    """Return the nodes at which what an earlier step made meets the next one, sums apart."""
    numbered = np.flatnonzero(level >= 2).tolist()
    joins = {index for index in numbered if index not in taken and _joins(graph, level, index)}
    return _in_a_row(graph, level, joins - accumulators(graph, level, joins))


def _in_a_row(graph: Graph, level: np.ndarray, joins: set[int]) -> set[int]:
    """Leave out what leads to no later step, and what only the last one has: there outputs are put together."""
    while joins:
        last = max(int(level[index]) for index in joins)
        before = {graph.names[index] for index in joins if level[index] < last}
        kept = {index for index in joins if level[index] < last or graph.names[index] in before}
        leads = [0] * len(graph.nodes)
        for index in range(len(graph.nodes) - 1, graph.first_inner - 1, -1):
            for user, _ in graph.users[index]:
                leads[index] = max(leads[index], leads[user], int(level[user]) if user in kept else 0)
        kept = {index for index in kept if leads[index] > level[index] or level[index] == last}
        if kept == joins:
            break
        joins = kept
    return joins


def _joins(graph: Graph, level: np.ndarray, index: int) -> bool:
    """Whether a node brings together the step before and this one."""
    below = [int(level[child]) for child in graph.inner(index)]
    return len(below) > 1 and max(below) == level[index] and level[index] - 1 in below


def accumulators(graph: Graph, level: np.ndarray, joins: set[int]) -> set[int]:
    """Return the joins that only add up: from one step to the next nothing but sums."""
    found = set()
    first = min((int(level[index]) for index in joins), default=0)
    for index in joins:
        todo, seen = [index], {index}
        while todo and graph.names[index].startswith(ADDS):
            for child in graph.inner(todo.pop()):
                if child in joins and level[child] < level[index]:
                    found.add(index)
                    # The first of a chain of sums has none before it.
                    found.update({child} if level[child] == first else ())
                elif child not in seen and graph.names[child].startswith(ADDS):
                    seen.add(child)
                    todo.append(child)
    return {index for index in found if not _is_read(graph, level, index)}


def _is_read(graph: Graph, level: np.ndarray, index: int) -> bool:
    """Whether a sum is asked for something in its own step or the next: the memory of linear attention, by a query."""
    todo, seen = [index], {index}
    for at in todo:
        for user, _ in graph.users[at]:
            if user in seen or level[user] > level[index] + 1 or len(seen) > 64:
                continue
            seen.add(user)
            name = graph.names[user]
            if name.startswith(REARRANGES) and not name.startswith(("Cat", "Stack")):
                todo.append(user)
            elif not name.startswith((*ADDS, "Stack")) and len([c for c, _ in graph.inputs[user] if c >= 0]) > 1:
                return True
    return False
