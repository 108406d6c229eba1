"""Bring what is recorded to the host: whatever device a model runs on, its numbers are computed there.

The equations are proven on the CPU, some devices have no float64 (MPS), and eight rows of a batch are little to copy.
So a device is asked for views and copies only, never for arithmetic. Where it has streams a copy goes into pinned
memory without waiting, and is read after :func:`wait`, at the end of the backward pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# They copy beside what the host does (ROCm is called cuda). MPS has no stream to wait for: it is waited for at once.
_WITH_STREAMS = ("cuda", "xpu")

#: Numbers that are kept unread between recorded steps; one more, and all are waited for.
MOST_KEPT = 128

# The streams on which copies were begun, with a token of the last.
_under_way: dict[Any, object] = {}
_guard = threading.Lock()

# By the parameter, its version and its copy.
_weights: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}


def is_host(x: Tensor) -> bool:
    """Whether the memory of a tensor may be looked at."""
    return x.device.type == "cpu"


def begun(x: Tensor) -> Tensor:
    """Begin to copy a tensor of another device; what is returned is detached, and may be read after :func:`wait`."""
    x = x.detach()
    there = _room(x, *x.shape[:1])
    _copy(x, there)
    return there


def _room(x: Tensor, *first: int) -> Tensor:
    """Return room on the host for a tensor, or for ``first`` of its rows."""
    return torch.empty((*first, *x.shape[1:]), dtype=x.dtype, pin_memory=x.device.type in _WITH_STREAMS, device="cpu")


def _copy(x: Tensor, there: Tensor) -> None:
    if x.device.type not in _WITH_STREAMS:
        there.copy_(x)
        return
    there.copy_(x, non_blocking=True)
    # No event after each: to record one takes as long as to begin the copy of a few rows.
    stream = torch.get_device_module(x.device).current_stream(x.device)
    with _guard:
        _under_way[stream] = object()


def wait() -> None:
    """Wait for every copy that was begun; at once where there is none."""
    if not _under_way:  # as on the host always
        return
    with _guard:
        streams = list(_under_way.items())
    for stream, last in streams:
        stream.synchronize()
        with _guard:
            # Not what another thread has begun meanwhile; nor does it find a stream gone that is still waited for.
            if _under_way.get(stream) is last:
                del _under_way[stream]


def added(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of two tensors that may be under way."""
    wait()
    return a + b


def brought(x: Tensor) -> Tensor:
    """Return a tensor of the host, detached: itself, or a copy that has been waited for."""
    if is_host(x):
        return x.detach()
    copied = begun(x)
    wait()
    return copied


def kept(x: Tensor) -> Tensor:
    """Keep the present value of a small tensor of another device, without waiting; :func:`numbers` reads it."""
    return begun(x) if x.device.type in _WITH_STREAMS else x.detach().clone()


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return the values of tensors with one element, all of which are waited for at once."""
    copied = [x if is_host(x) else begun(x) for x in scalars]
    wait()
    return [float(x) for x in copied]


def widest(device: torch.device) -> torch.dtype:
    """Return the type that numbers of a device are reduced in there: float64, where it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


def rows_of(x: Tensor, axis: int, rows: Sequence[int]) -> Tensor:
    """Begin to copy some rows of a tensor of another device, which are put first: (b, ...).

    By views, one where the rows are evenly spaced, as those of a batch that ``samples`` divides are: to gather them
    would be to compute on the device.
    """
    x = x.detach().movedim(axis, 0)
    steps = {after - before for before, after in pairwise(rows)} or {1}
    if rows and len(steps) == 1 and min(steps) > 0:
        return begun(x[rows[0] : rows[-1] + 1 : steps.pop()])
    there = _room(x, len(rows))
    for place, row in zip(there, rows, strict=True):
        _copy(x[row], place)
    return there


def weight(parameter: Tensor) -> Tensor:
    """Return a parameter as it is now, detached: itself, or a copy that is begun if none of this version is there.

    An edit through ``.data`` leaves the version as it was, so copies last for a step only: see :func:`forget`.
    """
    if is_host(parameter):
        return parameter.detach()
    of, version, copied = _weights.get(id(parameter), (None, -1, parameter))
    if of is None or of() is not parameter or version != parameter._version:
        copied = begun(parameter)
        _weights[id(parameter)] = weakref.ref(parameter), parameter._version, copied
    return copied


def forget() -> None:
    """Drop the copies of weights, at the end of a recorded step."""
    _weights.clear()
