"""States that the user's code names: ``h = gradscope.state("h", h)`` in a loop."""

from __future__ import annotations

import contextlib
from typing import Protocol, TypeVar

from torch import Tensor

from gradscope.capture.guard import Observers
from gradscope.errors import SettingError

TensorT = TypeVar("TensorT", bound=Tensor)


class MarkTaker(Protocol):
    """Who takes marked states while a step is recorded."""

    def mark(self, name: str, state: Tensor) -> None:
        """Take a state."""
        ...

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...


_takers: Observers[MarkTaker] = Observers()


def listen(taker: MarkTaker) -> None:
    """Hand marked states to ``taker`` from now on."""
    _takers.add(taker)


def leave(taker: MarkTaker) -> None:
    """Hand no more to ``taker``."""
    _takers.discard(taker)


def state(name: str, value: TensorT) -> TensorT:
    """Mark a state inside a hand-written loop, so that its adjoint is recorded under this name.

    Nothing needs to be marked to be found; a mark decides what the state is, and what it is called. Costs nothing
    outside recorded steps and changes nothing: the same tensor is returned. A state that a layer or cell of torch.nn
    hands out stays at the site of that layer; the coverage says so under ``name``.

    Parameters
    ----------
    name : str
        Name of the site; called once per step of the loop.
    value : Tensor
        The state at this step, (B, ...).

    Returns
    -------
    Tensor
        ``value`` itself.

    Raises
    ------
    SettingError
        ``name`` is no string, or ``value`` no tensor.

    Examples
    --------
    >>> import torch, gradscope
    >>> i2h, h2h = torch.nn.Linear(2, 8), torch.nn.Linear(8, 8)
    >>> model = torch.nn.ModuleDict({"i2h": i2h, "h2h": h2h})
    >>> def forward(x):
    ...     h = torch.zeros(4, 8)
    ...     for x_t in x:
    ...         h = gradscope.state("memory", torch.tanh(i2h(x_t) + h2h(h)))
    ...     return h
    >>> x = torch.randn(20, 4, 2)
    >>> gradscope.snapshot(model, lambda: forward(x).sum()).sites
    ('memory',)
    """
    if not isinstance(name, str) or not name or "/" in name or "#" in name:
        raise SettingError(f"state name must be a non-empty string without '/' and '#', not {name!r}")
    if not isinstance(value, Tensor):
        raise SettingError(f"state({name!r}, ...) takes a tensor, not {type(value).__name__}")
    try:
        _takers.tell(f"the state {name!r}", lambda taker: taker.mark(name, value))
    except Exception as error:
        with contextlib.suppress(Exception):
            _takers.harmed(f"the state {name!r}", error)
    return value
