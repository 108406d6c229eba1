"""The states of numbered steps: what crosses from one step to the next, followed through all of them, and its role."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.cut import smallest_cut
from gradscope.capture.calls.recurrences.entering import direct_of, entries_of, initials_of, only_in_depth
from gradscope.capture.calls.recurrences.matching import below_rearrangements, follow
from gradscope.capture.calls.recurrences.operations import PRODUCTS
from gradscope.capture.calls.recurrences.recurrence import BRANCHED, DISTINCT, MIN_STEPS, UNMATCHED, Place, Recurrence
from gradscope.capture.calls.recurrences.steps import Steps, grouped


def recurrence_of(steps: Steps) -> Recurrence | str | None:
    """Find the states of numbered steps; a reason where they cannot be followed, None where there is nothing."""
    if _has_own_weights(steps):
        return DISTINCT
    if _branches(steps):
        return BRANCHED
    steps_as_given = steps
    template = _template(steps)
    for uses in range(2, 7) if template is None and not steps.starts else ():
        # The weight may be used several times a step, one upon the other.
        if steps.last % uses == 0 and steps.last // uses >= MIN_STEPS:
            steps = grouped(steps, uses)
            template = _template(steps)
            if template is not None:
                break
            steps = steps_as_given
    if template is None:
        return UNMATCHED
    middle, places = template
    places = [below_rearrangements(steps, place, middle) for place in places]
    places = list(dict.fromkeys(places))
    places = [place for place in places if not steps.graph.is_call(place[0])]
    if not places:
        return None
    followed = [state for place in places if (state := follow(steps, middle, place)) is not None]
    if len(followed) < len(places):
        return UNMATCHED
    states = sorted(followed, key=lambda state: next(place for place in state if place is not None))
    found = Recurrence(tuple(a.index for a in steps.anchors), steps.last, states, _roles(steps, middle, states))
    entries = entries_of(steps, states)
    entering = {place for places in entries[:1] for place in places.values()}
    return replace(
        found,
        entries=entries,
        initial=[None if place in entering else place for place in initials_of(steps, states)],
        direct=direct_of(steps, found),
        by_depth=only_in_depth(steps),
        level=steps.level,
        rare=steps.rare,
    )


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


def _branches(steps: Steps) -> bool:
    """Whether fewer and fewer uses meet, as in a tree."""
    counts = [len(steps.marked(step)) for step in range(1, steps.last + 1)]
    shrinks = all(later <= earlier for earlier, later in pairwise(counts))
    return shrinks and counts[0] >= 2 * counts[-1] and len(set(counts)) > 2


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
    return None


def _roles(steps: Steps, middle: int, states: list[list[Place | None]]) -> tuple[str, ...]:
    """Tell the state that enters the recurrent weight from the one that is carried past it, or number them."""
    if len(states) == 1:
        return ("hidden",)
    here = [state[middle - 1] for state in states]
    entering = [_enters_weight(steps, place, middle, here) for place in here]
    if sum(entering) == 1 and len(states) == 2:
        return tuple("hidden" if enters else "cell" for enters in entering)
    roles, number = [], 0
    for enters in entering:
        if enters and sum(entering) == 1:
            roles.append("hidden")
        else:
            number += 1
            roles.append(f"state_{number}")
    return tuple(roles)


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
            elif steps.level[user] == step:
                made = {(user, graph.inputs[other][place][1]) for other, place in graph.users[user]} - seen
                made -= {state for state in states if state is not None}
                seen |= made
                todo.extend(made)
    return False
