"""How a state goes from one call of a known layer to the next: used elsewhere on the way, or its rows reordered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gradscope.capture.calls.cells import REORDERED, CellSequence
from gradscope.capture.calls.graph import Graph, KnownCall
from gradscope.capture.calls.recurrences.axes import changes_rows
from gradscope.capture.calls.sequence import FusedSequence


def check_known(graph: Graph) -> None:
    """See how states go from call to call: whether they are used elsewhere, and whether rows stay in place."""
    at: dict[tuple[int, int], int] = {}
    lines: dict[int, FusedSequence | CellSequence] = {}
    for index in range(graph.first_inner, len(graph.nodes)):
        node = graph.nodes[index]
        if isinstance(node, KnownCall) and isinstance(node.owner, FusedSequence | CellSequence):
            at[id(node.owner), node.position] = index
            lines[id(node.owner)] = node.owner
    for key, line in lines.items():
        if len(line.calls) > 1:
            _check(graph, line, [at.get((key, position)) for position in range(len(line.calls))])


def _check(graph: Graph, line: FusedSequence | CellSequence, at: Sequence[int | None]) -> None:
    """Check the states between the calls of one line, of which those in the graph are at ``at``."""
    fused = isinstance(line, FusedSequence)
    mixed = False
    for here, there in pairwise(at):
        if here is None or there is None:
            continue
        mixed = mixed or (fused and _used_elsewhere(graph, here, there))
        if not any(child == here for child, _ in graph.inputs[there]):
            way = _way_between(graph, here, there)
            change = changes_rows(graph, way, 1 if fused else 0)
            if change == "other" or (change and fused):
                line.unfollowed = REORDERED
    if isinstance(line, FusedSequence):
        line.mixed = mixed


def _used_elsewhere(graph: Graph, here: int, there: int) -> bool:
    """Whether a state between two calls goes anywhere but into the next call."""
    todo = [user for user, at in graph.users[here] if graph.inputs[user][at][1] in (1, 2)]
    seen: set[int] = set()
    while todo:
        index = todo.pop()
        if index == there:
            continue
        if index in seen:
            continue
        if graph.is_call(index) or not graph.users[index] or len(seen) > 64:
            return True
        seen.add(index)
        todo.extend(user for user, _ in graph.users[index])
    return False


def _way_between(graph: Graph, here: int, there: int) -> list[tuple[int, int]]:
    """Return the nodes on a shortest way from one call to the next, each with the place at which it is entered."""
    came: dict[int, tuple[int, int]] = {}
    todo = [there]
    for index in todo:
        for at, (child, _) in enumerate(graph.inputs[index]):
            if child == here:
                way = [(index, at)] if index != there else []
                while index != there:
                    above, entered = came[index]
                    if above != there:
                        way.append((above, entered))
                    index = above
                return way
            if child > here and child not in came:
                came[child] = (index, at)
                todo.append(child)
    return []
