"""The states of numbered steps: what crosses from one step to the next, followed through all of them, and its role."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.anchors import levels
from gradscope.capture.calls.recurrences.cut import smallest_cut
from gradscope.capture.calls.recurrences.entering import (
    direct_of,
    enters_several,
    entries_of,
    initials_of,
    only_in_depth,
)
from gradscope.capture.calls.recurrences.kinds import kind_of
from gradscope.capture.calls.recurrences.matching import below_rearrangements, follow
from gradscope.capture.calls.recurrences.operations import PRODUCTS, REARRANGES
from gradscope.capture.calls.recurrences.passing import passing
from gradscope.capture.calls.recurrences.recurrence import BRANCHED, DISTINCT, MIN_STEPS, UNMATCHED, Place, Recurrence
from gradscope.capture.calls.recurrences.steps import Steps, grouped, in_order, is_tree


def recurrence_of(steps: Steps) -> Recurrence | str | None:
    """Find the states of numbered steps; a reason where they cannot be followed, None where there is nothing."""
    if _has_own_weights(steps):
        return DISTINCT
    if is_tree([len(steps.marked(step)) for step in range(1, steps.last + 1)]):
        return BRANCHED
    for candidate in in_order(steps):
        states = _states_of(candidate)
        if isinstance(states, tuple) and _is_chain(candidate, states[1]):
            return _described(candidate, *states)
    failed: str | None = UNMATCHED
    for candidate in _candidates(steps):
        states = _states_of(candidate)
        if isinstance(states, tuple):
            return _described(candidate, *states)
        failed = states if candidate is steps else failed
    return failed


def _candidates(steps: Steps) -> Iterator[Steps]:
    """Yield the steps as they are numbered, then several at once: a weight may be used upon what it made in a step."""
    yield steps
    for uses in range(2, 7) if not steps.starts else ():
        if steps.last % uses == 0 and steps.last // uses >= MIN_STEPS:
            yield grouped(steps, uses)


def _is_there(state: list[Place | None]) -> bool:
    """Whether a state is seen at every step but for the first or the last, and often enough."""
    return None not in state[1:-1] and (state[0] is not None or len(state) - state.count(None) >= MIN_STEPS)


def _is_chain(steps: Steps, states: list[list[Place | None]]) -> bool:
    """Whether a state is there at every step and follows from the one before."""
    for state in states:
        nodes = [place[0] for place in state if place is not None]
        if len(nodes) == steps.last == int(levels(steps.graph, [dict.fromkeys(nodes, 1)], add=True).max()):
            return True
    return False


def _states_of(steps: Steps) -> tuple[int, list[list[Place | None]]] | str | None:
    """Return a step in the middle and the states of every step.

    A reason where they cannot be followed, None where a known layer carries them.
    """
    template = _template(steps)
    if template is None:
        return UNMATCHED
    middle, places = template
    places = [below_rearrangements(steps, place, middle) for place in places]
    places = list(dict.fromkeys(places))
    by_layers = [place for place in places if steps.graph.is_call(place[0])]
    places = [place for place in places if place not in by_layers and not (by_layers and _by_a_layer(steps, place))]
    if not places:
        return None
    followed = [state for place in places if (state := follow(steps, middle, place)) is not None]
    if len(followed) < len(places) or not any(_is_there(state) for state in followed):
        return UNMATCHED
    return middle, sorted(followed, key=lambda state: next(place for place in state if place is not None))


def _by_a_layer(steps: Steps, place: Place) -> bool:
    """Whether a tensor reaches the next step by a known layer alone: its output, fed back."""
    graph, level, step = steps.graph, steps.level, steps.level[place[0]]
    past = _made_of(
        graph, place[0], lambda user: steps.lives(user) and level[user] <= step + 1 and not graph.is_call(user)
    )
    return not any(level[user] > step and user in steps.marks for user in past)


def _described(steps: Steps, middle: int, states: list[list[Place | None]]) -> Recurrence:
    """Tell the roles of states, and what enters and leaves."""
    found = Recurrence(tuple(a.index for a in steps.anchors), steps.last, states, _roles(steps, middle, states))
    entries = entries_of(steps, states)
    entering = {place for places in entries[:1] for place in places.values()}
    return replace(
        found,
        entries=entries,
        initial=[None if place in entering else place for place in initials_of(steps, states)],
        direct=direct_of(steps, found),
        shared_input=enters_several(steps),
        by_depth=only_in_depth(steps),
        level=steps.level,
        rare=steps.rare,
        passing=passing(steps, states),
        unread=frozenset(
            i for i, state in enumerate(states) if state[-1] is None and _is_unread(steps, middle, i, states)
        ),
    )


def _is_unread(steps: Steps, middle: int, which: int, states: list[list[Place | None]]) -> bool:
    """Whether nothing but the next step reads a state: no output, and no other state of the same step."""
    graph, place = steps.graph, states[which][middle - 1]
    others = [state[middle - 1] for i, state in enumerate(states) if i != which]
    if place is None or any(_makes(steps, place, other) or _makes(steps, other, place) for other in others):
        return False
    users = [user for user, at in graph.users[place[0]] if graph.inputs[user][at][1] == place[1]]
    return all(steps.lives(user) or user in steps.marks or steps.level[user] > middle for user in users)


def _has_own_weights(steps: Steps) -> bool:
    """Whether steps use leaves on the state's path that no other step uses: layers in a row, not a recurrence."""
    graph, with_own = steps.graph, 0
    for step in range(2, steps.last):
        for index in steps.at.get(step, ()):
            if not steps.lives(index):
                continue
            leaves = {c for c, _ in graph.inputs[index] if 0 <= c < graph.first_inner}
            leaves |= {
                c
                for k in graph.inner(index)
                if steps.level[k] == 0
                for c, _ in graph.inputs[k]
                if 0 <= c < graph.first_inner
            }
            if any(_is_matrix(graph, leaf) and _serves_one_step(steps, leaf) for leaf in leaves):
                with_own += 1
                break
    return with_own >= 2


def _is_matrix(graph: Graph, leaf: int) -> bool:
    return graph.of_weights[leaf] and graph.leaves[leaf].dim() > 1


def _serves_one_step(steps: Steps, leaf: int) -> bool:
    """Whether a weight is used in a single step, however it is rearranged before."""
    graph, todo, seen, served = steps.graph, [leaf], set(), set()
    while todo:
        for user, _ in graph.users[todo.pop()]:
            if user in seen:
                continue
            seen.add(user)
            if graph.of_weights[user]:
                todo.append(user)
            else:
                served.add(steps.level[user] or user)
        if len(served) > 1:
            return False
    return True


def _template(steps: Steps) -> tuple[int, list[Place]] | None:
    """Return a step in the middle and the tensors that cross from it to the next, where the step after agrees."""
    names = steps.graph.names

    def gathers(index: int) -> bool:
        return names[index].startswith(("CatBackward", "StackBackward"))

    order = sorted(range(2, max(steps.last - 1, 3)), key=lambda step: abs(step - steps.last // 2))
    # Two steps in a row must agree: to the letter, else in their operations, which matching by paths may do with.
    cuts: dict[int, list[Place]] = {}
    exact: dict[int, tuple[tuple[str, int, int], ...]] = {}
    for step in order[:8]:
        cut = sorted(smallest_cut(steps.graph, steps.at.get(step, []), steps.level, steps.lives, gathers))
        marked = steps.marked(step)
        if not cut or not marked:
            continue
        cuts[step] = cut
        exact[step] = tuple((names[index], nr, index - marked[0]) for index, nr in cut)
        if steps.last <= MIN_STEPS + 1 or exact[step] in (exact.get(step - 1), exact.get(step + 1)):
            return step, cut
    for step, cut in cuts.items():
        operations = sorted(names[index] for index, _ in cut)
        for other in (step - 1, step + 1):
            if other in cuts and operations == sorted(names[index] for index, _ in cuts[other]):
                return step, cut
    # An output may be fed back at times: what crosses anyway is what the fewest tensors do.
    return min(cuts.items(), key=lambda of: len(of[1])) if len(cuts) > 1 else None


def _roles(steps: Steps, middle: int, states: list[list[Place | None]]) -> tuple[str, ...]:
    """Tell the state that enters the recurrent weight from the one that is carried past it, or number them."""
    if len(states) == 1:
        return ("hidden",)
    here = [state[middle - 1] for state in states]
    entering = [_enters_weight(steps, place, middle, here) for place in here]
    entered = [i for i, enters in enumerate(entering) if enters]
    past = [i for i, enters in enumerate(entering) if not enters and _is_carried(steps, here[i], middle)]
    if len(entered) > 1 and len(past) == 1:
        # An output that is fed back enters a weight as well, but is not made of the cell state as h = o · tanh(c) is.
        entered = [i for i in entered if _carries(steps, here[past[0]], middle, states[i])]
    named: dict[int, str] = {}
    for own in entered if len(entered) == 1 else ():
        named[own] = "hidden"
        for i in range(len(states)):
            only = not entering[i] and (len(states) == 2 or past == [i])
            gated = i in past and _is_gated(steps, here[i]) and _makes(steps, here[i], here[own])
            if only and (gated or _carries(steps, here[i], middle, states[own])):
                named[i] = _cell(here[i], here[own])
    numbers = count(1)
    return tuple(named.get(i) or f"state_{next(numbers)}" for i in range(len(states)))


def _cell(cell: Place | None, hidden: Place | None) -> str:
    """Name what is carried past the weight: where one node makes it and h, what leaves it by way of h is not seen."""
    return "cell" if cell is None or hidden is None or cell[0] != hidden[0] else "cell_carry"


def _makes(steps: Steps, place: Place | None, other: Place | None) -> bool:
    """Whether one tensor of a step is made of another of the same step."""
    if place is None or other is None:
        return False
    level = steps.level
    return other[0] == place[0] or other[0] in _made_of(
        steps.graph, place[0], lambda user: level[user] == level[place[0]]
    )


def _carries(steps: Steps, place: Place | None, step: int, hidden: list[Place | None]) -> bool:
    """Whether the hidden state is made of another by no product with a weight: as in h = o · tanh(c)."""
    if place is None:
        return False
    wanted = {state[0] for state in hidden[step - 1 : step + 1] if state is not None}
    return any(index in wanted for index in _past_products(steps, place, step))


def _is_gated(steps: Steps, place: Place | None) -> bool:
    """Whether a state is multiplied with what a step makes, as by a forget gate; a fixed decay is none."""
    graph = steps.graph
    for user, _ in graph.users[place[0]] if place is not None else ():
        others = [child for child, _ in graph.inputs[user] if place is not None and child != place[0]]
        if graph.names[user].startswith("Mul") and any(steps.level[c] > 0 for c in others if c >= 0):
            return True
    return False


def _past_products(steps: Steps, place: Place, step: int) -> Iterator[int]:
    """Yield what is made of a state in its step and the next by no product with a weight."""
    names, level = steps.graph.names, steps.level
    return _made_of(
        steps.graph, place[0], lambda user: level[user] <= step + 1 and not names[user].startswith(PRODUCTS)
    )


def _made_of(graph: Graph, index: int, takes: Callable[[int], bool]) -> Iterator[int]:
    """Yield what is made of a node by way of those that ``takes`` lets through, nearest first."""
    todo, seen = [index], {index}
    for below in todo:
        for user, _ in graph.users[below]:
            if user not in seen and takes(user):
                seen.add(user)
                todo.append(user)
                yield user


def _is_carried(steps: Steps, place: Place | None, step: int) -> bool:
    """Whether a state reaches the next one of its own by no product with a weight: as in c' = f · c + i · g."""
    if place is None:
        return False
    kind = kind_of(steps.graph, place[0], steps.level)
    above = _past_products(steps, place, step)
    return any(steps.level[i] == step + 1 and kind_of(steps.graph, i, steps.level) == kind for i in above)


def _enters_weight(steps: Steps, place: Place | None, step: int, states: list[Place | None]) -> bool:
    """Whether a state meets a product with a weight first thing in the next step, not by way of another state."""
    if place is None:
        return False
    graph, todo, seen = steps.graph, [place], {place}
    while todo:
        index, nr = todo.pop()
        for user, at in graph.users[index]:
            if graph.inputs[user][at][1] != nr:
                continue
            if user in steps.marks and steps.level[user] > step:
                if graph.names[user].startswith(PRODUCTS) or graph.is_call(user):
                    return True
            elif steps.level[user] == step or (
                steps.level[user] == step + 1 and graph.names[user].startswith(REARRANGES)
            ):
                made = {(user, graph.inputs[other][place][1]) for other, place in graph.users[user]} - seen
                made -= {state for state in states if state is not None}
                seen |= made
                todo.extend(made)
    return False
