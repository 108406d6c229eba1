"""The one hook on nodes of the autograd graph, guarded: nothing in it can raise into a backward pass.

What arrives at the node that made a tensor is the total gradient of that tensor, after every tensor hook. The hook
holds who receives it, never a node: the graph goes when the user lets it go.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.host import wait
from gradscope.capture.torch_private import graph_task, is_transformed, queue_callback

TRANSFORMED = "it runs inside a torch.func transform or a batched backward pass, which hides the values"

SECOND_ORDER = (
    "the loss reaches it through a gradient (create_graph=True), on paths outside its own recurrence; the pass that "
    "built that graph was recorded"
)


class CannotRecordError(Exception):
    """This call cannot be recorded; the message says why. Becomes a line in coverage, never reaches the user."""


class Receiver(Protocol):
    """Who takes what arrives in backward passes, told apart by torch's number of the pass."""

    gradients: dict[int, dict[Any, Any]]
    #: Passes that built a graph of their own, and those that cannot be recorded.
    graphed: set[int]
    refused: set[int]

    def take(self, task: int, name: Any, gradient: Any) -> None:
        """Keep a gradient that arrived in backward pass ``task``; several where ``ALL`` are asked for."""
        ...

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        ...

    def finished(self, task: int) -> None:
        """Take the end of a pass in which something arrived."""
        ...

    def failed(self, error: Exception) -> None:
        """Note why a pass is not recorded, or an error of gradscope's own."""
        ...


#: In place of an output: all of them, as they are.
ALL = -1

#: Which output of a node, what the receiver calls it, and how its gradient gets the shape that the receiver knows.
Place = tuple[int, Any, Callable[[Tensor], Tensor] | None]


def on_arrival(
    node: Any, places: Sequence[Place], receiver: Receiver, keep_alive: object = None
) -> torch.utils.hooks.RemovableHandle:
    """Hand over the gradients that arrive at a node.

    Parameters
    ----------
    node : autograd node
    places : sequence of Place
    receiver : Receiver
    keep_alive : object, optional
        Something to be kept as long as the node is.
    """

    prehook = _taking(receiver, places)
    prehook.kept = keep_alive  # type: ignore[attr-defined]
    handle: torch.utils.hooks.RemovableHandle = node.register_prehook(prehook)
    return handle


def on_leaf(leaf: Tensor, name: Any, receiver: Receiver) -> torch.utils.hooks.RemovableHandle:
    """Hand over the gradient of a leaf, also where it is asked for by ``torch.autograd.grad``."""
    return leaf.register_hook(_taking(receiver, ((0, name, None),), alone=True))


def on_departure(node: Any, places: Sequence[Place], receiver: Receiver) -> torch.utils.hooks.RemovableHandle:
    """Hand over the gradients that leave a node towards what it consumed; ``places`` are those of its inputs."""
    handle: torch.utils.hooks.RemovableHandle = node.register_hook(_taking(receiver, places))
    return handle


def _taking(receiver: Receiver, places: Sequence[Place], alone: bool = False) -> Callable[..., None]:
    """Return the hook that gives the receiver what arrives; whatever goes wrong is its to know, not the user's pass's.

    ``alone``: one gradient is given, not a tuple of them.
    """

    def take(given: Any, _: Any = None) -> None:
        task = -1
        try:
            gradients = (given,) if alone else given
            task = graph_task()
            if task not in receiver.gradients:
                _begin(receiver, task)
            if task in receiver.refused:
                return
            if torch.is_grad_enabled():
                with torch.no_grad():
                    _hand_over(receiver, task, gradients, places)
            else:  # as in every pass without create_graph; the context costs as much as the rest
                _hand_over(receiver, task, gradients, places)
        except Exception as error:
            with contextlib.suppress(Exception):
                _refuse(receiver, task, error)

    return take


def _hand_over(receiver: Receiver, task: int, gradients: tuple[Tensor | None, ...], places: Sequence[Place]) -> None:
    for place, name, layout in places:
        if place == ALL:
            if any(gradient is not None and is_transformed(gradient) for gradient in gradients):
                raise CannotRecordError(TRANSFORMED)
            receiver.take(task, name, gradients)
        elif (gradient := gradients[place]) is not None:
            if is_transformed(gradient):
                raise CannotRecordError(TRANSFORMED)
            receiver.take(task, name, gradient if layout is None else layout(gradient))


def on_passing(
    node: Any,
    kept: dict[int, dict[Any, Tensor]],
    name: Any,
    take: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Keep what arrives at a node, or what ``take`` makes of it, by number of the pass; cheap, for a node a timestep.

    What is missing is noticed by who looks for it at the end.
    """

    def prehook(gradients: tuple[Tensor | None, ...]) -> None:
        try:
            if (gradient := gradients[0]) is not None:
                # Detached: with create_graph it has a graph, which leads back to this hook.
                gradient = gradient.detach()
                kept[graph_task()][name] = gradient if take is None else take(gradient)
        except Exception:
            return

    node.register_prehook(prehook)


def _begin(receiver: Receiver, task: int) -> None:
    """Ask to be called at the end of the pass, not at the first arrival: output, h_n and c_n come separately."""
    receiver.gradients[task] = {}
    queue_callback(functools.partial(_end, receiver, task))
    if receiver.graphed - {task}:
        raise CannotRecordError(SECOND_ORDER)
    if torch.is_grad_enabled():
        receiver.graphed.add(task)


def _end(receiver: Receiver, task: int) -> None:
    try:
        with torch.no_grad():
            if task in receiver.refused:
                receiver.forget(task)
            else:
                wait()
                receiver.finished(task)
    except Exception as error:
        with contextlib.suppress(Exception):
            _refuse(receiver, task, error)


def _refuse(receiver: Receiver, task: int, error: Exception) -> None:
    receiver.refused.add(task)
    receiver.failed(error)


def guarded(told: Callable[[Exception], object], action: Callable[[], object]) -> None:
    """Run ``action`` outside of autograd and autocast; whatever it raises goes to ``told``, and no further."""
    try:
        with torch.no_grad():
            if torch.is_autocast_enabled("cpu"):  # that of other devices changes nothing on the host
                with torch.autocast("cpu", enabled=False):
                    action()
            else:
                action()
    except Exception as error:
        with contextlib.suppress(Exception):
            told(error)
