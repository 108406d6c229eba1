"""What keeps the recorder's own faults out of the training, and lets any thread and signal handler in."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from gradscope.capture.training.faults import IN_A_ROW, Faults, described
from gradscope.capture.training.pace import Pace
from gradscope.capture.training.telling import warn
from gradscope.errors import RunError
from gradscope.store import RunWriter

T = TypeVar("T")
#: What may fail for good without the rest.
_PARTS = frozenset({"clipping", "gradient norms", "loss scale", "log", "the scalars of a step"})
TARGET = "recording "


class Guarded:
    """Something whose faults are told once and counted; a part that goes on failing is left alone.

    One thread is inside at a time. Whoever closes it from within (a signal handler) has it closed when the outermost
    call is left. The time inside is what ``every="auto"`` takes for the cost between recorded steps.
    """

    _writer: RunWriter

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._warned: set[str] = set()
        self._faults = Faults()
        self._lock, self._depth = threading.RLock(), 0
        self._close_wanted = False

    def close(self) -> None:
        """End it; called when a fault, or a signal handler that came in between, has asked for it."""
        raise NotImplementedError

    def within(self, doing: str, action: Callable[..., T], *args: Any) -> T | None:
        """Keep any error of ``action`` out of the user's training: warn once, count it.

        A function, not a context: whatever fails on the way in has changed nothing yet.
        """
        began = 0.0
        self._lock.acquire()
        self._depth += 1
        try:
            began = time.perf_counter() if self._pace.choosing else 0.0
            return action(*args)
        except Exception as error:
            self.harmed(doing, error)
            return None
        finally:
            self._depth -= 1
            self._lock.release()
            if self._close_wanted and not self._depth:
                self.close()
            if began and self._pace.choosing:
                self._pace.spend(time.perf_counter() - began)

    @property
    def faulted(self) -> bool:
        """Whether anything has failed so far: what else is missing then may be missing for that."""
        return bool(self._faults)

    def say(self, what: str, message: str) -> None:
        """Tell the user, once."""
        if what not in self._warned:
            self._warned.add(what)
            warn(f"gradscope: {message}")

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own: count it in the run, tell it once, leave alone what fails every time."""
        if isinstance(error, RunError):  # the disk: the run's writer counts what it drops
            self.say("disk", f"{error} Training goes on; what has to be dropped meanwhile is counted in the run")
            return
        with contextlib.suppress(Exception):
            self._writer.add_lost(self._faults.reason(doing, error), 1)
        self.say(doing, f"{doing} failed ({described(error)}); training goes on, the report will say so")
        if self._faults.take(doing):
            self._switch_off(doing)

    def _switch_off(self, doing: str) -> None:
        """Leave a part alone that fails every time; without the account of the steps there is nothing to record."""
        part = doing in _PARTS or doing.startswith(TARGET)
        what = "it is switched off" if part else "recording has ended"
        self.say(f"off {doing}", f"{doing} failed {IN_A_ROW} times in a row: {what}, training goes on")
        self._close_wanted = self._close_wanted or not part  # when the call is left in which it failed
