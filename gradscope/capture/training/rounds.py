"""When a step ends that several optimizers share: encoder and decoder, or the two sides of a GAN."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradscope.capture.calls.home import Home
from gradscope.capture.guard import entry
from gradscope.capture.torch_private import remove_global_hook


class Rounds:
    """Join the steps of several optimizers to steps of the training.

    A step ends when every optimizer has stepped, or, where they take turns, with the next forward pass that builds a
    graph. A single optimizer ends it each time.

    Parameters
    ----------
    end : callable
        Called with whether every optimizer skipped the step (a loss scale that was too large).
    entered : callable
        Called with module and arguments of the forward pass that ended a step; returns what a forward pre-hook does.
    home : Home
        Forward passes of other threads end nothing.
    harmed : callable
        Told of what fails in such a forward pass.
    """

    def __init__(
        self,
        end: Callable[[bool], None],
        entered: Callable[[nn.Module, tuple[Any, ...]], Any],
        home: Home,
        harmed: Callable[[str, Exception], None],
    ) -> None:
        self._end, self._entered, self._home, self.harmed = end, entered, home, harmed
        # Weak: an optimizer that the script replaced by a new one is waited for no more.
        self._members: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._stepped: dict[int, bool] = {}
        self._waiting: Any = None

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """Wait for this optimizer too."""
        self._members.add(optimizer)

    def __contains__(self, optimizer: object) -> bool:
        return optimizer in self._members

    @property
    def any(self) -> bool:
        """Whether there is any optimizer to wait for."""
        return bool(self._members)

    @property
    def pending(self) -> bool:
        """Whether an optimizer has stepped and others have not."""
        return bool(self._stepped)

    def forget(self) -> None:
        """Drop the steps so far: something else says when a step ends."""
        self._stepped = {}
        self._stop_waiting()

    def stepped(self, optimizer: torch.optim.Optimizer, skipped: bool) -> None:
        """Take a step of one optimizer."""
        if id(optimizer) in self._stepped:
            self.finish()
        self._stepped[id(optimizer)] = skipped
        if all(id(member) in self._stepped for member in self._members):
            self.finish()
        elif self._waiting is None:
            self._waiting = register_module_forward_pre_hook(entry(self._forward, "between two steps"))

    def finish(self) -> None:
        """End the step if any optimizer has stepped in it."""
        self._stop_waiting()
        if self._stepped:
            skipped = all(self._stepped.values())
            self._stepped = {}
            self._end(skipped)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            remove_global_hook(self._waiting)
            self._waiting = None

    def _forward(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled() or not self._home.here:
            return None
        self.finish()
        return self._entered(module, args)
