"""See every backward pass while somebody observes: from which tensors, for which inputs, when it begins and ends.

``Tensor.backward``, ``torch.autograd.backward`` and ``torch.autograd.grad`` all end in one function that they look up
at each call; it is replaced while there is an observer, which sees a ``grad`` imported by name before as well.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from gradscope.capture.guard import Observers
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

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...


_replaced: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []
_under_way = threading.local()
_everywhere: list[Pass] = []


def observe(observer: PassObserver) -> None:
    """Begin to tell ``observer`` of backward passes."""
    _observers.add(observer)


def ignore(observer: PassObserver) -> None:
    """Stop telling ``observer``; with the last one torch's own functions are back in place."""
    _observers.discard(observer)


def _install() -> None:
    if _replaced:
        return
    seam = engine_seam()
    if seam is not None:
        _replace(*seam, _of_engine)
    else:
        _replace(torch.autograd, "backward", _of_backward)
        _replace(torch.autograd, "grad", _of_grad)


def _uninstall() -> None:
    while _replaced:
        place, name, original, ours = _replaced[-1]
        if getattr(place, name, None) is ours:
            setattr(place, name, original)
        _replaced.pop()


_observers: Observers[PassObserver] = Observers(_install, _uninstall)


def _replace(place: Any, name: str, describe: Callable[..., Pass]) -> None:
    original = getattr(place, name)

    @functools.wraps(original)
    def seen(*args: Any, **kwargs: Any) -> Any:
        if not _observers.held:
            return original(*args, **kwargs)
        stack = _under_way.__dict__.setdefault("stack", [])
        begun = None
        try:
            begun = describe(*args, **kwargs)
            _begin(begun, stack)
        except Exception as error:
            with contextlib.suppress(Exception):
                _observers.harmed(_PASS, error)
        if begun is None:
            return original(*args, **kwargs)
        begun.failed = True
        try:
            result = original(*args, **kwargs)
            begun.failed = False
            return result
        finally:
            try:
                _end(begun)
            except Exception as error:
                with contextlib.suppress(Exception):
                    _observers.harmed(_PASS, error)
            # Whatever has failed: what it holds keeps the graph alive.
            begun.roots = begun.root_gradients = begun.inputs = ()
            for known in (stack, _everywhere):
                with contextlib.suppress(ValueError):
                    known.remove(begun)

    _replaced.append((place, name, original, seen))
    setattr(place, name, seen)


_PASS = "a backward pass"


def _begin(begun: Pass, stack: list[Pass]) -> None:
    task = graph_task()
    if task != -1:
        begun.outer = _around(task, stack)
        if begun.outer is not None and begun.outer.task == -1:
            begun.outer.task = task
    stack.append(begun)
    _everywhere.append(begun)
    _observers.tell(_PASS, lambda observer: observer.pass_begins(begun))


def _around(task: int, stack: list[Pass]) -> Pass | None:
    """Return the pass that runs as ``task``; the engine may run a nested pass in a thread of its own."""
    running = stack or list(_everywhere)
    return next((known for known in reversed(running) if known.task in (task, -1)), None)


def _end(ended: Pass) -> None:
    _observers.tell(_PASS, lambda observer: observer.pass_ends(ended))
    ended.notes.clear()


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
