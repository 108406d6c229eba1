"""The smallest set of tensors that separates one step of a recurrence from the next."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from gradscope.capture.calls.graph import Graph

#: More tensors than this are no state that a person would name.
LARGEST_CUT = 16

_SOURCE, _SINK = -1, -2


def smallest_cut(
    graph: Graph,
    nodes: Sequence[int],
    level: Sequence[int],
    lives: Callable[[int], bool],
    gathers: Callable[[int], bool] = lambda _: False,
) -> list[tuple[int, int]]:
    """Return the tensors made in one step through which everything passes that a later one needs of the past.

    Of several sets of the same size, the one nearest to the next step.

    Parameters
    ----------
    graph : Graph
    nodes : sequence of int
        The nodes of the step.
    level : sequence of int
        The step of every node.
    lives : callable
        Whether what a node makes is used by a later step.
    gathers : callable
        Whether a node merely puts tensors together: rather its parts than it, if they are no more.
    """
    whole = _cut(graph, nodes, level, lives, lambda _: False)
    if not any(gathers(index) for index, _ in whole):
        return whole
    parts = _cut(graph, nodes, level, lives, gathers)
    return parts if 0 < len(parts) <= len(whole) else whole


def _cut(
    graph: Graph,
    nodes: Sequence[int],
    level: Sequence[int],
    lives: Callable[[int], bool],
    passes: Callable[[int], bool],
) -> list[tuple[int, int]]:
    if not nodes:
        return []
    step, mine = level[nodes[0]], {index for index in nodes if lives(index)}
    unlimited = len(nodes) + 1
    # Tensors are split into a vertex that is entered, 2i, and one that is left, 2i + 1, with room for one between.
    number: dict[tuple[int, int], int] = {}
    room: dict[int, dict[int, int]] = defaultdict(dict)

    def vertex(place: tuple[int, int]) -> int:
        if place not in number:
            number[place] = len(number)
            room[2 * number[place]][2 * number[place] + 1] = unlimited if passes(place[0]) else 1
            room[2 * number[place] + 1].setdefault(2 * number[place], 0)
        return 2 * number[place]

    def connect(start: int, end: int) -> None:
        room[start][end] = unlimited
        room[end].setdefault(start, 0)

    for index in mine:
        consumed = graph.inputs[index]
        made = {graph.inputs[user][at][1] for user, at in graph.users[index]}
        entered = any(child >= graph.first_inner and 1 <= level[child] < step for child, _ in consumed)
        for nr in made:
            here = vertex((index, nr))
            if entered:
                connect(_SOURCE, here)
            for place in consumed:
                if place[0] in mine:
                    connect(vertex(place) + 1, here)
        for user, at in graph.users[index]:
            if level[user] > step and (lives(user) or level[user] == step + 1):
                connect(vertex((index, graph.inputs[user][at][1])) + 1, _SINK)
    return _nearest_cut(room, number)


def _nearest_cut(room: dict[int, dict[int, int]], number: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Let as much flow as there is room for; the cut lies where it is full, nearest to the sink."""
    for _ in range(LARGEST_CUT + 1):
        came = _path(room)
        if came is None:
            break
        end = _SINK
        while end != _SOURCE:
            start = came[end]
            room[start][end] -= 1
            room[end][start] = room[end].get(start, 0) + 1
            end = start
    else:
        return []
    leads: set[int] = {_SINK}
    todo = deque(leads)
    before = defaultdict(list)
    for start, ends in room.items():
        for end, left in ends.items():
            if left > 0:
                before[end].append(start)
    while todo:
        for start in before[todo.popleft()]:
            if start not in leads:
                leads.add(start)
                todo.append(start)
    return [place for place, i in number.items() if 2 * i + 1 in leads and 2 * i not in leads]


def _path(room: dict[int, dict[int, int]]) -> dict[int, int] | None:
    """Return a shortest way from source to sink on which there is room, as predecessors."""
    came, todo = {_SOURCE: _SOURCE}, deque([_SOURCE])
    while todo:
        start = todo.popleft()
        for end, left in room[start].items():
            if left > 0 and end not in came:
                came[end] = start
                if end == _SINK:
                    return came
                todo.append(end)
    return None
