"""Which sequence a call of a layer goes on with, by the state that it was given."""

from __future__ import annotations

import weakref

from torch import Tensor

from gradscope.capture.calls.lineage import Lineage
from gradscope.capture.calls.sequence import Line
from gradscope.capture.layers.discovery import Target
from gradscope.capture.torch_private import graph_task


class Continuing:
    """The sequences of a step, and which of them a call continues or comes after.

    Parameters
    ----------
    lineage : Lineage
        Which call made a state.
    """

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage
        # Sequences of this step that a state without a graph may be handed on from.
        self._latest: dict[str, weakref.ref[Line]] = {}

    def clear(self) -> None:
        """Forget the sequences of the step that ended."""
        self._latest.clear()

    def takes(self, target: Target, line: Line) -> None:
        """Take the sequence that a call belongs to: the latest of its layer."""
        self._latest[target.path] = weakref.ref(line)

    def handed_on(self, target: Target, given: tuple[Tensor, ...], slot: int) -> tuple[Line, int] | None:
        """Do what :meth:`before` does for the very states that the call before has left, as nearly always.

        ``slot`` is that of the first state among what a call returns.
        """
        line = self.latest_of(target)
        if line is None or not given or not _may_join(target):
            return None
        for place, state in enumerate(given, start=slot):
            node = state.grad_fn
            if node is None or line.ends.get((node._sequence_nr(), state.output_nr)) != place:
                return None
        return line, -1 if line.carried < 0 else line.carried + line.steps

    def latest_of(self, target: Target) -> Line | None:
        """Return the sequence that the last call of a layer belongs to."""
        held = self._latest.get(target.path)
        return None if held is None else held()

    def before(self, target: Target, given: tuple[Tensor, ...]) -> tuple[Line | None, int]:
        """Return the sequence that a call continues or comes after, and how many steps lie behind its state."""
        if not given:
            return None, 0
        graphed = [state for state in given if state.grad_fn is not None]
        if not graphed:
            carried = self._lineage.steps_before(target.path, given)
            latest = self.latest_of(target)
            fits = carried > 0 and latest is not None and carried == max(latest.carried, 0) + latest.steps
            joins = fits and latest is not None and not latest.delivered and _may_join(target)
            inside = graph_task() != -1
            return (latest if joins and not inside else None), carried
        calls = self._lineage.before(graphed)
        if not calls:  # made of leaves: in a chunk of a checkpoint that is run again, also of states that were left
            return None, max(self._lineage.steps_before(target.path, given), 0) if graph_task() != -1 else 0
        if len({id(call.owner) for call in calls}) != 1:
            return None, -1
        calls.sort(key=lambda call: -call.position)  # a mask lets the state of some rows pass: h = m·h_new + (1 − m)·h
        line, position = calls[0].owner, calls[0].position
        last = len(line.calls) - 1
        behind = line.steps
        if position < last:
            behind = sum(getattr(call, "steps", 1) for call in line.calls[: position + 1])
        carried = -1 if line.carried < 0 else line.carried + behind
        same = line.target is target
        if same and position == last and _may_join(target):
            return line, carried
        return (None if same else line if position == last else None), carried

    def leave(self, target: Target, line: Line, finals: tuple[Tensor, ...]) -> None:
        """Note the states that a call has left, and how many steps lie behind them."""
        behind = -1 if line.carried < 0 else line.carried + line.steps
        self._lineage.left(target.path, finals, behind, again=graph_task() != -1)

    def given_before(self, target: Target, given: tuple[Tensor, ...]) -> bool:
        """Whether a state is given to a cell that has been given it before: only the graph tells which call goes on.

        A checkpoint gives a state once more when it runs its chunk again, which is no other way.
        """
        calls = self._lineage.before([state for state in given if state.grad_fn is not None])
        own = [call for call in calls if call.owner.target is target]
        if not own or own[0].owner.again != (graph_task() != -1):
            return False
        return max(call.position for call in own) < len(own[0].owner.calls) - 1


def _may_join(target: Target) -> bool:
    return target.kind == "cell" or not target.module.bidirectional
