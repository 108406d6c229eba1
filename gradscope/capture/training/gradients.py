"""Which backward passes are in the gradient that a parameter holds now.

Nothing of torch is replaced for it: a gradient that is gone, zero or another tensor at the next event was dropped,
however the script did that (``optimizer.zero_grad``, ``model.zero_grad``, ``p.grad = None``, ``p.grad.zero_()``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch import Tensor

from gradscope.capture.host import begun, is_host, wait
from gradscope.capture.torch_private import storage_of

#: Between recorded steps only so many parameters are looked at, evenly spread: enough to tell a step from a skip.
LOOKED_AT = 64


@dataclass(eq=False)
class PassNote:
    """One backward pass of a step.

    Attributes
    ----------
    kind : str
        ``backward`` or ``grad``, as in :class:`~gradscope.capture.calls.passes.Pass`.
    for_parameters : bool
        Whether gradients of parameters were asked for.
    create_graph : bool
        Whether its gradient can be differentiated again.
    evaluation : int
        Which evaluation of the closure of an update, from 1; 0 outside of one.
    scaled : bool
        Whether the loss had been multiplied by a GradScaler; ``scale`` with what, in recorded steps.
    reached, used, lost : set of int
        Identities of the parameters it left a gradient in; of those whose update used it; of those that dropped it.
    whole : bool
        Whether it fed the update although no parameter's gradient tells so (gradients held elsewhere, by hand).
    elsewhere : bool
        Whether an optimizer that is not followed stepped while its gradient was there.
    sites : dict
        What was measured in it.
    """

    kind: str
    for_parameters: bool = True
    create_graph: bool = False
    evaluation: int = 0
    scaled: bool = False
    scale: float = 1.0
    reached: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    whole: bool = False
    elsewhere: bool = False
    considered: bool = False
    sites: dict[str, Any] = field(default_factory=dict)

    @property
    def fed(self) -> bool:
        """Whether any of it was in the update."""
        return self.whole or bool(self.used)

    @property
    def gone(self) -> bool:
        """Whether all that it left was dropped."""
        return bool(self.reached) and self.reached <= self.lost


class _Held:
    """What is known of one parameter's gradient."""

    __slots__ = ("empty", "mark", "parameter", "placed", "sources")

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.sources: list[PassNote] = []
        self.placed = self.empty = False
        self.mark = _mark(parameter.grad)


def _mark(gradient: Tensor | None) -> tuple[int, int] | None:
    return None if gradient is None else (id(gradient), gradient._version)


class GradientBook:
    """Follow the gradients of some parameters from pass to update.

    Parameters
    ----------
    parameters : iterable of Tensor
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._held: dict[int, _Held] = {}
        self._few: list[_Held] = []
        self._looked: list[_Held] = []
        #: Set when a gradient was changed by something that is not recognised.
        self.edited = False
        self.add(parameters)

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Follow these too."""
        for parameter in parameters:
            if id(parameter) not in self._held:
                self._held[id(parameter)] = _Held(parameter)
        every = list(self._held.values())
        self._few = every[:: -(-len(every) // LOOKED_AT)] if every else []
        self._few_ids = {id(held.parameter) for held in self._few}
        self.look(True)

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._held

    def look(self, closely: bool) -> None:
        """Look at every parameter, or at a few of them only."""
        self._closely = closely
        self._looked = list(self._held.values()) if closely else self._few

    def examine(self) -> None:
        """Notice what was dropped, changed or put in place since the last event."""
        for held in self._looked:
            gradient = held.parameter.grad
            before, mark = held.mark, _mark(gradient)
            if mark == before:
                continue
            held.mark = mark
            same = before is not None and before[0] == id(gradient)
            if same and not (held.sources or held.placed or held.empty):
                continue  # zeroed or not, it is no pass's: to look at it would be to wait for its device
            if gradient is None or not _any(gradient):
                for note in held.sources:
                    note.lost.add(id(held.parameter))
                held.sources.clear()
                held.placed, held.empty = False, True
            else:
                held.placed = held.placed or held.empty or not same
                held.empty = False
                self.edited = self.edited or bool(held.sources)

    def placed(self, identities: Collection[int]) -> set[int]:
        """Return those of these parameters in which the script has put a gradient of its own making."""
        return {id(held.parameter) for held in self._among(identities) if held.placed}

    def collect(self, note: PassNote) -> None:
        """Give to ``note`` what has changed since the last event; to be called at its end."""
        for held in self._looked:
            mark = _mark(held.parameter.grad)
            if mark is not None and mark != held.mark:
                note.reached.add(id(held.parameter))
                if note not in held.sources:
                    held.sources.append(note)
                held.empty = False
            held.mark = mark

    def edit(self, parameters: Iterable[Tensor]) -> None:
        """Take note that a recognised call has changed these gradients; call :meth:`examine` before it."""
        if self._closely:
            for parameter in parameters:
                if (held := self._held.get(id(parameter))) is not None:
                    held.mark = _mark(parameter.grad)
        else:
            for held in self._few:
                held.mark = _mark(held.parameter.grad)

    def looks_at(self, parameters: Iterable[Tensor]) -> bool:
        """Whether any of these is looked at in this step."""
        looked = self._held if self._closely else self._few_ids
        return any(id(p) in looked for p in parameters)

    def first_of(self, identities: Collection[int], count: int) -> list[Tensor]:
        """Return the first few of these parameters."""
        found = (held.parameter for i in identities if (held := self._held.get(i)) is not None)
        return list(islice(found, count))

    def sources(self, identities: Collection[int]) -> list[PassNote]:
        """Return the passes in these parameters' gradients, in order."""
        return list(dict.fromkeys(note for held in self._among(identities) for note in held.sources))

    def use(self, identities: Collection[int]) -> None:
        """Let an update use these parameters' gradients."""
        for held in self._among(identities):
            for note in held.sources:
                note.used.add(id(held.parameter))

    def spend(self, identities: Collection[int]) -> None:
        """After the update: what is still there is no pass's any more."""
        for held in self._among(identities):
            held.sources.clear()
            held.placed = held.empty = False
            held.mark = _mark(held.parameter.grad)

    def _among(self, identities: Collection[int]) -> Iterator[_Held]:
        return (held for held in self._looked if id(held.parameter) in identities)

    def clear(self) -> None:
        """Forget the passes of a step that is over."""
        for held in self._held.values():
            held.sources.clear()
            held.placed = held.empty = False
        self.edited = False


def _any(gradient: Tensor) -> bool:
    return gradient.is_sparse or bool(gradient.detach().count_nonzero())


class Movement:
    """Whether parameters have been changed since they were looked at, also through ``.data``."""

    #: So many parameters, and elements of each, are compared.
    PARAMETERS, ELEMENTS = 4, 2048

    def __init__(self, parameters: Iterable[Tensor], closely: bool) -> None:
        self._kept = []
        for parameter in parameters:
            values = _some(parameter) if closely else None
            self._kept.append((parameter, parameter._version, storage_of(parameter), values))
            if len(self._kept) == self.PARAMETERS:
                break

    def happened(self) -> bool:
        """Whether any of them differs."""
        return any(
            parameter._version != version
            or storage_of(parameter) != storage
            or (values is not None and not _same(_some(parameter), values))
            for parameter, version, storage, values in self._kept
        )


def _some(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    some = flat[:: max(1, -(-flat.numel() // Movement.ELEMENTS))]
    return some.clone() if is_host(some) else begun(some)


def _same(a: Tensor, b: Tensor) -> bool:
    wait()
    return a.shape == b.shape and bool(a.eq(b).logical_or(a.ne(a) & b.ne(b)).all())
