"""The two ways to call the recorder's clipping: short, over all optimized parameters, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def norm_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], optimized: Callable[[], list[Tensor]]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Split the arguments of ``clip_grad_norm_`` into parameters, what follows them by position, and by name."""
    return _split("clip_grad_norm_", "max_norm", args, kwargs, optimized)


def value_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], optimized: Callable[[], list[Tensor]]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Split the arguments of ``clip_grad_value_`` as :func:`norm_arguments` does."""
    return _split("clip_grad_value_", "clip_value", args, kwargs, optimized)


def _split(
    name: str, limit: str, args: tuple[Any, ...], kwargs: dict[str, Any], optimized: Callable[[], list[Tensor]]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    options = dict(kwargs)
    parameters = options.pop("parameters", None)
    if parameters is None and args and _are_parameters(args[0], len(args) > 1 or limit in options):
        parameters, args = args[0], args[1:]
    if not args and limit not in options:
        raise TypeError(f"{name}() needs {limit}: call {name}(1.0), or {name}(parameters, 1.0) as torch's own")
    return optimized() if parameters is None else parameters, args, options


def _are_parameters(first: Any, limit_follows: bool) -> bool:
    if isinstance(first, Tensor):  # a single parameter, unless it is a threshold in a tensor
        return limit_follows and (first.requires_grad or first.dim() > 0)
    return not isinstance(first, int | float | str) and hasattr(first, "__iter__")
