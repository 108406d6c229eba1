"""Every private symbol of torch that is used, in one place; a missing one turns a feature off.

A symbol that a version of torch does not have is None here: who uses it says in coverage what is not seen then.
"""

from __future__ import annotations

from typing import Any

import torch


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


def remove_global_hook(handle: Any) -> None:
    """Remove a global forward hook with all that torch keeps of it.

    The handle of a hook that was registered with its keyword arguments leaves an entry behind, which slows down every
    call of every module.
    """
    handle.remove()
    getattr(torch.nn.modules.module, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)
