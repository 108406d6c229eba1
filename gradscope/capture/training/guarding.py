"""What keeps the recorder's own faults out of the training, and lets any thread and signal handler in."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from gradscope.capture.training.faults import IN_A_ROW, Faults, described
from gradscope.capture.training.pace import Pace
from gradscope.capture.training.telling import warn
from gradscope.errors import RunError
from gradscope.store import RunWriter

#: What may fail for good without the rest.
_PARTS = frozenset({"clipping", "gradient norms", "loss scale", "log", "the scalars of a step"})
TARGET = "recording "


class _Unharmed:
    """A context that hands errors to the recorder; entered several times a step, so no generator.

    One thread is inside at a time. Whoever closes the recorder from within (a signal handler) has it closed when the
    outermost context is left. The time inside of it is what ``every="auto"`` takes for the cost between recorded steps.
    """

    __slots__ = ("_began", "_doing", "_guarded")

    def __init__(self, guarded: Guarded, doing: str) -> None:
        self._guarded, self._doing = guarded, doing

    def __enter__(self) -> None:
        self._guarded._lock.acquire()
        self._guarded._depth += 1
        self._began = time.perf_counter() if self._guarded._pace.choosing else 0.0

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        guarded = self._guarded
        try:
            if self._began and guarded._pace.choosing:
                guarded._pace.spend(time.perf_counter() - self._began)
            if isinstance(error, Exception):
                guarded._lost(self._doing, error)
                return True
            return False
        finally:
            guarded._depth -= 1
            guarded._lock.release()
            if guarded._close_wanted and not guarded._depth:
                guarded.close()


class Guarded:
    """Something whose faults are told once and counted; a part that goes on failing is left alone."""

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

    def unharmed(self, doing: str) -> _Unharmed:
        """Keep any error of gradscope out of the user's training: warn once, count it."""
        return _Unharmed(self, doing)

    def say(self, what: str, message: str) -> None:
        """Tell the user, once."""
        if what not in self._warned:
            self._warned.add(what)
            warn(f"gradscope: {message}")

    def _lost(self, doing: str, error: Exception) -> None:
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
        self._close_wanted = self._close_wanted or not part  # when the context is left in which it failed
