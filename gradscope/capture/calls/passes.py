"""See every backward pass while somebody observes: from which tensors, for which inputs, when it begins and ends.

``Tensor.backward``, ``torch.autograd.backward`` and ``torch.autograd.grad`` all end in one function that they look up
at each call; it is replaced while there is an observer, which sees a ``grad`` imported by name before as well.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from gradscope.capture.torch_private import engine_seam, graph_task


@dataclass(eq=False)
class Pass:
    """One backward pass.

    Attributes
    ----------
    kind : str
        ``backward`` where gradients are added to leaves, ``grad`` where they are returned.
    roots : tuple of Tensor or GradientEdge
        What is differentiated; empty once the pass has ended, for it keeps the graph alive.
    root_gradients : tuple of Tensor or None
        Empty once the pass has ended.
    inputs : tuple of Tensor or GradientEdge
        The leaves asked for; empty where it is all of them, and once the pass has ended.
    asked : bool
        Whether the pass was for some leaves only.
    create_graph, retain_graph : bool
    outer : Pass or None
        The pass it runs inside of: reentrant checkpointing, a gradient taken in a hook.
    task : int
        torch's number of the pass, -1 until it is known.
    failed : bool
        Whether it ended with an exception.
    """

    kind: str
    roots: tuple[Any, ...]
    root_gradients: tuple[Any, ...] = ()
    inputs: tuple[Any, ...] = ()
    asked: bool = False
    create_graph: bool = False
    retain_graph: bool = False
    outer: Pass | None = None
    task: int = -1
    failed: bool = False
    notes: dict[Any, Any] = field(default_factory=dict)

    def running(self) -> bool:
        """Whether this is the pass that runs now; to be asked inside a hook."""
        now = graph_task()
        if self.task == -1:
            self.task = now
        return self.task == now

    def outermost(self) -> Pass:
        """Return the pass that this one runs inside of, or itself."""
        found = self
        while found.outer is not None:
            found = found.outer
        return found


class PassObserver(Protocol):
    """Who is told of backward passes. Nothing it raises reaches the user's pass."""

    def pass_begins(self, begun: Pass) -> None:
        """Take a pass that is about to run."""
        ...

    def pass_ends(self, ended: Pass) -> None:
        """Take a pass that has run, or failed."""
        ...


_lock = threading.RLock()
_observers: list[PassObserver] = []
_replaced: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []
_under_way = threading.local()
_everywhere: list[Pass] = []


def observe(observer: PassObserver) -> None:
    """Begin to tell ``observer`` of backward passes."""
    with _lock:
        if not any(known is observer for known in _observers):
            _observers.append(observer)
        if not _replaced:
            _install()


def ignore(observer: PassObserver) -> None:
    """Stop telling ``observer``; with the last one torch's own functions are back in place."""
    with _lock:
        _observers[:] = [known for known in _observers if known is not observer]
        if not _observers:
            for place, name, original, ours in reversed(_replaced):
                if getattr(place, name, None) is ours:
                    setattr(place, name, original)
            _replaced.clear()


def _install() -> None:
    seam = engine_seam()
    if seam is not None:
        _replace(*seam, _of_engine)
    else:
        _replace(torch.autograd, "backward", _of_backward)
        _replace(torch.autograd, "grad", _of_grad)


def _replace(place: Any, name: str, describe: Callable[..., Pass]) -> None:
    original = getattr(place, name)

    @functools.wraps(original)
    def seen(*args: Any, **kwargs: Any) -> Any:
        if not _observers:
            return original(*args, **kwargs)
        begun = _begin(describe, args, kwargs)
        if begun is None:
            return original(*args, **kwargs)
        begun.failed = True
        try:
            result = original(*args, **kwargs)
            begun.failed = False
            return result
        finally:
            _end(begun)

    setattr(place, name, seen)
    _replaced.append((place, name, original, seen))


def _stack() -> list[Pass]:
    if not hasattr(_under_way, "stack"):
        _under_way.stack = []
    return _under_way.stack


def _begin(describe: Callable[..., Pass], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass | None:
    try:
        begun = describe(*args, **kwargs)
        stack, task = _stack(), graph_task()
        if task != -1:
            # The engine may run a nested pass in a thread of its own.
            begun.outer = stack[-1] if stack else _everywhere[-1] if _everywhere else None
            if begun.outer is not None and begun.outer.task == -1:
                begun.outer.task = task
        stack.append(begun)
        _everywhere.append(begun)
    except Exception:
        return None
    for observer in tuple(_observers):
        _tell(observer.pass_begins, begun)
    return begun


def _end(ended: Pass) -> None:
    for observer in tuple(_observers):
        _tell(observer.pass_ends, ended)
    ended.roots = ended.root_gradients = ended.inputs = ()
    ended.notes.clear()
    for stack in (_stack(), _everywhere):
        stack[:] = [known for known in stack if known is not ended]


def _tell(told: Callable[[Pass], None], about: Pass) -> None:
    try:
        told(about)
    except Exception:  # observers report their own errors; whatever is left must not end the user's pass
        return


def _of_engine(
    roots: Any,
    root_gradients: Any = (),
    retain_graph: Any = False,
    create_graph: Any = False,
    inputs: Any = (),
    *rest: Any,
    accumulate_grad: bool = False,
    **_: Any,
) -> Pass:
    kind, listed = "backward" if accumulate_grad else "grad", _listed(inputs)
    return Pass(
        kind, _listed(roots), _listed(root_gradients), listed, bool(listed), bool(create_graph), bool(retain_graph)
    )


def _of_backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: Any = None,
    create_graph: Any = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> Pass:
    keep = create_graph if retain_graph is None else retain_graph
    listed = _listed(inputs)
    return Pass(
        "backward", _listed(tensors), _listed(grad_tensors), listed, bool(listed), bool(create_graph), bool(keep)
    )


def _of_grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: Any = None, create_graph: Any = False, **_: Any
) -> Pass:
    keep = create_graph if retain_graph is None else retain_graph
    return Pass("grad", _listed(outputs), _listed(grad_outputs), _listed(inputs), True, bool(create_graph), bool(keep))


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    # A GradientEdge is a named tuple, but one thing.
    single = isinstance(value, torch.Tensor | torch.autograd.graph.GradientEdge)
    return (value,) if single else tuple(value)
