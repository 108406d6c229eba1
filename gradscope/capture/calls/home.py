"""Whose backward pass it is, where several threads train models of their own.

Hooks of torch's are the whole process's: a recorder is told of passes, forward calls and steps of every thread. Its own
are those of the thread that trains its model. That is found out, not asked: the model's modules are called there, or a
pass reaches its parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from threading import get_ident
from typing import Any

from torch import Tensor

from gradscope.capture.calls.passes import Pass

#: So many passes are remembered before those are looked for that are gone.
_KEPT = 64


class Home:
    """The thread in which a model is trained.

    Parameters
    ----------
    parameters : iterable of Tensor
        Of the model.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._own = {id(parameter) for parameter in parameters}
        self._thread = get_ident()
        # By identity. No weak dictionary: Python drops a KeyboardInterrupt that comes while one of those forgets.
        self._taken: dict[int, tuple[weakref.ref[Pass], bool]] = {}
        self._most = _KEPT

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Take these for the model's too."""
        self._own |= {id(parameter) for parameter in parameters}

    def move(self) -> None:
        """Take the current thread for the one: something of the model's was called in it."""
        self._thread = get_ident()

    @property
    def here(self) -> bool:
        """Whether the current thread is the one."""
        return get_ident() == self._thread

    def takes(self, begun: Pass) -> bool:
        """Whether a pass is of this model's training, or beside it in the same thread."""
        if begun.outer is not None:  # the engine may run it in a thread of its own
            return self.takes(begun.outermost())
        held, taken = self._taken.get(id(begun), (None, False))
        if held is None or held() is not begun:
            if not self.here and _reaches(begun.roots, self._own):
                self.move()
            taken = self.here
            if len(self._taken) >= self._most:
                self._taken = {key: known for key, known in self._taken.items() if known[0]() is not None}
                self._most = max(_KEPT, 2 * len(self._taken))
            self._taken[id(begun)] = weakref.ref(begun), taken
        return taken


def _reaches(roots: Iterable[Any], own: set[int]) -> bool:
    """Whether a graph has any of these leaves."""
    nodes = [getattr(root, "grad_fn", None) or getattr(root, "node", None) for root in roots]
    todo = [node for node in nodes if node is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if id(getattr(node, "variable", None)) in own:
            return True
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                todo.append(after)
    return any(id(root) in own for root in roots)
