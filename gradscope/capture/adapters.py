"""Custom recurrent layers: how a fused or scripted layer tells gradscope its recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Adapter:
    """How to replay a custom layer.

    An adapter without ``step`` is a black box: only the gradient of its input is recorded.
    """

    step: Callable[..., Any] | None = None
    gates: tuple[str, ...] = ()
    curve: str = ""


_REGISTRY: dict[type[nn.Module], Adapter] = {}


def adapter_for(module: nn.Module) -> Adapter | None:
    """Return the adapter registered for the module's class or a base of it."""
    return next((_REGISTRY[kind] for kind in type(module).__mro__ if kind in _REGISTRY), None)
