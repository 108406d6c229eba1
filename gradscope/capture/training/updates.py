"""See every update of a model's parameters by an optimizer, whoever holds or wraps it.

torch runs global hooks before and after ``step`` of any optimizer, so also of one that the recorder was not told of.
An optimizer that holds another (Accelerate's, SAM, Lookahead) makes one update with it. With a closure, the gradient
that the update uses exists only once the closure has been evaluated: the optimizer is handed a closure that says so.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor

from gradscope.capture.guard import Observers, entry
from gradscope.capture.torch_private import watch_optimizers


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

    def harmed(self, doing: str, error: Exception) -> None:
        """An error of gradscope's own."""
        ...


class Updates:
    """Tell ``observer`` of updates; nothing it does reaches the optimizer.

    Parameters
    ----------
    observer : UpdateObserver
    within : callable
        As ``Guarded.within``.
    """

    def __init__(self, observer: UpdateObserver, within: Callable[..., Any]) -> None:
        self._observer, self._within = observer, within
        # By thread: others may update models of their own.
        self._stacks: dict[int, list[torch.optim.Optimizer]] = {}
        self._evaluations, self._evaluating = 0, False

    def open(self) -> None:
        """Begin to see updates."""
        _watching.add(self)

    def close(self) -> None:
        """See no more of them."""
        _watching.discard(self)
        self._stacks.clear()

    @property
    def running(self) -> bool:
        """Whether an update of interest is under way, in whichever thread."""
        return any(self._stacks.values())

    @property
    def _under_way(self) -> list[torch.optim.Optimizer]:
        return self._stacks.setdefault(get_ident(), [])

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Take the beginning of a step; return arguments to put in place of its own, or None."""
        return self._within(_STEP, self._begin, optimizer, args, kwargs)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the end of a step."""
        self._within(_STEP, self._complete, optimizer)

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        self._observer.harmed(doing, error)

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
        held, own = weakref.ref(optimizer), weakref.ref(self)
        begins, ready, fails = (entry(one, "a closure") for one in (self._evaluation, self._ready, self._failed))

        @functools.wraps(closure)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            updates = own()
            if updates is None or updates._evaluating:
                return closure(*args, **kwargs)
            updates._evaluations += 1
            begins()
            updates._evaluating = True
            try:
                result = closure(*args, **kwargs)
            except BaseException:
                fails()
                raise
            finally:
                updates._evaluating = False
            ready(held())
            return result

        return evaluated

    def _evaluation(self) -> None:
        self._within("a closure", self._observer.evaluation_begins, self._evaluations)

    def _ready(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self._evaluations == 1 and optimizer is not None:
            self._within("a closure", self._observer.gradient_ready, optimizer, True)

    def _failed(self) -> None:
        self._under_way.clear()  # no hook of torch's tells that the step has ended

    def _complete(self, optimizer: torch.optim.Optimizer) -> None:
        under_way = self._under_way
        if not any(known is optimizer for known in under_way):
            return
        outermost = under_way[0] is optimizer
        while under_way.pop() is not optimizer:
            pass
        if outermost:
            self._observer.updated(optimizer)


_STEP = "an optimizer's step"
_ends: list[Callable[[], None]] = []


def _install() -> None:
    if not _ends:
        _ends.append(watch_optimizers(_before_any, _after_any))


def _uninstall() -> None:
    while _ends:
        _ends[-1]()
        _ends.pop()


_watching: Observers[Updates] = Observers(_install, _uninstall)


def _before_any(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
    changed = False

    def told(updates: Updates) -> None:
        nonlocal args, kwargs, changed
        if (given := updates.before(optimizer, args, kwargs)) is not None:
            (args, kwargs), changed = given, True

    try:
        _watching.tell(_STEP, told)
    except Exception as error:
        with contextlib.suppress(Exception):
            _watching.harmed(_STEP, error)
    return (args, kwargs) if changed else None


def _after_any(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    try:
        _watching.tell(_STEP, lambda updates: updates.after(optimizer))
    except Exception as error:
        with contextlib.suppress(Exception):
            _watching.harmed(_STEP, error)


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
