"""See every update of a model's parameters by an optimizer, whoever holds or wraps it.

torch runs global hooks before and after ``step`` of any optimizer, so also of one that the recorder was not told of.
An optimizer that holds another (Accelerate's, SAM, Lookahead) makes one update with it. With a closure, the gradient
that the update uses exists only once the closure has been evaluated: the optimizer is handed a closure that says so.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class UpdateObserver(Protocol):
    """Who is told of updates by optimizers."""

    def concerns(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this optimizer's updates are of interest; asked before each."""
        ...

    def elsewhere(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer that is of no interest has stepped."""
        ...

    def gradient_ready(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        """The gradient of an update is there; not ``first`` where an inner optimizer takes it up once more."""
        ...

    def evaluation_begins(self, number: int) -> None:
        """A closure is about to be evaluated, for the ``number``-th time in this update."""
        ...

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        """An update is complete."""
        ...


class Updates:
    """Tell ``observer`` of updates; nothing it does reaches the optimizer."""

    def __init__(self, observer: UpdateObserver, guard: Callable[[str], Any]) -> None:
        self._observer, self._guard = observer, guard
        self._under_way: list[torch.optim.Optimizer] = []
        self._evaluations, self._evaluating = 0, False
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._under_way.clear()

    @property
    def running(self) -> bool:
        """Whether an update of interest is under way."""
        return bool(self._under_way)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        with self._guard("an optimizer's step"):
            return self._begin(optimizer, args, kwargs)
        return None

    def _begin(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if self._under_way and not _belongs(optimizer, self._under_way[-1]):
            self._under_way.clear()  # the step under way ended with an exception
        nested = bool(self._under_way)
        if not nested and not self._observer.concerns(optimizer):
            self._observer.elsewhere(optimizer)
            return None
        self._under_way.append(optimizer)
        if not nested:
            self._evaluations = 0
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._observer.gradient_ready(optimizer, first=not nested)
            return None
        seen = self._seen(optimizer, closure)
        return ((args[0], seen, *args[2:]), kwargs) if len(args) > 1 else (args, kwargs | {"closure": seen})

    def _seen(self, optimizer: torch.optim.Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        # Holds nothing once the step is over: some optimizers keep their closure.
        held = weakref.ref(optimizer)

        @functools.wraps(closure)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            outer = self._evaluating
            if not outer:
                self._evaluations += 1
                with self._guard("a closure"):
                    self._observer.evaluation_begins(self._evaluations)
            self._evaluating = True
            try:
                result = closure(*args, **kwargs)
            except BaseException:
                self._under_way.clear()  # no hook of torch's tells that the step has ended
                raise
            finally:
                self._evaluating = outer
            if not outer and self._evaluations == 1 and (living := held()) is not None:
                with self._guard("a closure"):
                    self._observer.gradient_ready(living, first=True)
            return result

        return evaluated

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with self._guard("an optimizer's step"):
            if not any(known is optimizer for known in self._under_way):
                return
            outermost = self._under_way[0] is optimizer
            while self._under_way.pop() is not optimizer:
                pass
            if outermost:
                self._observer.updated(optimizer)


def _belongs(inner: torch.optim.Optimizer, outer: torch.optim.Optimizer) -> bool:
    return inner is not outer and any(held is inner for held in held_optimizers(outer))


def held_optimizers(holder: Any, depth: int = 3) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers of torch that an object holds in its attributes, to some depth."""
    values = list(vars(holder).values()) if hasattr(holder, "__dict__") else []
    values += [getattr(holder, name, None) for name in getattr(type(holder), "__slots__", ()) if isinstance(name, str)]
    for value in values:
        for one in value if isinstance(value, list | tuple) else (value,):
            if issubclass(type(one), torch.optim.Optimizer):
                yield one
                if depth:
                    yield from held_optimizers(one, depth - 1)


def parameters_of(optimizer: Any) -> list[Tensor]:
    """Return what an optimizer updates."""
    return [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]


def living_optimizers(parameters: Iterable[Tensor]) -> list[torch.optim.Optimizer]:
    """Return every optimizer of this process that updates any of ``parameters``, and is no other one's inner."""
    import gc

    wanted = {id(p) for p in parameters}
    # issubclass of type: isinstance would ask an object's own __class__, which may do anything.
    every = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
    found = [o for o in every if any(id(p) in wanted for p in parameters_of(o))]
    inner = {id(held) for o in found for held in held_optimizers(o)}
    return [o for o in found if id(o) not in inner]
