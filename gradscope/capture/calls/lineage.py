"""Which call came before: calls that hand their state on are one sequence, however the state got there.

With a graph the state is followed to the call that made it, through any number of operations. A detached state shares
its storage with the one it came from; a copy is known by its values, and else has an unknown past.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from gradscope.capture import host
from gradscope.capture.calls.graph import NODE_LIMIT, KnownCall, taken
from gradscope.capture.torch_private import storage_of

#: How many steps came before where that is not known.
UNKNOWN = -1

# Calls of a layer in one step whose final states are kept: chunks of a checkpoint are run again in reverse order.
_KEPT = 1024


@dataclass(frozen=True, eq=False)
class Unread:
    """Steps behind a state: ``steps`` where the sequence began with zeros, as these copies will tell."""

    began: tuple[Tensor, ...]
    steps: int

    def read(self) -> int:
        """Wait for the copies, and look."""
        host.wait()
        return UNKNOWN if any(bool(state.any()) for state in self.began) else self.steps


class Known:
    """Calls by the sequence numbers of the nodes that made their outputs, as long as somebody else holds them."""

    def __init__(self) -> None:
        self._held: dict[int, weakref.ref[KnownCall]] = {}

    def add(self, call: KnownCall) -> None:
        """Take a call with all of its outputs."""
        held = weakref.ref(call)
        for number, _ in call.made:
            self._held[number] = held

    def get(self, number: int) -> KnownCall | None:
        """Return the call that this node made an output of."""
        held = self._held.get(number)
        return None if held is None else held()

    def __contains__(self, number: int) -> bool:
        return self.get(number) is not None

    def __len__(self) -> int:
        return len(self._held)

    def forget(self, call: KnownCall) -> None:
        """Let the graph be walked as if this were no call."""
        for number, _ in call.made:
            self._held.pop(number, None)

    def clear(self) -> None:
        """Forget every call."""
        self._held.clear()

    def calls(self) -> list[KnownCall]:
        """Return the calls that are left."""
        found = [call for held in self._held.values() if (call := held()) is not None]
        return list({id(call): call for call in found}.values())


class Lineage:
    """The calls of a step being recorded, and the states that the ones before left."""

    def __init__(self) -> None:
        #: Calls by the sequence numbers of the nodes of their outputs; each lives as long as its graph.
        self.known = Known()
        self._nearest: dict[tuple[int, int], tuple[int, ...]] = {}
        # The states that calls left, the last of each layer last; those of earlier steps but for the last are dropped.
        self._left: dict[str, deque[tuple[tuple[Tensor, ...], int | Unread]]] = {}
        #: Whether states without a graph have been handed over.
        self.carries = False

    def forget(self) -> None:
        """Drop what belongs to the step that ended; where the states of its last calls stand is kept."""
        self.known.clear()
        self._nearest.clear()
        for left in self._left.values():
            while len(left) > 1:
                left.popleft()

    def close(self) -> None:
        """Drop everything."""
        self.forget()
        self._left.clear()

    def parted(self) -> None:
        """Follow states anew: calls have been taken out."""
        self._nearest.clear()

    def made(self, call: KnownCall) -> None:
        """Note which nodes made the outputs of a call."""
        self.known.add(call)

    def before(self, states: Iterable[Tensor]) -> list[KnownCall]:
        """Return the calls that the given states were computed from, the nearest on every way."""
        return self.before_edges([(state.grad_fn, state.output_nr) for state in states if state.grad_fn is not None])

    def before_edges(self, edges: Iterable[tuple[Any, int]]) -> list[KnownCall]:
        """Return the calls that what stands at the given edges was computed from, the nearest on every way."""
        numbers: dict[int, None] = {}
        for edge in edges:
            numbers.update(dict.fromkeys(self._nearest_below(edge)))
        found = [self.known.get(number) for number in numbers]
        return list({id(call): call for call in found if call is not None}.values())

    def _nearest_below(self, start: tuple[Any, int]) -> tuple[int, ...]:
        nearest, known = self._nearest, self.known
        stack, budget = [start], NODE_LIMIT
        while stack:
            node, nr = stack[-1]
            number = node._sequence_nr()
            if (number, nr) in nearest:
                stack.pop()
                continue
            if number in known:
                nearest[number, nr] = (number,)
                stack.pop()
                continue
            children = self._inner(node, nr)
            waiting = [child for child in children if (child[0]._sequence_nr(), child[1]) not in nearest]
            budget -= 1
            if waiting and budget > 0:
                stack.extend(waiting)
                continue
            below: dict[int, None] = {}
            for child, place in children:
                below.update(dict.fromkeys(nearest.get((child._sequence_nr(), place), ())))
            nearest[number, nr] = tuple(below)
            stack.pop()
        return nearest.get((start[0]._sequence_nr(), start[1]), ())

    def _inner(self, node: Any, nr: int) -> list[tuple[Any, int]]:
        """Return what an output of a node was computed from, without leaves; of things put together, the part."""
        consumed = [edge for edge in node.next_functions if edge[0] is not None]
        if len(consumed) == 1 == len(node.next_functions) and consumed[0][0]._sequence_nr() not in self.known:
            part = taken(node, consumed[0][0], consumed[0][0].next_functions).get(nr)
            consumed = consumed if part is None else [part]
        return [edge for edge in consumed if not hasattr(edge[0], "variable")]

    # -- states without a graph --------------------------------------------------------------------------------

    def left(self, path: str, states: tuple[Tensor, ...], steps: int | Unread, again: bool = False) -> None:
        """Note the states a call left, after how many steps of the sequence; ``again`` where it may be rerun."""
        kept = self._left.setdefault(path, deque(maxlen=_KEPT))
        if not again:
            kept.clear()
        kept.append((tuple(state.detach() for state in states), steps))

    def steps_before(self, path: str, states: tuple[Tensor, ...]) -> int:
        """Return how many steps lie behind states that have no graph: 0 for none, −1 where that is unknown."""
        steps = self.steps_unread(path, states, look=True)
        return steps.read() if isinstance(steps, Unread) else steps

    def steps_unread(self, path: str, states: tuple[Tensor, ...], look: bool = False) -> int | Unread:
        """Return the same; unless one is to ``look``, without waiting for values of another device."""
        if not states:
            return 0
        self.carries = True
        storage = storage_of(states[0])
        ordered = list(self._left.get(path, ()))[::-1]
        ordered += [left[-1] for name, left in self._left.items() if name != path]
        for finals, steps in ordered:
            if any(storage_of(final) == storage for final in finals):
                return steps
        if not look and not all(map(host.is_host, states)):
            return Unread(tuple(map(host.begun, states)), 0)
        states = tuple(map(host.brought, states))
        if not any(bool(state.any()) for state in states):
            return 0
        # A copy is known by its values.
        return next((steps for finals, steps in ordered if any(_equal(final, states[0]) for final in finals)), UNKNOWN)


def _equal(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and torch.equal(host.brought(value), other)


def later(before: int | Unread, steps: int) -> int | Unread:
    """Return how many steps lie behind a state that ``steps`` more were made from."""
    if isinstance(before, Unread):
        return replace(before, steps=before.steps + steps)
    return before + steps if before >= 0 else UNKNOWN


def tupled(states: Any) -> tuple[Tensor, ...]:
    """Return states as they are handed on, one or several or none, as a tuple."""
    return () if states is None else (states,) if isinstance(states, Tensor) else tuple(states)


def edges_of(tensors: Iterable[Tensor | None]) -> tuple[tuple[Any, int], ...]:
    """Return where tensors stand in the graph, those that do."""
    found = []
    for tensor in tensors:
        if tensor is None or not tensor.requires_grad:
            continue
        if tensor.grad_fn is not None:
            found.append((tensor.grad_fn, tensor.output_nr))
        else:
            edge = get_gradient_edge(tensor)
            found.append((edge.node, edge.output_nr))
    return tuple(found)
