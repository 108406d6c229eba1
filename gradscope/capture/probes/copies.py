"""Let the user's code run on copies of what a model holds, and put everything back, bit for bit, whatever happens.

A closure holds the user's own model: it cannot be told to run a ``copy.deepcopy`` of it, and ``torch.func`` calls a
model, not a closure. So the model stays the object it is and holds other storage while the closure runs. Tensors are
exchanged through ``.data``, not written in place: their version counters do not move, so a graph of the user's that
is still to be walked stays valid, and nothing is ever written into the user's own storage.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.errors import SettingError

#: Wrappers that keep state of their own about parameters: buckets, shards, compiled code.
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule")


def refuse_wrapped(model: nn.Module, purpose: str) -> None:
    """Refuse a model whose parameters cannot be exchanged behind its back.

    Raises
    ------
    SettingError
        It is, or holds, a module under DataParallel, DistributedDataParallel, FSDP or ``torch.compile``.
    """
    for name, module in model.named_modules():
        kinds = [cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _WRAPPERS]
        if kinds or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"{name!r}" if name else "the model"
            kind = "torch.compile" if not kinds or kinds[0] == "OptimizedModule" else kinds[0]
            raise SettingError(
                f"{where} is wrapped by {kind}, which keeps its own view of the parameters; pass the plain model and a "
                f"closure that runs it: {purpose} is for before the training, on one process."
            )


@contextmanager
def on_copies(model: nn.Module) -> Iterator[None]:
    """Run the block on copies of the model's tensors.

    Afterwards parameters and buffers have the storage they had, ``.grad``, ``requires_grad``, training modes, hooks and
    other attributes of every module are what they were (in containers, one level deep), and so are the random states
    of torch, numpy and Python.
    """
    put_back: list[Callable[[], None]] = [_random_states()]
    try:
        for module in model.modules():
            put_back.append(_attributes(module))
        for parameter in model.parameters():
            put_back.append(_exchanged(parameter))
        for tensor in _other_tensors(model):
            put_back.append(_exchanged(tensor))
        with warnings.catch_warnings():
            # cuDNN wants all weights of a layer in one piece; the copies are not, the originals stay so.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
            yield
    finally:
        for back in reversed(put_back):
            back()


def _exchanged(tensor: Tensor) -> Callable[[], None]:
    """Give a tensor storage of its own, and no gradient; return what gives back the old."""
    data, grad, wanted = tensor.data, tensor.grad, tensor.requires_grad
    tensor.data = data.clone()
    tensor.grad = None

    def back() -> None:
        tensor.data = data
        tensor.grad = grad
        tensor.requires_grad_(wanted)

    return back


def _other_tensors(model: nn.Module) -> list[Tensor]:
    """Buffers, and tensors in attributes or one level inside them: states that a model keeps between calls."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for value in vars(module).values():
            items = value.values() if isinstance(value, dict) else value if _is_sequence(value) else (value,)
            for item in items:
                if isinstance(item, Tensor) and not isinstance(item, nn.Parameter) and item.is_leaf:
                    found[id(item)] = item
    return list(found.values())


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _attributes(module: nn.Module) -> Callable[[], None]:
    """Remember the attributes of a module, and what its containers hold."""
    if isinstance(module, torch.jit.ScriptModule):  # its attributes live in C++
        return lambda: None
    held = dict(vars(module))
    # Containers stay the same objects: the handle of a hook has a weak reference to the table that holds it.
    inside = [(value, copy.copy(value)) for value in held.values() if isinstance(value, (dict, list, set))]

    def back() -> None:
        vars(module).clear()
        vars(module).update(held)
        for value, before in inside:
            value.clear()
            if isinstance(value, list):
                value.extend(before)
            else:
                value.update(before)

    return back


def _random_states() -> Callable[[], None]:
    # The user's code may draw from numpy's old global generator.
    python, of_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def back() -> None:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return back
