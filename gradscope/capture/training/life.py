"""A recorder's life: what it holds in torch, in the process and on the disk, and how each of these is given back."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from gradscope.capture.calls.home import Home
from gradscope.capture.calls.watcher import Watcher
from gradscope.capture.guard import Observers, inside
from gradscope.capture.layers.discovery import Target, names_in
from gradscope.capture.training import clipping, endings, scaling
from gradscope.capture.training.account import Account
from gradscope.capture.training.clips import ClipBook
from gradscope.capture.training.coverage import NEVER_PASSED, NEVER_UPDATED, CoverageLedger
from gradscope.capture.training.describe import describe_model, run_meta
from gradscope.capture.training.guarding import Guarded
from gradscope.capture.training.ledger import StepLedger
from gradscope.capture.training.pace import Pace
from gradscope.capture.training.settings import Settings
from gradscope.errors import GradscopeError
from gradscope.store import RunWriter

LifeT = TypeVar("LifeT", bound="Life")
#: Recorders of this process that are not closed.
_open: Observers[Life] = Observers()
#: Their writers, by the recorder: the garbage collector ends what it collects in any order.
_writers: dict[int, RunWriter] = {}
#: What takes something back is tried so often: each can be repeated.
_TRIES = 2


class Life(Guarded):
    """What begins and ends with a recorder; what it does in between is the recorder's own.

    Attributes
    ----------
    model : nn.Module
    settings : Settings
    targets : list of Target
    run_dir : Path
    """

    _account: Account
    _clips: ClipBook

    def __init__(self, model: nn.Module, settings: Settings, targets: list[Target]) -> None:
        super().__init__(Pace(settings.every, settings.budget, settings.first_step))
        self.model, self.settings, self.targets = model, settings, targets
        self.step_number = settings.first_step
        self._closed = self._disowned = self._dropped = False
        self._coverage = CoverageLedger(targets)
        self._ledger = StepLedger(model)
        # Nothing that a hook of torch's reaches may keep the recorder alive.
        itself: Any = weakref.proxy(self)
        self._home = Home(model.parameters())
        self._watcher = Watcher(targets, itself, names_in(model), self._home)
        self.run_dir = Path(os.path.abspath(settings.run_dir))

    def _open_run(self) -> RunWriter:
        settings = self.settings
        for other in _open:
            if other.run_dir.resolve() == self.run_dir.resolve() and settings.restart:
                self.say("other", f"the recorder that was still writing to {str(self.run_dir)!r} was closed")
                other.close()
            elif other.model is self.model and other.run_dir.resolve() != self.run_dir.resolve():
                self.say("other", f"this model is also being recorded to {str(other.run_dir)!r}: close that recorder")
        return RunWriter(
            self.run_dir,
            run_meta(describe_model(self.model), settings),
            durability=settings.durability,
            restart=settings.restart,
            rank=settings.rank,
            world_size=settings.world_size,
        )

    def _attach(self, around: nn.Module) -> None:
        itself: Any = self
        self._account = Account(self.model, self.settings.optimizers, weakref.proxy(itself), around, self._home)
        self._clips = ClipBook(self._account, self._ledger)
        self._account.attach()
        clipping.observe_clipping(itself)
        scaling.observe_scaling(itself)
        endings.observe_endings(self)
        _open.add(self)
        _writers[id(self)] = self._writer
        # A script that never closes its recorder still leaves a sealed run.
        held = weakref.ref(self)

        def close_at_exit() -> None:
            if (recorder := held()) is not None:
                recorder.close()

        self._at_exit = close_at_exit
        atexit.register(self._at_exit)

    def _undo(self) -> None:
        """Leave nothing behind of a recording that could not begin: no hook, patch, thread, file or directory."""
        self._closed = True
        self._detach()
        for _ in range(_TRIES):
            with contextlib.suppress(Exception):
                self._writer.discard()
                return

    def _detach(self) -> None:
        """Take back everything that is in torch or the process, each thing whatever became of the others."""
        account: Any = self.__dict__.get("_account")
        at_exit: Any = self.__dict__.get("_at_exit")
        itself: Any = self
        _writers.pop(id(self), None)
        self._each(
            lambda: account is None or account.detach(),
            lambda: self._watcher.close(),
            lambda: clipping.ignore_clipping(itself),
            lambda: scaling.ignore_scaling(itself),
            lambda: endings.ignore_endings(self),
            lambda: atexit.unregister(at_exit),
            lambda: _open.discard(self),
        )

    def _each(self, *parts: Callable[[], Any]) -> None:
        """Do each part of the closing, whatever became of the others; one that fails is tried once more."""
        for part in parts:
            for _ in range(_TRIES):
                try:
                    part()
                    break
                except Exception as error:
                    with contextlib.suppress(Exception):
                        self.harmed("close", error)

    def __enter__(self: LifeT) -> LifeT:
        return self

    @inside("close", _TRIES)
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __del__(self) -> None:
        """Seal the run of a recorder that nobody holds any more, without waiting for the disk."""
        with contextlib.suppress(Exception):
            if self.__dict__.get("_closed", True):
                return
            self._dropped = True
            if not self._account.seen_passes:
                self.say(
                    "dropped",
                    "nothing held the recorder any more, so that it was closed: keep what record() returns for as long "
                    "as the training lasts",
                )
            itself: Any = self
            self._account.kept_by(itself)  # weak references to what the garbage collector takes are gone by now
            try:
                self._end()
            finally:
                self._account.kept_by(weakref.proxy(itself))

    @inside("flush")
    def flush(self) -> None:
        """Make everything recorded so far durable. Any thread and any signal handler may call it at any moment."""
        try:
            self.within("flush", self._hand_over)
        finally:
            self._wait_for(self._writer.flush)

    def _hand_over(self) -> None:
        """Give the run's writer what belongs to steps that are over, unless a handler has interrupted just that."""
        if self._depth > 1 or self._closed:
            return
        self._account.settle()
        self._write_rows(ended_only=True, wait=True)
        self._writer.set_coverage(self._coverage.lines())

    def _wait_for(self, write: Callable[[], None]) -> None:
        try:
            write()
        except GradscopeError as error:  # the disk refuses; a fault of our own is tried again
            self.harmed("writing the run", error)

    def secure(self, seconds: float, *, last: bool) -> None:
        """Make everything recorded so far durable within ``seconds``; ``last``: seal it too, the process ends."""
        with contextlib.suppress(Exception):
            if self._lock.acquire(timeout=seconds):  # another thread may be inside, and waiting for this one
                try:
                    self._depth += 1
                    self._hand_over()
                finally:
                    self._depth -= 1
                    self._lock.release()
        with contextlib.suppress(Exception):
            self._writer.flush(seconds)
            if last:
                self._writer.close(seconds)

    @inside("close", _TRIES)
    def close(self) -> None:
        """Detach from the model and seal the run; a second call does nothing.

        Any thread and any signal handler may call it at any moment. A handler that has interrupted the recorder itself
        has everything durable when it returns; the run is sealed as soon as the recorder can be left.
        """
        self._end()

    def _end(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._close_wanted, inside = True, self._depth > 0
            self._closed = not inside
        if inside:
            self._wait_for(self._writer.flush)
            return
        parts = (
            lambda: self.within("close", self._account.close),
            lambda: self.within("close", self._last_step),
            self._detach,
            lambda: self.within("close", self._write_last),
            lambda: self._wait_for(self._seal),
        )
        for _ in range(_TRIES):  # no part fails here: what may is going through them
            try:
                self._each(*parts)
                break
            except Exception as error:
                with contextlib.suppress(Exception):
                    self.harmed("close", error)

    def _last_step(self) -> None:
        self._account.last_step()  # backward ran, but no optimizer step followed
        if self.faulted or not self._account.optimizers or bool(self._account.seen_passes) == self._account.any_update:
            return
        never = NEVER_UPDATED if self._account.seen_passes else NEVER_PASSED
        self._coverage.remark("steps", never)
        self.say("never", never)

    def _write_last(self) -> None:
        self._write_rows(ended_only=False, wait=True)
        self._writer.set_coverage(self._coverage.lines())

    def _seal(self) -> None:
        # Dropped: perhaps by the garbage collector, inside of anything.
        self._writer.close(0.0 if self._dropped else None)

    def _write_rows(self, ended_only: bool, wait: bool) -> None:
        """Write what is complete; unless ``wait``, what has not arrived from another device later."""
        for event in self._clips.take(wait):
            self._store(lambda event=event: self._writer.add_clip(event))  # type: ignore[misc]
        for row in self._ledger.take_rows(ended_only, self.step_number, wait):
            self._store(lambda row=row: self._writer.add_step(row))  # type: ignore[misc]

    def _store(self, write: Callable[[], object]) -> None:
        self.within("writing the run", self._written, write)

    def _written(self, write: Callable[[], object]) -> None:
        write()
        if (error := self._writer.trouble) is not None:
            raise error


def _leave_to_parent() -> None:
    """In a forked child: the run is the parent's, and another thread of the parent's may have been inside."""
    for recorder in _open:
        recorder._lock, recorder._depth = threading.RLock(), 0
        recorder._closed = recorder._disowned = True
        atexit.unregister(recorder._at_exit)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
