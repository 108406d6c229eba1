"""Every private symbol of torch that is used, in one place; a missing one turns a feature off.

A symbol that a version of torch does not have is None here: who uses it says in coverage what is not seen then.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


def engine_seam() -> tuple[Any, str] | None:
    """Return where every backward pass reaches the engine, also one by a ``grad`` that was imported by name."""
    name = "_engine_run_backward"
    return (torch.autograd, name) if callable(getattr(torch.autograd, name, None)) else None


def graph_task() -> int:
    """Return the number of the backward pass that runs in this thread, -1 outside of one."""
    return torch._C._current_graph_task_id()


def current_node() -> Any:
    """Return the node of the graph that the backward pass is at; None outside of one."""
    return torch._C._current_autograd_node()


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a torch.func transform or a batched backward pass, and has no values of its own."""
    functorch = _FUNCTORCH
    return functorch.is_functorch_wrapped_tensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


# Looked up once: it is asked about everything that arrives.
_FUNCTORCH = torch._C._functorch


def queue_callback(function: Any) -> None:
    """Call ``function`` at the end of the backward pass that runs."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def saving_is_hooked() -> bool:
    """Whether reading a tensor that is saved now would run somebody's code (checkpointing, offloading)."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


def in_transform() -> bool:
    """Whether a torch.func transform is under way."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    return peek is not None and peek() is not None


def storage_of(tensor: torch.Tensor) -> int:
    """Return which storage a tensor has, on any device: tensors that share it give the same number while they live."""
    return int(tensor.untyped_storage()._cdata)


class _Beside(OrderedDict[int, Any]):
    """torch's table of global optimizer hooks with one more, which is not in it.

    torch goes through the table itself while hooks run, so that to register or remove one there ends the step of an
    optimizer in another thread. This stands in its place, and is gone through as a copy.
    """

    def __init__(self, table: OrderedDict[int, Any]) -> None:
        super().__init__()
        self.table = table
        self.hook: Callable[..., Any] | None = None

    def values(self) -> Any:
        return (*self.table.values(), *([] if self.hook is None else [self.hook]))

    def __iter__(self) -> Iterator[int]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: object) -> bool:
        return key in self.table

    def __setitem__(self, key: int, value: Any) -> None:
        self.table[key] = value

    def __delitem__(self, key: int) -> None:
        del self.table[key]


# For good: hooks of others that are registered meanwhile are removed by way of it.
_beside: dict[str, _Beside] = {}


def watch_optimizers(before: Callable[..., Any], after: Callable[..., Any]) -> Callable[[], None]:
    """Call these before and after the step of any optimizer; returns what ends that."""
    module = sys.modules["torch.optim.optimizer"]
    tables = {"_global_optimizer_pre_hooks": before, "_global_optimizer_post_hooks": after}
    if not all(type(getattr(module, name, None)) is OrderedDict for name in tables):
        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove
    for name in tables:
        if name not in _beside or _beside[name].table is not getattr(module, name):
            _beside[name] = _Beside(getattr(module, name))
    views = {name: _beside[name] for name in tables}
    for name, hook in tables.items():
        views[name].hook = hook
        setattr(module, name, views[name])

    def end() -> None:
        for name, view in views.items():
            view.hook = None
            if getattr(module, name) is view:
                setattr(module, name, view.table)

    return end


def remove_global_hook(handle: Any) -> None:
    """Remove a global hook of modules with all that torch keeps of it.

    The handle of a hook that was registered with its keyword arguments leaves an entry behind, which slows down every
    call of every module; one that the garbage collector is about to take knows no more where its hook is.
    """
    handle.remove()
    module = torch.nn.modules.module
    for name in ("_global_forward_hooks", "_global_forward_hooks_with_kwargs", "_global_forward_pre_hooks"):
        getattr(module, name, {}).pop(handle.id, None)
