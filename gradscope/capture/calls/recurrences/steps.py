"""Number the nodes of a graph by the step they belong to: by the uses of anchors in a chain, and of what enters it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.anchors import Anchor, levels
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS
from gradscope.capture.calls.recurrences.repeats import in_a_row


@dataclass(eq=False)
class Steps:
    """The nodes of a graph, numbered by the step they belong to; 0 for what comes before or beside."""

    graph: Graph
    anchors: tuple[Anchor, ...]
    level: list[int]
    marks: frozenset[int]
    last: int
    starts: frozenset[int] = frozenset()
    rare: tuple[int, ...] = ()
    at: dict[int, list[int]] = field(default_factory=dict)
    reaches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Collect the nodes of every step, and find how far on each node leads."""
        level, users = self.level, self.graph.users
        at = defaultdict(list)
        for index in range(self.graph.first_inner, len(level)):
            if level[index]:
                at[level[index]].append(index)
        self.at = dict(at)
        reaches = [0] * len(level)
        for index in range(len(level) - 1, self.graph.first_inner - 1, -1):
            if level[index] == 0:
                continue
            found = 0
            for user, _ in users[index]:
                reached = reaches[user]
                if user in self.marks and level[user] > reached:
                    reached = level[user]
                found = max(found, reached)
            reaches[index] = found
        self.reaches = reaches

    def lives(self, index: int) -> bool:
        """Whether what a node makes is used by a later step."""
        return self.reaches[index] > self.level[index] > 0

    def marked(self, step: int) -> list[int]:
        """Return where a step begins, in forward order."""
        starts = self.starts or self.marks
        return [index for index in self.at.get(step, ()) if index in starts]


def groups(
    graph: Graph,
    chains: list[tuple[Anchor, np.ndarray]],
    beside: Sequence[Anchor] = (),
    mixed: Sequence[Anchor] = (),
) -> Iterator[Steps]:
    """Join anchors whose uses alternate: they belong to the same step of one recurrence."""
    waiting = list(range(len(chains)))
    uses = [np.fromiter(anchor.uses, dtype=np.int64) for anchor, _ in chains]

    def alternate(a: int, b: int) -> bool:
        here, there = chains[a][1][uses[b]], chains[b][1][uses[a]]
        return all(len(set(at[at > 0].tolist())) >= 2 for at in (here, there))

    while waiting:
        group = [waiting.pop(0)]
        for member in group:
            joined = [other for other in waiting if alternate(member, other)]
            waiting = [other for other in waiting if other not in joined]
            group += joined
        yield _number(graph, [chains[member] for member in group], beside, mixed)


def _number(
    graph: Graph, group: list[tuple[Anchor, np.ndarray]], beside: Sequence[Anchor], mixed: Sequence[Anchor]
) -> Steps:
    """Number the steps of a group of anchors, as often as something enters from outside, where that is seen."""
    longest = {id(anchor): int(level.max()) for anchor, level in group}
    steps, orders = _how_many(graph, group, beside)
    # Several applications may make up one step: those of a solver between two inputs.
    chosen = [(anchor, level) for anchor, level in group if longest[id(anchor)] % steps == 0]
    numbered = [-(-level // (longest[id(anchor)] // steps)) for anchor, level in chosen]
    finest = next((level for anchor, level in chosen if longest[id(anchor)] == steps), None)
    orders += [] if finest is None else [o for a in mixed if (o := _fed_at_times(a, finest, steps)) is not None]
    numbered += _of_inputs(graph, [order for order in orders if len(order) == steps])
    # What does not depend on the chain is no part of a step, however it is numbered by what enters.
    own = np.max(numbered[: len(chosen)], axis=0)
    level = np.minimum(np.where(own > 0, np.max(numbered, axis=0), 0), steps)
    # Where a step begins again and again, only its first use is a mark.
    exact = [anchor for anchor, _ in chosen if longest[id(anchor)] == steps]
    anchors = tuple(exact or [anchor for anchor, _ in chosen])
    uses = {use for anchor in anchors for use in anchor.uses}
    starts = frozenset(_first_of_each_step(uses, level)) if not exact else frozenset()
    left_out = [anchor for anchor, _ in group if anchor not in [c for c, _ in chosen]]
    rare = tuple(a.index for a in left_out if max(len(a.uses), len(a.every)) < steps - 1)
    return Steps(graph, anchors, level.tolist(), frozenset(uses), steps, starts, rare)


def _how_many(
    graph: Graph, group: list[tuple[Anchor, np.ndarray]], beside: Sequence[Anchor]
) -> tuple[int, list[dict[int, int]]]:
    """Return how many steps a group of anchors makes, and the orders of what enters them one by one."""
    chains = [(anchor, level, int(level.max())) for anchor, level in group]
    # A weight that is used several times a step may make a longer chain than there are steps.
    lengths = [length for anchor, _, length in chains if length == len(anchor.uses)] or [c[2] for c in chains]
    most = max(lengths)
    finest = next(level for _, level, length in chains if length == most)
    marks = frozenset(use for anchor, _ in group for use in anchor.uses)
    orders = [e for other in beside if (e := _entered_at(graph, other, finest, marks)) is not None]
    counts = [len(order) for order in orders if most % len(order) == 0]
    # What is used less often numbers the steps only where it is used evenly: once every so many uses of the others.
    even = [count for count in lengths if most % count == 0]
    steps = max(counts) if counts else most if _data_enters_each(graph, finest, most) else min(even)
    if steps == most:
        steps //= in_a_row(graph, [order for order in orders if len(order) == most], most)
    return steps, orders


def grouped(steps: Steps, uses: int) -> Steps:
    """Make one step of several."""
    level = [-(-number // uses) for number in steps.level]
    starts = frozenset(_first_of_each_step(set(steps.marks), np.array(level)))
    return Steps(steps.graph, steps.anchors, level, steps.marks, steps.last // uses, starts)


def in_order(steps: Steps) -> Iterator[Steps]:
    """Number uses in the order in which they were made, where more follow each other than depend on each other.

    A decoder is given the truth at times: what enters then depends on no step before.
    """
    for count in sorted({len(a.every) for a in steps.anchors if len(a.every) > steps.last}, reverse=True):
        chosen = tuple(anchor for anchor in steps.anchors if len(anchor.every) == count)
        numbers = [dict(zip(sorted(anchor.every), range(1, count + 1), strict=True)) for anchor in chosen]
        level = levels(steps.graph, numbers, add=False).max(axis=1)
        marks = frozenset(use for anchor in chosen for use in anchor.every)
        yield Steps(steps.graph, chosen, level.tolist(), marks, count)


def is_tree(uses: Sequence[int]) -> bool:
    """Whether fewer and fewer uses meet from level to level."""
    shrinks = all(later <= earlier for earlier, later in pairwise(uses))
    return shrinks and uses[0] >= 2 * uses[-1] and len(set(uses)) > 2


def _first_of_each_step(uses: set[int], level: np.ndarray) -> Iterator[int]:
    seen = set()
    for use in sorted(uses):
        if level[use] not in seen:
            seen.add(level[use])
            yield use


def _data_enters_each(graph: Graph, level: np.ndarray, last: int) -> bool:
    """Whether data without a graph enters at every link of a chain: no solver that iterates between two inputs."""
    entered = set()
    for index in range(graph.first_inner, len(graph.nodes)):
        gathers = level[index] and graph.names[index].startswith(("Cat", "Stack"))
        if gathers and any(child < 0 for child, _ in graph.inputs[index]):
            entered.add(int(level[index]))
    return len(entered) >= last - 1


def _of_inputs(graph: Graph, orders: list[dict[int, int]]) -> list[np.ndarray]:
    """Return the levels by the uses of input projections; of those in a row, by the last one."""
    level = levels(graph, orders, add=False)
    last = [
        column
        for column in range(len(orders))
        if not any(
            level[use, column]
            for other in range(len(orders))
            if other != column
            for use in orders[other].keys() - orders[column].keys()
        )
    ]
    return [level[:, column] for column in last]


def _entered_at(graph: Graph, other: Anchor, level: np.ndarray, marks: frozenset[int]) -> dict[int, int] | None:
    """Number the uses of a projection by the steps that what they make enters; None where that is not one by one.

    The first step has no past, and the last nothing after it: what enters them may be seen a step early or not at all.
    """
    if len(other.uses) < MIN_STEPS or any(level[use] for use in other.uses):
        return None
    for at_marks in (False, True):
        entered = {use: _enters(graph, use, level, marks if at_marks else None) for use in other.uses}
        unseen = [use for use, at in entered.items() if at is None]
        if len(unseen) > 1:
            continue
        order = sorted(entered, key=lambda use: (entered[use] is None, entered[use], use))
        inner = [entered[use] for use in (order[1:-1] if len(order) > MIN_STEPS else order)]
        strides = {later - earlier for earlier, later in pairwise(inner) if earlier is not None and later is not None}
        if strides == {int(level.max()) // len(order)}:
            return {use: position for position, use in enumerate(order, start=1)}
    return None


def _fed_at_times(anchor: Anchor, level: np.ndarray, steps: int) -> dict[int, int] | None:
    """Number the uses of a projection that is given what the step before made, or the truth; None for any other."""
    order = {use: position for position, use in enumerate(sorted(anchor.uses), start=1)}
    fed = any(level[use] == position - 1 > 0 for use, position in order.items())
    if len(order) != steps or not fed or any(level[use] >= position for use, position in order.items()):
        return None
    return order


def _enters(graph: Graph, use: int, level: np.ndarray, marks: frozenset[int] | None) -> int | None:
    """Return the first level at which what a node makes joins a chain, or one of its marks; None if it never does."""
    todo, seen, first = [use], {use}, None
    while todo and len(seen) < 256:
        for user, _ in graph.users[todo.pop()]:
            if user in seen:
                continue
            seen.add(user)
            joins = level[user] if marks is None else user in marks
            if joins:
                first = int(level[user]) if first is None else min(first, int(level[user]))
            else:
                todo.append(user)
    return first
