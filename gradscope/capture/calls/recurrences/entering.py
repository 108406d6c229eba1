"""What enters a recurrence from outside the loop, and what leaves it: inputs, initial states, what reads the state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.operations import PRODUCTS, SLICES, slice_of
from gradscope.capture.calls.recurrences.recurrence import Place, Recurrence
from gradscope.capture.calls.recurrences.steps import Steps


def only_in_depth(steps: Steps) -> bool:
    """Whether the steps are applications in depth: nothing but weights enters them, and nothing leaves."""
    return not _something_enters(steps) and not _something_leaves(steps)


def _something_enters(steps: Steps) -> bool:
    """Whether anything but weights enters a step after the first: data without a graph, or a tensor from outside."""
    graph = steps.graph
    for index in (index for step in range(2, max(steps.last, 3)) for index in steps.at.get(step, ())):
        for child, _ in graph.inputs[index]:
            if child >= graph.first_inner and steps.level[child] == 0 and not graph.of_weights[child]:
                return True
            if child < 0 and graph.names[index].startswith((*PRODUCTS, "Cat", "Stack", "Mkldnn", "Cudnn")):
                return True
    return False


def enters_several(steps: Steps) -> bool:
    """Whether a tensor from outside that has a graph, and is no weight, enters a step in the middle and others."""
    graph, level = steps.graph, steps.level
    children = {child for index in steps.at.get(steps.last // 2 + 1, ()) for child, _ in graph.inputs[index]}
    outside = [child for child in children if child >= 0 and level[child] == 0 and not graph.of_weights[child]]
    return any(len({level[user] for user, _ in graph.users[child]} - {0}) > 1 for child in outside)


def _something_leaves(steps: Steps) -> bool:
    """Whether what a step in the middle makes is used anywhere but in the next step."""
    middle = steps.at.get(steps.last // 2, ())
    return any(
        not steps.lives(user) and user not in steps.marks
        for index in middle
        if steps.lives(index)
        for user, _ in steps.graph.users[index]
    )


def entries_of(steps: Steps, states: list[list[Place | None]]) -> list[dict[int, Place]]:
    """Return what enters each step from outside the loop and belongs to it alone: ∂L/∂x_t is taken there.

    By numbers that are the same at every step; the first may lack what only a state before it would have met.
    """
    graph, level, first = steps.graph, steps.level, steps.graph.first_inner
    after = _after_states(steps, states)
    owner = [0] * len(graph.nodes)
    for index in range(len(graph.nodes) - 1, -1, -1):
        if not level[index]:
            serves = {level[u] + (u in after) if level[u] else owner[u] for u, _ in graph.users[index]}
            owner[index] = serves.pop() if len(serves) == 1 else 0

    def owned(place: Place) -> int:
        """Return the one step that a tensor from outside the loop serves; 0 for several."""
        index, nr = place
        if owner[index] or not graph.names[index].startswith(("Unbind", "Split")):
            return owner[index]
        takers = [user for user, at in graph.users[index] if graph.inputs[user][at][1] == nr]
        serves = {level[user] + (user in after) if level[user] else owner[user] for user in takers}
        return serves.pop() if len(serves) == 1 else 0

    by_step: dict[int, dict[tuple[str, ...], list[Place]]] = defaultdict(lambda: defaultdict(list))
    for index in range(first, len(graph.nodes)):
        step = level[index] + (index in after)
        if not level[index]:
            # The first step has no past to be told by.
            if owner[index] != 1:
                continue
            step = 1
        for child, nr in graph.inputs[index]:
            if 0 <= child < first and not graph.of_weights[child] and owner[child] == step:
                by_step[step][graph.names[index], "leaf"].append((child, nr))
            elif child >= first and level[child] == 0 and owned((child, nr)) == step:
                for way, place in _outermost(graph, (child, nr), owned, step):
                    by_step[step][(graph.names[index], *way)].append(place)
    every = {step: {way: sorted(set(places)) for way, places in ways.items()} for step, ways in by_step.items()}
    # The same tensor in every step: as many of a kind.
    kinds = [{(way, len(places)) for way, places in every.get(step, {}).items()} for step in range(2, steps.last + 1)]
    common = {way for way, _ in set.intersection(*kinds)} if kinds else set()
    if not common:
        return []
    entries = []
    in_order = sorted(common, key=lambda way: every[2][way])
    size = {way: len(every[2][way]) for way in in_order}
    for step in range(1, steps.last + 1):
        ways, here, number = every.get(step, {}), dict[int, Place](), 0
        for way in in_order:
            places = ways.get(way, [])
            here.update(enumerate(places if len(places) == size[way] else (), start=number))
            number += size[way]
        entries.append(here)
    return entries


def tensors_of(graph: Graph, entries: list[dict[int, Place]]) -> dict[int, int]:
    """Number the tensors among what enters a step: a timestep that is cut out several times is one of them."""
    known: dict[tuple[object, ...], int] = {}
    whole = max(entries, key=len)
    return {at: known.setdefault(_cut_from(graph, place), len(known)) for at, place in whole.items()}


def _cut_from(graph: Graph, place: Place) -> tuple[object, ...]:
    """Tell what a tensor is a slice of, and which; of the tensor itself where that cannot be told."""
    index = place[0]
    name = graph.names[index] if index >= graph.first_inner else ""
    source = [consumed for consumed in graph.inputs[index] if consumed[0] >= 0] if name.startswith(SLICES) else []
    if len(source) != 1 or (which := slice_of(graph.nodes[index])) is None:
        return place
    return _cut_from(graph, source[0]), which


def _after_states(steps: Steps, states: list[list[Place | None]]) -> set[int]:
    """Return the nodes that stand between the states of a step and the beginning of the next."""
    graph, found = steps.graph, set()
    for step in range(1, steps.last + 1):
        todo = [state[step - 1] for state in states]
        nodes = [place[0] for place in todo if place is not None]
        while nodes:
            for user, _ in graph.users[nodes.pop()]:
                if steps.level[user] == step and user not in found:
                    found.add(user)
                    nodes.append(user)
        found -= {place[0] for place in todo if place is not None}
    return found


def _outermost(
    graph: Graph, place: Place, owned: Callable[[Place], int], step: int
) -> Iterator[tuple[tuple[str, ...], Place]]:
    """Follow a tensor down through nodes that serve one step only; yield the last ones, but for rearranged weights."""
    todo: list[tuple[tuple[str, ...], Place]] = [((graph.names[place[0]],), place)]
    seen: set[Place] = set()
    while todo:
        way, (index, nr) = todo.pop()
        if (index, nr) in seen or len(seen) > 64:
            continue
        seen.add((index, nr))
        leaves = [(c, n) for c, n in graph.inputs[index] if 0 <= c < graph.first_inner and not graph.of_weights[c]]
        leaves = [leaf for leaf in leaves if owned(leaf) == step]
        yield from (((*way, "leaf"), leaf) for leaf in leaves)
        if leaves:
            continue
        deeper = [(c, n) for c, n in graph.inputs[index] if c >= graph.first_inner and owned((c, n)) == step]
        if deeper:
            todo.extend(((*way, graph.names[c]), (c, n)) for c, n in deeper)
        elif not _of_weights_alone(graph, index):
            yield way, (index, nr)


def _of_weights_alone(graph: Graph, index: int) -> bool:
    """Whether a tensor is a weight, or one that was merely given a batch axis."""
    spread = graph.names[index].startswith(("Expand", "Repeat"))
    return graph.of_weights[index] or (spread and all(graph.of_weights[child] for child in graph.inputs[index][0][:1]))


def initials_of(steps: Steps, states: list[list[Place | None]]) -> list[Place | None]:
    """Return, of each state, the tensor that enters the first step where the state enters the second."""
    makes = _making(steps, [state[0] for state in states], 1)
    return [_initial_of(steps, state, makes) for state in states]


def _making(steps: Steps, states: Iterable[Place | None], begin: int) -> set[int]:
    """Return the nodes that make states, themselves among them, as far down as step ``begin``."""
    makes: set[int] = set()
    todo = [place[0] for place in states if place is not None]
    while todo:
        index = todo.pop()
        if index not in makes and steps.level[index] >= begin:
            makes.add(index)
            todo.extend(steps.graph.inner(index))
    return makes


def _initial_of(steps: Steps, state: list[Place | None], makes: set[int]) -> Place | None:
    """Return what enters the first step in the place of a state; ``makes`` are the nodes that make the first ones."""
    graph, first = steps.graph, state[0]
    if first is None or steps.last < 2:
        return None
    marks = steps.marked(1), steps.marked(2)
    if not marks[0] or not marks[1]:
        return None
    for user, at in graph.users[first[0]]:
        if graph.inputs[user][at][1] != first[1] or user in makes:
            continue
        before = user - marks[1][0] + marks[0][0]
        if not graph.first_inner <= before < len(graph.nodes):
            continue
        ends = sorted((before, marks[0][0])), sorted((user, marks[1][0]))
        if graph.names[ends[0][0] : ends[0][1] + 1] == graph.names[ends[1][0] : ends[1][1] + 1]:
            place = graph.inputs[before][at] if at < len(graph.inputs[before]) else (-1, 0)
            if place[0] >= 0 and steps.level[place[0]] == 0:
                return place
    return None


def direct_of(steps: Steps, found: Recurrence) -> list[list[Place]] | None:
    """Return who consumes the hidden state outside of the loop; None if that cannot be told from what is fed back."""
    if "hidden" not in found.roles:
        return None
    graph = steps.graph
    states = {place for state in found.states for place in state if place is not None}
    hidden = found.states[found.roles.index("hidden")]
    # No step follows the last one: what leads to its states is told by them.
    makes = _making(steps, [state[-1] for state in found.states], max(found.steps - 1, 1))
    result = []

    def stays(user: int, step: int) -> bool:
        return steps.lives(user) or user in makes or (user in steps.marks and steps.level[user] > step)

    for step, place in enumerate(hidden, start=1):
        if place is None:
            return None
        outside, todo, seen = [], [], set()
        for user, at in graph.users[place[0]]:
            if graph.inputs[user][at][1] != place[1]:
                continue
            if step < found.steps and stays(user, step):
                todo.append(user)
            else:
                outside.append((user, at))
        # Whatever is fed back must not leave the loop on its own.
        while todo:
            index = todo.pop()
            if index in seen or steps.level[index] > step:
                continue
            seen.add(index)
            if any((index, nr) in states for nr in range(2)):
                continue
            for user, _ in graph.users[index]:
                if step < found.steps and not stays(user, step):
                    return None
                todo.append(user)
        result.append(outside)
    return result
