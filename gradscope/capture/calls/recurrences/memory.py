"""Remember what was found in graphs that are alike: a model makes the same graph at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.find import find
from gradscope.capture.calls.recurrences.recurrence import NearMiss, Recurrence

# Graphs whose recurrences are remembered.
_REMEMBERED = 16


@dataclass(frozen=True, eq=False)
class _Remembered:
    """What was found in a graph, its form, and what else it was asked for to find that."""

    form: int
    asked: list[tuple[Callable[[Graph], Any], Any]]
    found: tuple[list[Recurrence], list[NearMiss]]

    def holds(self, graph: Graph, form: int) -> bool:
        return form == self.form and all(question(graph) == answer for question, answer in self.asked)


class Memory:
    """The recurrences of the last graphs that were searched."""

    def __init__(self) -> None:
        self._latest: list[_Remembered] = []

    def find(self, graph: Graph) -> tuple[list[Recurrence], list[NearMiss]]:
        """Find the recurrences of a graph, or remember those of one that is alike."""
        form = graph.form
        known = next((one for one in self._latest if one.holds(graph, form)), None)
        if known is None:
            found = find(graph)
            known = _Remembered(form, graph.asked, found)
        self._latest = [known, *(one for one in self._latest if one is not known)][:_REMEMBERED]
        return known.found
