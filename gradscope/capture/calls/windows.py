"""How many steps lie behind the state that a recurrence starts from: windows of one sequence, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.calls.found import FoundSequence
from gradscope.capture.calls.graph import Graph, KnownCall
from gradscope.capture.calls.lineage import Lineage
from gradscope.capture.calls.recurrences.initial import initial_state, state_before, value_of
from gradscope.capture.calls.recurrences.recurrence import Recurrence
from gradscope.capture.host import brought
from gradscope.capture.layers.adapters import tensors_in
from gradscope.capture.layers.discovery import Names


class Windows:
    """Knows a state again by its values, where no graph leads from one window to the next."""

    def __init__(self, names: Names, lineage: Lineage) -> None:
        self._names, self._lineage = names, lineage
        self._left: dict[str, tuple[Tensor, int]] = {}
        self._quiet: dict[int, tuple[int, tuple[Tensor, ...]]] = {}
        # Windows of the pass that begins, by name: the last of each, and the state it ends with.
        self._opened: dict[str, tuple[Tensor, FoundSequence]] = {}

    def begin(self) -> None:
        """Drop what belongs to another pass."""
        self._opened.clear()

    def close(self) -> None:
        """Drop every tensor."""
        self.forget()
        self._left.clear()

    def forget(self) -> None:
        """Drop what belongs to the step that ended."""
        self._quiet.clear()
        self._opened.clear()

    def quietly_called(self, module: nn.Module, output: Any) -> None:
        """Note what a module of the user's own returned without a graph: burn-in before the recorded steps."""
        if not type(module).__module__.startswith("torch.nn.modules"):
            count, _ = self._quiet.get(id(module), (0, ()))
            self._quiet[id(module)] = count + 1, tuple(value.detach() for value in tensors_in(output))

    def carried(self, graph: Graph, found: Recurrence, name: str, sequence: FoundSequence, seen: bool) -> int:
        """Return how many steps lie behind the state a recurrence starts from; −1 where that cannot be told.

        ``seen``: whether the values that the graph saved may be looked at.
        """
        for place in found.initial:
            if place is not None and place[0] >= graph.first_inner:
                node = graph.nodes[place[0]]
                calls = [node] if isinstance(node, KnownCall) else self._lineage.before_edges([(node, place[1])])
                if len(calls) == 1:
                    line = calls[0].owner
                    line.followers.append(sequence)
                    return line.carried + line.steps if line.carried >= 0 else -1
                return 0
        before = state_before(graph, found) if seen else None
        if before is None:
            return 0 if found.by_depth else -1
        if not bool(before.any()):
            return 0
        if name in self._opened and _same(self._opened[name][0], before):
            sequence.follow(self._opened[name][1])
        steps, quiet = self._quiet.get(id(self._names.modules.get(name)), (0, ()))
        for value, count in (*[(value, steps) for value in quiet], *([self._left[name]] if name in self._left else [])):
            if _same(value, before):
                return count
        return -1

    def note_left(self, graph: Graph, found: Recurrence, name: str, sequence: FoundSequence, carried: int) -> None:
        """Keep the state that a recurrence ends with, to know it again where the next window starts from it."""
        which = initial_state(found)
        value = None if which is None else value_of(graph, found.states[which][-1])
        if value is None:
            self._left.pop(name, None)
            self._opened.pop(name, None)
        else:
            self._left[name] = value, carried + found.steps if carried >= 0 else -1
            self._opened[name] = value, sequence


def _same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and torch.equal(brought(value), other)


def follow_on(graph: Graph, found: Recurrence, sequence: FoundSequence, ends: Mapping[int, FoundSequence]) -> None:
    """See whether a recurrence starts from the state that another one ended with."""
    todo = [place[0] for place in found.initial if place is not None and place[0] >= graph.first_inner]
    seen = set(todo)
    while todo and len(seen) < 256:
        index = todo.pop()
        before = ends.get(index)
        if before is not None and before is not sequence:
            before.followers.append(sequence)
            if before.carried >= 0:
                sequence.carried = before.carried + before.steps
            return
        for child in graph.inner(index):
            if child not in seen and not graph.is_call(child):
                seen.add(child)
                todo.append(child)
