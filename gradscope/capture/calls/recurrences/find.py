"""Find recurrences in an autograd graph by data flow alone: no name, class or position of an argument is looked at.

A weight that is used again on what it made before marks a recurrence: each use begins a step. What crosses from one
step to the next, taken as the smallest set of tensors that separates them, is the state. Where nothing trainable lies
in the chain, the uses of an input projection number the steps instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.anchors import Anchor, levels, slices_of, sources_in, weights_in
from gradscope.capture.calls.recurrences.chains import chained, separate
from gradscope.capture.calls.recurrences.entering import direct_of
from gradscope.capture.calls.recurrences.joins import numbered_by_input
from gradscope.capture.calls.recurrences.recurrence import MIN_STEPS, UNMATCHED, NearMiss, Place, Recurrence
from gradscope.capture.calls.recurrences.states import recurrence_of
from gradscope.capture.calls.recurrences.steps import Steps, groups


def find(graph: Graph) -> tuple[list[Recurrence], list[NearMiss]]:
    """Find every recurrence of a graph, and what came close to being one."""
    found: list[Recurrence] = []
    misses: list[NearMiss] = []
    taken: set[int] = set()
    chains, beside, mixed = chained(graph, weights_in(graph))
    for steps in groups(graph, chains, beside, mixed):
        _settle(steps, found, misses, taken)
    for steps in numbered_by_input(graph, [a for a in beside if a.index < graph.first_inner], taken):
        _settle(steps, found, misses, taken)
    sources = [anchor for anchor in sources_in(graph) if not anchor.uses & taken]
    for steps in numbered_by_input(graph, [slices_of(graph, anchor) for anchor in sources], taken):
        every = max(anchor.parts for anchor in steps.anchors) == steps.last
        if every and not steps.marks & taken and _shows_all(recurrence_of(steps), MIN_STEPS):
            _settle(steps, found, [], taken)
    sources = [anchor for anchor in sources if not anchor.uses & taken]
    chains, beside, _ = chained(graph, sources)
    for steps in (*groups(graph, chains), *numbered_by_input(graph, beside, taken)):
        # The parts of one tensor are no timesteps where they do not lead to a state at each.
        if not steps.marks & taken and _shows_all(recurrence_of(steps)):
            if max(anchor.parts for anchor in steps.anchors) > steps.last:
                misses.append(NearMiss(tuple(a.index for a in steps.anchors), steps.last, UNMATCHED))
            else:
                _settle(steps, found, [], taken)
    misses = [miss for miss in misses if not miss.marks & taken_by(found, graph)]
    return _unique(found), misses


def _settle(steps: Steps, found: list[Recurrence], misses: list[NearMiss], taken: set[int]) -> None:
    """Find the states of numbered steps; note what the recurrence takes up, so that nothing is found twice."""
    graph = steps.graph
    taken.update(index for index in range(graph.first_inner, len(steps.level)) if steps.lives(index))
    taken.update(steps.marks)
    anchors = tuple(anchor.index for anchor in steps.anchors)
    if all(graph.is_call(anchor) for anchor in anchors):
        return
    result = recurrence_of(steps)
    if isinstance(result, str) and any(graph.is_call(anchor) for anchor in anchors):
        return  # the weights of a loop whose state a known layer carries
    if isinstance(result, str):
        misses.append(NearMiss(anchors, steps.last, result, steps.marks))
    elif result is not None:
        found.append(result)
        taken.update(_below_last(steps, result))


def _shows_all(found: Recurrence | str | None, least: int = 1) -> bool:
    """Whether every state is there at all steps but the last, and at so many at least."""
    if not isinstance(found, Recurrence):
        return False
    return all(None not in state[:-1] and len(state) - state.count(None) >= least for state in found.states)


def taken_by(found: list[Recurrence], graph: Graph) -> set[int]:
    """Return the nodes between the first and the last state of recurrences."""
    inside: set[int] = set()
    for one in found:
        last = max(place[0] for state in one.states for place in state if place is not None)
        inside.update(index for index in range(graph.first_inner, last + 1) if one.level[index])
    return inside


def _below_last(steps: Steps, found: Recurrence) -> set[int]:
    """Return the nodes of the last step that make its states."""
    todo = [state[-1][0] for state in found.states if state[-1] is not None]
    seen = set(todo)
    while todo:
        for child in steps.graph.inner(todo.pop()):
            if child not in seen and steps.level[child] == steps.last:
                seen.add(child)
                todo.append(child)
    return seen


def _unique(found: list[Recurrence]) -> list[Recurrence]:
    """Keep one of several that found the same tensors: the one with the most steps, then with the fewest states."""
    kept: list[Recurrence] = []
    seen: set[Place] = set()
    for one in sorted(found, key=lambda r: (-r.steps, len(r.states))):
        places = {place for state in one.states for place in state if place is not None}
        if not places & seen:
            kept.append(one)
            seen |= places
    return sorted(kept, key=lambda r: min(p for state in r.states for p in state if p is not None))


def of_marks(graph: Graph, marked: Sequence[Place]) -> list[Recurrence]:
    """Return the sequences of a state that the user marked, each in the order of the graph."""
    by_node = {place[0]: place for place in marked}
    sequences = list(separate(graph, Anchor(-1, frozenset(by_node))))
    found = []
    for sequence in sorted(sequences, key=lambda s: min(s.uses)):
        places = [by_node[index] for index in sorted(sequence.uses)]
        level = levels(graph, [dict.fromkeys(sequence.uses, 1)], add=True)[:, 0].tolist()
        one = Recurrence((), len(places), [list(places)], ("hidden",), initial=[None], level=level)
        found.append(replace(one, direct=direct_of(Steps(graph, (), level, sequence.uses, len(places)), one)))
    return found
