"""Look behind the views that torch's modules return.

An operation in place on a view, such as ``output.mul_(2)`` on an unbatched or batch-first output, replaces the node of
the view: its gradient then reaches the tensor behind without passing there. The node of the tensor behind stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class Behind(NamedTuple):
    """A tensor with the same elements as one that was returned, and a node that stays.

    Attributes
    ----------
    tensor : Tensor
        The tensor behind the view, or the tensor itself.
    layout : callable
        Brings a gradient of ``tensor`` into the shape of the view.
    """

    tensor: Tensor
    layout: Callable[[Tensor], Tensor]


def behind_views(returned: Mapping[str, Tensor]) -> dict[str, Behind]:
    """Return what is behind each of several tensors; themselves where several are views of one.

    What reaches the tensor behind is then the sum over them.
    """
    if not any(tensor._is_view() for tensor in returned.values()):
        return {name: Behind(tensor, _as_it_is) for name, tensor in returned.items()}
    places = {name: id(tensor._base if tensor._is_view() else tensor) for name, tensor in returned.items()}
    shared = Counter(places.values())
    return {
        name: behind_view(tensor) if shared[places[name]] == 1 else Behind(tensor, _as_it_is)
        for name, tensor in returned.items()
    }


def behind_view(tensor: Tensor) -> Behind:
    """Return what is behind a view that transposes the first two axes, or leaves axes of size 1 out."""
    base = tensor._base if tensor._is_view() else None
    if base is None or base.grad_fn is None or base.numel() != tensor.numel():
        return Behind(tensor, _as_it_is)
    if _long(base) == _long(tensor):
        shape = tensor.shape
        return Behind(base, lambda gradient: gradient.reshape(shape))
    if base.dim() > 1 and _places(base.transpose(0, 1)) == _places(tensor):
        return Behind(base, lambda gradient: gradient.transpose(0, 1))
    return Behind(tensor, _as_it_is)


def _as_it_is(gradient: Tensor) -> Tensor:
    return gradient


def _places(tensor: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tensor.shape), tensor.stride()


def _long(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides of the axes that have more than one element."""
    return [pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] != 1]
