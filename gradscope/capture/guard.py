"""The one guard between a training and what runs beside it.

Whatever torch calls (a hook, a function in place of its own) and whatever a script calls of the recorder is an entry.
An entry holds who it belongs to weakly, so that no hook keeps a recorder alive, and nothing that fails below it reaches
the caller: it is told to the owner's ``harmed``. What torch is to do for the script is done in the entry itself,
between what is told before and after it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

CallableT = TypeVar("CallableT", bound=Callable[..., Any])
T = TypeVar("T")
P = ParamSpec("P")


class Harmed(Protocol):
    """Who is told of an error of gradscope's own."""

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error that has ended what was being done."""
        ...


def tell(observer: Any, doing: str, told: Callable[[Any], object]) -> None:
    """Tell one observer of something: what fails there is its own. It may go while it is told, and its owner before."""
    try:
        told(observer)
    except Exception as error:
        with contextlib.suppress(Exception):
            observer.harmed(doing, error)


def entry(method: Callable[..., Any], doing: str) -> Callable[..., Any]:
    """Return what torch may call in place of a bound method; None comes back where that fails, or is no more."""
    held: weakref.ref[Any] = weakref.ref(method.__self__)  # type: ignore[attr-defined]
    function: Callable[..., Any] = method.__func__  # type: ignore[attr-defined]

    def entered(*args: Any, **kwargs: Any) -> Any:
        owner = held()
        if owner is None:
            return None
        try:
            return function(owner, *args, **kwargs)
        except Exception as error:
            with contextlib.suppress(Exception):
                owner.harmed(doing, error)
            return None

    return entered


def inside(doing: str, tries: int = 1) -> Callable[[CallableT], CallableT]:
    """Decorate a method that a script calls: what fails in it is told to ``self.harmed``, and goes no further."""

    def decorated(method: CallableT) -> CallableT:
        @functools.wraps(method)
        def entered(self: Any, *args: Any, **kwargs: Any) -> Any:
            for _ in range(tries):
                try:
                    return method(self, *args, **kwargs)
                except Exception as error:
                    with contextlib.suppress(Exception):
                        self.harmed(doing, error)
            return None

        return entered  # type: ignore[return-value]

    return decorated


def asked(
    doing: str, returns: str
) -> Callable[[Callable[P, tuple[Callable[[], T], Callable[[], Any] | None]]], Callable[P, T]]:
    """Decorate a method that makes of a script's call what torch is to do for it, and what is to be noted after that.

    The script asked for it to be done, so what fails in making ready is tried once more. A TypeError is the script's.
    """

    def decorated(method: Callable[P, tuple[Callable[[], T], Callable[[], Any] | None]]) -> Callable[P, T]:
        @functools.wraps(method)
        def entered(self: Any, *args: Any, **kwargs: Any) -> T:
            # What is gone through once only is, before anything can fail.
            args = tuple([list(one) if isinstance(one, Iterator) else one for one in args])
            kwargs = {name: list(one) if isinstance(one, Iterator) else one for name, one in kwargs.items()}
            try:
                carry_out, note = method(self, *args, **kwargs)
            except TypeError:
                raise
            except Exception as error:
                with contextlib.suppress(Exception):
                    self.harmed(doing, error)
                carry_out, note = method(self, *args, **kwargs)
            result = carry_out()
            try:
                if note is not None:
                    note()
            except Exception as error:
                with contextlib.suppress(Exception):
                    self.harmed(doing, error)
            return result

        shown = inspect.signature(method).replace(return_annotation=returns)
        entered.__signature__ = shown  # type: ignore[attr-defined]
        return entered  # type: ignore[return-value]

    return decorated


class Observers(Generic[T]):
    """Who is told of something, held weakly; with the last one, what was installed for them is taken back.

    Any thread may add, discard and go through them at any time.

    Parameters
    ----------
    install, uninstall : callable, optional
        Called under a lock when there is somebody, and when there is nobody left; each must bear being repeated.
    """

    def __init__(
        self, install: Callable[[], object] | None = None, uninstall: Callable[[], object] | None = None
    ) -> None:
        self._install, self._uninstall = install, uninstall
        #: Empty where nobody is told. Never changed in place: others may be going through it.
        self.held: tuple[weakref.ref[Any], ...] = ()
        self._lock = threading.RLock()
        _every.append(self)

    def add(self, observer: T) -> None:
        """Tell this one too."""
        with self._lock:
            if not any(held() is observer for held in self.held):
                # First: where installing fails, leaving undoes what was installed.
                self.held = (*self.held, weakref.ref(observer, self._gone))
            if self._install is not None:
                self._install()

    def discard(self, observer: T | None) -> None:
        """Tell this one no more."""
        with self._lock:
            self.held = tuple(held for held in self.held if held() not in (None, observer))
            if not self.held and self._uninstall is not None:
                self._uninstall()

    def clear(self) -> None:
        """Tell nobody any more."""
        with self._lock:
            self.held = ()
            self.discard(None)

    def _gone(self, _: object) -> None:
        with contextlib.suppress(Exception):
            self.discard(None)

    def __iter__(self) -> Iterator[T]:
        return iter([one for held in self.held if (one := held()) is not None])

    def tell(self, doing: str, told: Callable[[T], object]) -> None:
        """Tell each of something; what fails in one is told to that one alone."""
        for observer in self:
            tell(observer, doing, told)

    def harmed(self, doing: str, error: Exception) -> None:
        """Tell all of an error in what they are told by."""
        for observer in self:
            with contextlib.suppress(Exception):
                observer.harmed(doing, error)  # type: ignore[attr-defined]


_every: list[Observers[Any]] = []


def _new_locks() -> None:
    """In a forked child: a lock may be held by a thread that is not here."""
    for observers in _every:
        observers._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)
