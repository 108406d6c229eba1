"""Keep torch.compile out of hooks of our own, and quiet about them."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

# torch says so of the compiled wrapper, on which the hook does nothing.
_WARNING = r"Using `torch.compile\(module\)` when there are global hooks"


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile, once it is in use, from tracing our own code."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


class _Filter(tuple[Any, ...]):
    """A filter of our own: one of the script's that says the same is another."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def quieten() -> Any:
    """Keep torch.compile from warning of a global hook; returns what :func:`heed` takes back."""
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    silenced = _Filter(("ignore", re.compile(_WARNING, re.IGNORECASE), UserWarning, None, 0))
    filters.insert(0, silenced)
    with contextlib.suppress(Exception):
        _changed()
    return silenced, filters


def heed(silenced: Any) -> None:
    """Take back the filter that :func:`quieten` set, also where ``catch_warnings`` has put other filters in place."""
    if silenced is None:
        return
    places: tuple[Any, ...] = (silenced[1], warnings.filters)
    for filters in places:
        with contextlib.suppress(ValueError):
            filters.remove(silenced[0])
    _changed()


def _changed() -> None:
    """Have warnings that were met before looked up anew."""
    if (mutated := getattr(warnings, "_filters_mutated", None)) is not None:
        mutated()
