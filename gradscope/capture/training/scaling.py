"""See the loss scale of mixed-precision training, and the steps it skips."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.amp import GradScaler


class ScaleObserver(Protocol):
    """Who is told what a GradScaler does."""

    def scaled(self, scaler: GradScaler) -> None:
        """The loss has been multiplied with the scaler's factor."""
        ...

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """``scaler.step`` has returned, whether or not it ran the optimizer."""
        ...


_observers: list[ScaleObserver] = []
_originals: dict[str, Callable[..., Any]] = {}


def observe_scaling(observer: ScaleObserver) -> None:
    """Begin to tell ``observer`` of every GradScaler."""
    if not _observers:
        _install("scale", lambda observer, scaler, *args: observer.scaled(scaler))
        _install("step", lambda observer, scaler, optimizer, *args: observer.scaler_stepped(optimizer))
    _observers.append(observer)


def ignore_scaling(observer: ScaleObserver) -> None:
    """Stop telling ``observer``; with the last one GradScaler is as it was."""
    if observer in _observers:
        _observers.remove(observer)
        if not _observers:
            for name, original in _originals.items():
                setattr(GradScaler, name, original)
            _originals.clear()


def _install(name: str, tell: Callable[..., None]) -> None:
    original = getattr(GradScaler, name)
    _originals[name] = original

    @functools.wraps(original)
    def wrapped(scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
        result = original(scaler, *args, **kwargs)
        for observer in tuple(_observers):
            tell(observer, scaler, *args, *kwargs.values())
        return result

    setattr(GradScaler, name, wrapped)
