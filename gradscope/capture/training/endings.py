"""SIGTERM and SIGHUP: what was recorded is on the disk before the process does what it would have done.

A handler of Python's runs between two bytecodes of the main thread: a process that is stuck in native code for good
does not end by SIGTERM while a recorder is open, only by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any, Protocol

from gradscope.capture.guard import Observers

#: How long a process that is to end may be kept from it, for the disk's sake.
GRACE_SECONDS = 5.0

_WATCHED = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ending(Protocol):
    """Who is told that the process may be about to end."""

    def secure(self, seconds: float, *, last: bool) -> None:
        """Make what was recorded durable; ``last``: nothing comes after, seal the run where there is time."""
        ...


_open: Observers[Ending] = Observers()
_previous: dict[int, Any] = {}


def observe_endings(ending: Ending) -> None:
    """Begin to tell ``ending`` of signals; only from the main thread, as Python has it."""
    _open.add(ending)
    for number in _WATCHED:
        before = signal.getsignal(number)
        # None: a handler that is not Python's. An ignored signal ends nothing.
        if number in _previous or before is None or before is signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(number, _handle)
            _previous[number] = before


def ignore_endings(ending: Ending) -> None:
    """Stop telling ``ending``; with the last one the handlers are as they were."""
    _open.discard(ending)
    if not _open.held:
        _restore()


def _restore() -> None:
    for number, before in list(_previous.items()):
        if signal.getsignal(number) is not _handle:
            del _previous[number]  # the script has put its own in place, which may call ours
            continue
        with contextlib.suppress(ValueError):  # not the main thread: it stays, and hands on what it gets
            signal.signal(number, before)
            del _previous[number]


def _handle(number: int, frame: FrameType | None) -> None:
    before = _previous.get(number, signal.SIG_DFL)
    # Called by a handler of the script's that came later, the end is not ours to bring about.
    ends = before is signal.SIG_DFL and signal.getsignal(number) is _handle
    for ending in _open:
        with contextlib.suppress(Exception):
            ending.secure(GRACE_SECONDS, last=ends)
    if callable(before):
        before(number, frame)
    elif ends:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _forget_in_child() -> None:
    _open.clear()
    _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
