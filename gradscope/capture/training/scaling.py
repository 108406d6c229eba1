"""See the loss scale of mixed-precision training, which gradients it is still in, and the steps it skips."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp import GradScaler

from gradscope.capture.guard import Observers

#: How far from the root of a pass the scaled loss is looked for: ``(scaler.scale(a) + scaler.scale(b)) / 4``.
_NODES = 64


class ScaleObserver(Protocol):
    """Who is told what a GradScaler does."""

    def scaled(self, scaler: GradScaler, outputs: Any) -> None:
        """The loss has been multiplied with the scaler's factor."""
        ...

    def unscaled(self, scaler: GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """The factor has been divided out of an optimizer's gradients."""
        ...

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """``scaler.step`` has returned, whether or not it ran the optimizer."""
        ...

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...


_SCALE = "loss scale"
_installed: list[tuple[str, Callable[..., Any]]] = []
#: Whether a call is being told of already: a tool that wraps ours keeps it alive under the next recorder's.
_telling = threading.local()


def observe_scaling(observer: ScaleObserver) -> None:
    """Begin to tell ``observer`` of every GradScaler."""
    _observers.add(observer)


def ignore_scaling(observer: ScaleObserver) -> None:
    """Stop telling ``observer``; with the last one GradScaler is as it was."""
    _observers.discard(observer)


def _install() -> None:
    if not _installed:
        _wrap("scale", lambda observer, scaler, result, *args: observer.scaled(scaler, result))
        _wrap("unscale_", lambda observer, scaler, result, optimizer: observer.unscaled(scaler, optimizer))
        _wrap("step", lambda observer, scaler, result, optimizer, *args: observer.scaler_stepped(optimizer))


def _uninstall() -> None:
    while _installed:
        name, wrapped = _installed[-1]
        if getattr(GradScaler, name) is wrapped:  # else another tool's is in place, which may call ours
            setattr(GradScaler, name, wrapped.__wrapped__)
        _installed.pop()


_observers: Observers[ScaleObserver] = Observers(_install, _uninstall)


def _wrap(name: str, tell: Callable[..., None]) -> None:
    original = getattr(GradScaler, name)

    @functools.wraps(original)
    def wrapped(scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
        if not _observers.held or getattr(_telling, name, False):
            return original(scaler, *args, **kwargs)
        setattr(_telling, name, True)
        try:
            result = original(scaler, *args, **kwargs)
        finally:
            setattr(_telling, name, False)
        try:
            _observers.tell(_SCALE, lambda observer: tell(observer, scaler, result, *args, *kwargs.values()))
        except Exception as error:
            with contextlib.suppress(Exception):
                _observers.harmed(_SCALE, error)
        return result

    _installed.append((name, wrapped))
    setattr(GradScaler, name, wrapped)


class Scales:
    """Which gradients are still multiplied with a loss scale. The scale itself is read only where it is asked for."""

    def __init__(self) -> None:
        self._scaler: GradScaler | None = None
        self._since_pass = False
        self._nodes: list[Any] = []
        self._left: dict[int, bool] = {}
        self._any = False

    def scaled(self, scaler: GradScaler, outputs: Any) -> None:
        """Take a loss that was multiplied."""
        if scaler.is_enabled():
            self._scaler, self._since_pass = scaler, True
            listed = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            self._nodes = [held for held in self._nodes if held() is not None]
            self._nodes += [weakref.ref(t) for t in listed if isinstance(t, Tensor)]

    def of_pass(self, roots: Iterable[Any]) -> bool:
        """Whether the loss of a pass was multiplied."""
        if self._scaler is None or not self._nodes:
            return False
        known = {t.grad_fn for held in self._nodes if (t := held()) is not None and t.grad_fn is not None}
        found = self._since_pass or _reaches(roots, known)
        self._since_pass = False
        return found

    def passed(self, scaled: bool, parameters: set[int]) -> None:
        """Take the end of a pass."""
        self._any = scaled if parameters else self._any
        for parameter in parameters:
            self._left[parameter] = scaled

    def unscaled(self, parameters: Iterable[Tensor]) -> None:
        """Take these as divided by the scale."""
        for parameter in parameters:
            self._left[id(parameter)] = False

    def left_in(self, parameters: Iterable[Tensor]) -> float:
        """Return the factor that is still in these gradients."""
        found = [self._left[id(p)] for p in parameters if id(p) in self._left]
        return self.factor() if (found[0] if found else self._any) else 1.0

    def factor(self) -> float:
        """Return the scale; on an accelerator this waits for it."""
        return float(self._scaler.get_scale()) if self._scaler is not None else 1.0

    def end_step(self) -> None:
        """Forget the step."""
        self._nodes.clear()
        self._left.clear()
        self._any = self._since_pass = False


def _reaches(roots: Iterable[Any], known: set[Any]) -> bool:
    pending = [node for root in roots if (node := getattr(root, "grad_fn", None)) is not None]
    seen: set[Any] = set()
    while pending and len(seen) < _NODES:
        node = pending.pop(0)
        if node in known:
            return True
        if node not in seen:
            seen.add(node)
            pending += [after for after, _ in node.next_functions if after is not None]
    return False
