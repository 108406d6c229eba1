"""States that the user's code named in the step being recorded, and where they stand in the graph of a pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from gradscope.capture.calls.graph import Graph, KnownCall
from gradscope.capture.calls.lineage import Lineage
from gradscope.capture.calls.listening import Listener
from gradscope.capture.calls.prehook import TRANSFORMED
from gradscope.capture.calls.recurrences.find import of_marks
from gradscope.capture.calls.recurrences.recurrence import Place, Recurrence
from gradscope.capture.calls.saying import Saying
from gradscope.capture.torch_private import is_transformed
from gradscope.schema import SiteInfo


@dataclass(eq=False)
class _Mark:
    name: str
    number: int
    place: int
    shape: tuple[int, ...]


class MarkedStates:
    """The states that were marked so far in a step."""

    def __init__(self, listener: Listener, saying: Saying, lineage: Lineage) -> None:
        self._listener, self._saying, self._lineage = listener, saying, lineage
        self._marks: list[_Mark] = []
        #: By name, their shapes without the batch.
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._marks)

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._marks.clear()
        self._shapes.clear()

    def mark(self, name: str, state: Tensor) -> None:
        """Take a state that the user named."""
        if is_transformed(state):
            self._listener.missed(self._saying.target(SiteInfo(name, name, "", "")), TRANSFORMED)
            return
        if state.grad_fn is None:
            return
        shape = tuple(state.shape)
        known = self._shapes.setdefault(name, shape[1:])
        if not shape or shape[1:] != known:
            reason = (
                f"gradscope.state({name!r}, ...) was given shapes that differ: (B, {', '.join(map(str, known))}) and "
                f"{shape}; a state keeps its shape from step to step, but for the batch"
            )
            if not shape:
                reason = f"gradscope.state({name!r}, ...) was given a tensor without a batch axis"
            self._listener.missed(self._saying.target(SiteInfo(name, name, "", "")), reason)
            self._marks = [mark for mark in self._marks if mark.name != name]
            return
        self._marks.append(_Mark(name, state.grad_fn._sequence_nr(), state.output_nr, shape))

    def recurrences(self, graph: Graph) -> list[tuple[str, Recurrence]]:
        """Return the sequences of marked states in a graph, each with its name."""
        if not self._marks:
            return []
        at = {node._sequence_nr(): i for i, node in enumerate(graph.nodes) if not isinstance(node, KnownCall)}
        places: dict[str, list[Place]] = defaultdict(list)
        for mark in self._marks:
            call = self._lineage.known.get(mark.number)
            if mark.number in at:
                places[mark.name].append((at[mark.number], mark.place))
            elif call is not None:
                target = self._saying.target(SiteInfo(mark.name, mark.name, "", ""))
                self._listener.missed(target, f"it is a state of {call.name.rpartition(':')[0]!r}, recorded there")
        return [(name, one) for name, marked in places.items() for one in of_marks(graph, marked)]
