"""Recognise a tensor of one step in all the others."""

from __future__ import annotations

from gradscope.capture.calls.recurrences.kinds import kind_of
from gradscope.capture.calls.recurrences.operations import PRODUCTS, REARRANGES
from gradscope.capture.calls.recurrences.recurrence import Place
from gradscope.capture.calls.recurrences.steps import Steps


def below_rearrangements(steps: Steps, place: Place, step: int) -> Place:
    """Follow a tensor down to where it was computed, as long as it is merely rearranged."""
    graph = steps.graph
    while graph.names[place[0]].startswith(REARRANGES):
        below = [(c, nr) for c, nr in graph.inputs[place[0]] if c >= graph.first_inner and steps.level[c] == step]
        if len(below) != 1:
            break
        place = below[0]
    return place


def follow(steps: Steps, middle: int, place: Place) -> list[Place | None] | None:
    """Return the tensor that stands in a state's place at every step; None where the last steps are mixed up."""
    while True:
        match = _Match(steps, middle, place)
        found = [place if step == middle else match.at(step) for step in range(1, steps.last + 1)]
        if match.confused:
            return None
        below = _scaled(steps, place, middle)
        if found[-1] is not None or below is None:
            return found
        # α·h is only made where there is a next step: the state is h.
        place = below


def _scaled(steps: Steps, place: Place, step: int) -> Place | None:
    """Return what a tensor is a multiple of, by a constant, where that is a single tensor of the same step."""
    graph = steps.graph
    if not graph.names[place[0]].startswith(("Mul", "Div", "Neg", "Rsub", *PRODUCTS)):
        return None
    below = [(c, nr) for c, nr in graph.inputs[place[0]] if c >= 0]
    if len(below) == 1 and below[0][0] >= graph.first_inner and steps.level[below[0][0]] == step:
        return below[0]
    return None


class _Match:
    """Recognise a tensor of one step in another: by the operations since the step began, or on the way to it."""

    def __init__(self, steps: Steps, step: int, place: Place) -> None:
        self._steps, self._place = steps, place
        self.confused = False
        first = steps.marked(step)
        self._from = max((mark for mark in first if mark <= place[0]), default=first[0])
        self._nth = first.index(self._from)
        self._marks = len(first)
        names = steps.graph.names
        self._window = names[self._from : place[0] + 1]
        self._path = self._way(step)
        self._made_with = kind_of(steps.graph, place[0], steps.level)

    def at(self, step: int) -> Place | None:
        """Return the tensor of a step that stands in the place of the one looked for; None if that cannot be told."""
        marks, graph = self._steps.marked(step), self._steps.graph
        if step == self._steps.last and (unlike := self._unlike(step)):
            if (alike := self._by_weights(step)) is not None:
                return alike
            # Of fewer, it may be another that is missing; of more, the last steps cannot be told apart.
            self.confused = unlike > 0
            return None
        if len(marks) == self._marks:
            start = marks[self._nth]
            end = start + len(self._window)
            if graph.names[start:end] == self._window and self._fits(end - 1, step):
                return end - 1, self._place[1]
        for begun in range(len(self._path) + 1):
            found = {end for mark in marks for end in self._up(mark, begun)}
            fitting = [end for end in found if self._fits(end, step)]
            if fitting:
                return (fitting[0], self._place[1]) if len(fitting) == 1 else self._by_weights(step)
        return self._by_weights(step)

    def _by_weights(self, step: int) -> Place | None:
        """Return the tensor of a step that is made with the same weights, as many as there are of those in both."""
        graph, level, index, wanted = self._steps.graph, self._steps.level, self._place[0], self._made_with
        if not wanted[2]:
            return None

        def alike(at: int) -> list[int]:
            named = [i for i in self._steps.at.get(at, ()) if graph.names[i] == wanted[0]]
            return [i for i in named if kind_of(graph, i, level) == wanted]

        here, there = alike(level[index]), alike(step)
        return (there[here.index(index)], self._place[1]) if len(here) == len(there) else None

    def _unlike(self, step: int) -> int:
        """Return how many more nodes of this kind a step has than the one that is known."""
        return len(self._alike(step)) - len(self._alike(self._steps.level[self._place[0]]))

    def _alike(self, step: int) -> list[int]:
        kind, wanted = self._kind(self._place[0]), self._made_with
        alike = [index for index in self._steps.at.get(step, ()) if self._kind(index) == kind]
        # Whatever stands above the loop is in its last step.
        return [index for index in alike if kind_of(self._steps.graph, index, self._steps.level) == wanted]

    def _fits(self, index: int, step: int) -> bool:
        """Whether a node makes of its step what the one that is looked for makes; the first step has no past."""
        return self._steps.level[index] == step and (step == 1 or self._kind(index) == self._kind(self._place[0]))

    def _kind(self, index: int, depth: int = 2) -> tuple[object, ...]:
        """Return what a node does, to what, and with which weights."""
        graph = self._steps.graph
        consumed: list[object] = []
        for child, _ in graph.inputs[index]:
            if child >= 0 and graph.of_weights[child]:
                consumed.append(self._weight(child))
            elif child < graph.first_inner or not depth or self._steps.level[child] != self._steps.level[index]:
                consumed.append("")
            else:
                consumed.append(self._kind(child, depth - 1))
        return (graph.names[index], *consumed)

    def _weight(self, index: int) -> int:
        graph = self._steps.graph
        while index >= graph.first_inner:
            index = graph.inputs[index][0][0]
        return index

    def _way(self, step: int) -> list[tuple[str, int]]:
        """Return names and places from a mark of the step up to the tensor, along a shortest path."""
        graph, steps = self._steps.graph, self._steps
        came: dict[int, tuple[int, int] | None] = {self._place[0]: None}
        todo, marks = [self._place[0]], set(steps.marked(step))
        for index in todo:
            if index in marks:
                way = []
                while (above := came[index]) is not None:
                    index, place = above
                    way.append((graph.names[index], place))
                return way
            for place, (child, _) in enumerate(graph.inputs[index]):
                if child >= graph.first_inner and child not in came and steps.level[child] == step:
                    came[child] = (index, place)
                    todo.append(child)
        return []

    def _up(self, mark: int, begun: int) -> list[int]:
        """Follow the way up from a mark; in the first step, where nothing comes before, it may begin further up."""
        graph = self._steps.graph
        if graph.names[mark] != (graph.names[self._from] if begun == 0 else self._path[begun - 1][0]):
            return []
        ends = [mark]
        for name, place in self._path[begun:]:
            ends = [u for end in ends for u, at in graph.users[end] if at == place and graph.names[u] == name]
        return ends
