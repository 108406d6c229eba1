"""See calls of torch's recurrent kernels that no forward hook sees.

``module.forward(x)``, weight-dropping wrappers, subclasses that return something else, and functional code all end in
``torch._VF.lstm`` and its kin, which are looked up at each call; they are replaced while a step is recorded.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.calls.lineage import tupled
from gradscope.capture.guard import Observers

KERNELS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN_TANH", "rnn_relu": "RNN_RELU"}


@dataclass(eq=False)
class KernelCall:
    """One call of a kernel.

    Attributes
    ----------
    mode : str
        As ``nn.RNNBase.mode``.
    x : Tensor
        Input as the kernel had it; ``batch_sizes`` is None where it is not packed.
    states : tuple of Tensor
        Initial states.
    weights : list of Tensor
    output : Tensor
    finals : tuple of Tensor
    batch_first, packed : bool
    """

    mode: str
    x: Tensor
    states: tuple[Tensor, ...]
    weights: list[Tensor]
    output: Tensor
    finals: tuple[Tensor, ...]
    batch_first: bool
    packed: bool


class KernelObserver(Protocol):
    """Who is told of kernel calls."""

    def kernel_called(self, call: KernelCall) -> None:
        """Take a call that has returned."""
        ...

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...


_replaced: list[tuple[Any, str, Any, Any, bool]] = []


def observe(observer: KernelObserver) -> None:
    """Begin to tell ``observer`` of kernel calls."""
    _observers.add(observer)


def ignore(observer: KernelObserver) -> None:
    """Stop telling ``observer``; with the last one torch's own functions are back in place."""
    _observers.discard(observer)


def _install() -> None:
    if not _replaced:
        for name, mode in KERNELS.items():
            _replace(torch._VF, name, mode)


def _uninstall() -> None:
    while _replaced:
        place, name, original, ours, own = _replaced[-1]
        if vars(place).get(name) is ours:
            if own:
                setattr(place, name, original)
            else:
                delattr(place, name)
        _replaced.pop()


_CALL = "a kernel's call"
_observers: Observers[KernelObserver] = Observers(_install, _uninstall)


def _replace(place: Any, name: str, mode: str) -> None:
    original, own = getattr(place, name), name in vars(place)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if _observers.held and not kwargs and not torch.compiler.is_compiling():
            try:
                call = _described(mode, args, result)
                _observers.tell(_CALL, lambda observer: observer.kernel_called(call))
            except (IndexError, TypeError):  # an unusual call; it is said where its weights end in no site
                return result
            except Exception as error:
                with contextlib.suppress(Exception):
                    _observers.harmed(_CALL, error)
        return result

    kernel.__name__ = name
    _replaced.append((place, name, original, kernel, own))
    setattr(place, name, kernel)


def _described(mode: str, args: tuple[Any, ...], result: tuple[Tensor, ...]) -> KernelCall:
    packed = isinstance(args[3], list | tuple)  # input, batch_sizes, states, weights ...
    states, weights = (args[2], args[3]) if packed else (args[1], args[2])
    given = tupled(states)
    batch_first = False if packed else bool(args[8])
    return KernelCall(mode, args[0], given, list(weights), result[0], tuple(result[1:]), batch_first, packed)
