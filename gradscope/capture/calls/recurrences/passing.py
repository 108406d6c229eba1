"""What goes on from step to step beside the states that were found: nothing of it may go unsaid."""

from __future__ import annotations

from gradscope.capture.calls.recurrences.kinds import kind_of
from gradscope.capture.calls.recurrences.operations import REARRANGES
from gradscope.capture.calls.recurrences.recurrence import Place
from gradscope.capture.calls.recurrences.steps import Steps


def passing(steps: Steps, states: list[list[Place | None]]) -> tuple[int, ...]:
    """Return the weights nearest to what goes on to a later step past its states."""
    held = {place[0] for state in states for place in state if place is not None}
    kept, weights = _kept(steps, held), set[int]()
    for step in range(1, steps.last - 1):
        if any(state[step - 1] is None for state in states):
            continue
        told = _told_by(steps, step, held)
        for index in steps.at.get(step, ()):
            if index in kept or not steps.lives(index):
                continue
            if index in told:  # it may go past the states of the next step
                passes = _goes_on(steps, index, step + 2) and not _is_made_of_one(steps, index, held)
            else:
                passes = step > 1 and _goes_on(steps, index, step + 1)
            weights |= kind_of(steps.graph, index, steps.level)[2] if passes else set()
    return tuple(sorted(weights))


def _kept(steps: Steps, held: set[int]) -> set[int]:
    """Return the states, and what merely puts them together, or takes them apart."""
    kept = set(held)
    for index in range(steps.graph.first_inner, len(steps.level)):
        if steps.level[index] and steps.graph.names[index].startswith(REARRANGES):
            past = [below for below in steps.graph.inner(index) if steps.level[below]]
            if past and all(below in kept for below in past):
                kept.add(index)
    return kept


def _told_by(steps: Steps, step: int, held: set[int]) -> set[int]:
    """Return the nodes of a step that are made of its states, and of nothing else that depends on the past."""
    told: set[int] = set()
    for index in steps.at.get(step, ()):
        past = [below for below in steps.graph.inner(index) if steps.level[below]]
        if index in held or (past and all(below in told for below in past)):
            told.add(index)
    return told


def _goes_on(steps: Steps, index: int, later: int) -> bool:
    """Whether a step from ``later`` on takes what a node makes, and hands something on."""
    level = steps.level
    users = [user for user, _ in steps.graph.users[index] if level[user] >= later]
    return any(steps.lives(user) or user in steps.marks for user in users)


def _is_made_of_one(steps: Steps, index: int, held: set[int]) -> bool:
    """Whether a node makes something of a single state: one that is looked back at, and recorded."""
    while index not in held:
        below = steps.graph.inner(index)
        if len(below) != 1:
            return False
        index = below[0]
    return True
