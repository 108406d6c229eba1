"""The thread that owns a run's files, beside the training.

Whoever trains puts finished entries into a bounded queue, and waits for nothing but the queue's lock, which is held for
no input or output. The lock is reentrant: a signal handler may flush or close while the same thread is inside.
"""

from __future__ import annotations

import atexit
import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradscope.schema import Coverage, RunMeta, SiteInfo
from gradscope.store.journal import Journal, Row, remove_journal
from gradscope.store.layout import RankDirectory
from gradscope.store.locking import DirectoryLock
from gradscope.store.part import Header
from gradscope.store.paths import check_file
from gradscope.store.sealed import SealedPart
from gradscope.store.sealer import Sealer
from gradscope.store.sealing import seal_journal
from gradscope.store.segment import sync_directory

FLUSH_ENTRIES = 64
FLUSH_SECONDS = 2.0
FLUSH_BYTES = 8 << 20
#: What may wait in memory for the disk; beyond it new entries are dropped and counted.
MAX_WAITING_BYTES = 256 << 20
#: An entry in memory is at least this large.
_ENTRY_BYTES = 500
#: What one transaction takes at most.
_COMMIT_BYTES = 16 << 20
#: How often a process that seals is asked whether it has ended.
_POLL_SECONDS = 0.1

#: So many faults of our own in the thread, and it ends.
_FAULTS = 3

DROPPED = "the disk refused them, or was too slow"
VANISHED = "something removed them from the journal"


@dataclass
class Description:
    """What is known of a run beside its entries."""

    meta: RunMeta
    sites: dict[str, SiteInfo] = field(default_factory=dict)
    coverage: list[Coverage] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Description:
        """Return it as it is now."""
        return Description(self.meta, dict(self.sites), list(self.coverage), dict(self.lost))

    def info(self) -> dict[str, Any]:
        """Return it as the journal keeps it."""
        return {
            "metas": [asdict(self.meta)],
            "sites": [info.to_json() for info in self.sites.values()],
            "coverage": [entry.to_json() for entry in self.coverage],
            "lost": self.lost,
        }

    def header(self, *, closing: bool) -> Header:
        """Return it as a segment has it."""
        return Header((self.meta,), self.sites, tuple(self.coverage), self.lost, closing=closing)


class Worker:
    """Commits entries to the journal and has it sealed; everything but `put` and `change` happens in its thread.

    Attributes
    ----------
    lock : threading.Condition
        Held for changes of what is waiting or known; never while a file is touched.
    error : Exception or None
        Why the disk refused the last attempt; None once it has taken everything.
    """

    def __init__(
        self,
        directory: RankDirectory,
        journal: Journal,
        held: DirectoryLock,
        meta: RunMeta,
        seal_bytes: int,
        unsynced: Iterable[Path] = (),
    ) -> None:
        self.lock = threading.Condition(threading.RLock())
        #: Held while SQLite is at work.
        self.busy = threading.Lock()
        self.error: Exception | None = None
        self.ended = self._disowned = False
        self._directory, self._journal, self._held = directory, journal, held
        self._description, self._changed = Description(meta), False
        self._seal_bytes = seal_bytes
        self._sealer = Sealer(directory, held)
        # Directories whose new names a power cut would take, and the run with them.
        self._unsynced, self._begun = set(unsynced), time.monotonic()
        # What waits for its first commit, and what was refused or is being committed.
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_bytes = 0
        self._taken: deque[Row] = deque()
        self._taken_bytes = 0
        self._last_id = self._committed_id = self._sealed_id = 0
        self._journal_bytes = 0
        self._tried_at = time.monotonic()
        self._asked = self._answered = 0
        self._end = ""
        self.thread = threading.Thread(target=self._run, name="gradscope-store", daemon=True)
        self.thread.start()
        atexit.register(self._at_exit)

    # -- from any thread -------------------------------------------------------------------------------------

    def put(self, kind: int, payload: bytes) -> bool:
        """Hand over an entry; False where there is no room for it, which is counted."""
        with self.lock:
            if self.ended:
                return False
            size = len(payload) + _ENTRY_BYTES
            held = self._waiting_bytes + self._taken_bytes
            if held and held + size > MAX_WAITING_BYTES:
                self.count_lost(DROPPED)
                return False
            if self._due() is None:
                self.lock.notify_all()  # it waits for anything to do
            self._waiting.append((kind, payload))
            self._waiting_bytes += size
            if self._full():
                self.lock.notify_all()
            return True

    @contextlib.contextmanager
    def change(self) -> Iterator[Description]:
        """Change what is known of the run: yields a `Description`."""
        with self.lock:
            yield self._description
            if self._due() is None:
                self.lock.notify_all()
            self._changed = True

    def count_lost(self, reason: str, count: int = 1) -> None:
        """Count what could not be recorded."""
        with self.change() as description:
            description.lost[reason] = description.lost.get(reason, 0) + count

    def flush(self, timeout: float | None = None) -> None:
        """Wait until what was put before has been committed, or refused: then ``error`` says why."""
        with self.lock:
            self._asked += 1
            mine = self._asked
            self.lock.notify_all()
            self.lock.wait_for(lambda: self._answered >= mine or self.ended, timeout)

    def end(self, how: str) -> None:
        """Ask for the end: ``"seal"`` the run, ``"leave"`` the journal as it is, or ``"discard"`` it.

        The first word counts.
        """
        with self.lock:
            self._end = self._end or how
            self.lock.notify_all()

    @property
    def ending(self) -> bool:
        """Whether the end was asked for."""
        return bool(self._end)

    @property
    def dropped(self) -> int:
        """How many entries were."""
        return self._description.lost.get(DROPPED, 0)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended."""
        with self.lock:
            if not self.lock.wait_for(lambda: self.ended, timeout):
                return
        if self._disowned:
            return
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _at_exit(self) -> None:
        """The interpreter ends with the run open: commit what there is, before threads are stopped."""
        self.end("leave")
        self.join()

    def disown(self) -> None:
        """In a forked child: the run, its lock and its journal are the parent's."""
        self.lock = threading.Condition(threading.RLock())  # the old one may be held by a thread that is not here
        self.ended = self._disowned = True
        self._held.close()

    # -- in the thread ---------------------------------------------------------------------------------------

    def _full(self) -> bool:
        return len(self._waiting) >= FLUSH_ENTRIES or self._waiting_bytes >= FLUSH_BYTES

    def _due(self) -> float | None:
        """Seconds until there is something to do; None for never."""
        if self._end or self._asked > self._answered or (self._full() and self.error is None):
            return 0.0
        waits = [_POLL_SECONDS] if self._sealer.running else []
        if self._waiting or self._taken or self._changed:
            waits.append(max(0.0, self._tried_at + FLUSH_SECONDS - time.monotonic()))
        if self._unsynced:
            waits.append(max(0.0, self._begun + FLUSH_SECONDS - time.monotonic()))
        return min(waits, default=None)

    def _run(self) -> None:
        how, faults = "", list[Exception]()
        while not how:
            try:
                how = self._work()
            except Exception as error:  # a fault of our own: once may be no more, else what there is stays readable
                faults.append(error)
                how = "leave" if len(faults) == _FAULTS else ""
        for _ in range(_FAULTS):
            try:
                self._finish(how, faults[-1] if len(faults) == _FAULTS else None)
                break
            except Exception as error:
                self.error = self.error or error
        with self.lock:  # whatever has failed: somebody may wait for it
            self.ended = True
            self.lock.notify_all()

    def _work(self) -> str:
        """Work until the end is asked for, and return which."""
        how = ""
        while not how:
            with self.lock:
                due = self._due()
                if due is None or due > 0:
                    self.lock.wait(due)
                asked, how = self._asked, self._end
                committing = bool(how) or self._due() == 0
            if committing:
                self._commit()
            with self.lock:
                self._answered = max(self._answered, asked)
                self.lock.notify_all()
            if not how:
                self._mind_sealing()
        return how

    def _commit(self) -> None:
        """Commit what waits; what the disk refuses is kept for the next time."""
        with self.lock:
            self._tried_at = time.monotonic()
            while self._waiting:
                kind, payload = self._waiting.popleft()
                self._last_id += 1
                self._taken.append((self._last_id, kind, payload))
            self._taken_bytes += self._waiting_bytes
            self._waiting_bytes = 0
            described, self._changed = self._description.copy() if self._changed else None, False
        info = described.info() if described else {}
        try:
            while self._taken or info:
                batch, size = self._batch()
                with self.busy:
                    self._journal.append(batch, info)
                info = {}
                for _ in batch:
                    self._taken.popleft()
                self._taken_bytes = max(0, self._taken_bytes - size - _ENTRY_BYTES * len(batch))
                self._journal_bytes += size
                self._committed_id = batch[-1][0] if batch else self._committed_id
            self._taken_bytes, self.error = 0, None
        except Exception as error:
            self.error, self._changed = error, self._changed or described is not None
        if self._begun + FLUSH_SECONDS <= time.monotonic():  # a shorter run is not worth the wait
            self._sync_names()

    def _sync_names(self) -> None:
        while self._unsynced:
            with contextlib.suppress(OSError):
                sync_directory(self._unsynced.pop())

    def _batch(self) -> tuple[list[Row], int]:
        rows: list[Row] = []
        size = 0
        for row in self._taken:
            if rows and size + len(row[2]) > _COMMIT_BYTES:
                break
            rows.append(row)
            size += len(row[2])
        return rows, size

    def _mind_sealing(self) -> None:
        """Have the journal sealed when it has grown large, and drop from it what has been."""
        with contextlib.suppress(OSError, sqlite3.Error):  # what cannot be dropped now is dropped later
            self._drop_sealed(self._sealer.ended())
        if self._journal_bytes >= self._seal_bytes and self.error is None and not self._sealer.running:
            self._journal_bytes = 0
            self._sealer.start(self._sealed_id, self._committed_id)

    def _drop_sealed(self, last_id: int | None) -> None:
        if last_id is not None:
            self._sealed_id = last_id
            with self.busy:
                self._journal.forget(last_id)

    def _finish(self, how: str, fault: Exception | None) -> None:
        removed = how == "discard"
        try:
            if not removed:
                self._commit()  # what came last, or what a fault of our own has left
            with contextlib.suppress(OSError, sqlite3.Error):
                self._drop_sealed(self._sealer.ended(wait=True))
            if self._taken and not removed:
                self._note_lost()
            elif how == "seal":
                self._seal()
                removed = True
        except Exception as error:
            self.error = error
        finally:
            self._release(remove=removed)
            with self.lock:
                self.ended, self.error = True, self.error or fault
                self._taken.clear()
                self.lock.notify_all()
            atexit.unregister(self._at_exit)

    def _seal(self) -> None:
        """Seal what is left, and see that the run can be read, before the journal goes."""
        connection, after = self._journal.connection, self._sealed_id
        (there,) = connection.execute("SELECT count(*) FROM entries WHERE id > ?", (after,)).fetchone()
        if there < self._committed_id - after:
            self.count_lost(VANISHED, self._committed_id - after - there)
        seal_journal(connection, self._directory, self._description.header(closing=True), after)
        segments = self._directory.segments()
        for segment in segments:
            check_file(segment)
        SealedPart(segments[-1])

    def _note_lost(self) -> None:
        """Say in the run what never reached it, in the room that was reserved for that."""
        self.count_lost(DROPPED, len(self._taken))
        with contextlib.suppress(OSError, sqlite3.Error):
            self._journal.note(self._description.info())

    def _release(self, *, remove: bool) -> None:
        try:
            self._journal.close()
            if remove:
                remove_journal(self._journal.path)
                sync_directory(self._directory.path)
        except (OSError, sqlite3.Error) as error:
            self.error = self.error or error
        finally:
            self._held.close()
