"""Keep torch.compile out of hooks of our own, and quiet about them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

_WARNING = r"Using `torch.compile\(module\)` when there are global hooks"


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile, once it is in use, from tracing our own code."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def quieten() -> Any:
    """Keep torch.compile from warning of a global hook: on the compiled wrapper it does nothing. Returns the filter."""
    warnings.filterwarnings("ignore", _WARNING, UserWarning)
    return warnings.filters[0]


def heed(silenced: Any) -> None:
    """Take back the filter that :func:`quieten` set."""
    if silenced in warnings.filters:
        warnings.filters.remove(silenced)  # type: ignore[attr-defined]
