"""Which sequence of a layer in a step is which: ``rnn/l0``, ``rnn/l0#2`` ..."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Opened:
    """A sequence with a graph; it lives as long as the graph does.

    Attributes
    ----------
    position : int
        In the order in which they were opened, from 1.
    training : bool
        Whether its layer was in training mode.
    among : _Group
        The sequences of the layer that were opened between the same two passes.
    number : int
        0 before that is settled.
    """

    position: int
    training: bool
    among: _Group
    number: int = 0

    def __str__(self) -> str:
        return str(self.position)


@dataclass(eq=False)
class _Group:
    opened: list[weakref.ref[Opened]] = field(default_factory=list)


class Uses:
    """Number the sequences of every layer.

    What counts are those that a pass can still reach: a forward call whose loss was thrown away (not finite, an epoch
    given up) or that belongs to a validation has no number, so that the next one is the first again.
    """

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def clear(self) -> None:
        """Begin anew: a forward call after a pass."""
        self._groups.clear()

    def latest(self, path: str) -> Opened | None:
        """Return the sequence of a layer that was opened last."""
        group = self._groups.get(path)
        return group.opened[-1]() if group is not None and group.opened else None

    def opened(self, path: str, training: bool) -> Opened:
        """Take a sequence that has been opened."""
        group = self._groups.setdefault(path, _Group())
        group.opened = [held for held in group.opened if held() is not None]
        last = group.opened[-1]() if group.opened else None
        made = Opened(1 if last is None else last.position + 1, training, group)
        group.opened.append(weakref.ref(made))
        return made

    @staticmethod
    def number(use: Any) -> int:
        """Return which one of its layer a sequence is; settled with the first pass that reaches one of them."""
        if not isinstance(use, Opened):
            return int(use)
        if not use.number:
            living = [one for held in use.among.opened if (one := held()) is not None]
            settled = sum(one.number > 0 for one in living)
            # Those of a validation are told from the training's own where both are there.
            new = sorted((one for one in living if not one.number), key=lambda one: not one.training)
            for number, one in enumerate(new, settled + 1):
                one.number = number
        return use.number
