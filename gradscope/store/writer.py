"""Writing a run: a journal while it grows, sealed segments behind it."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradscope.errors import RunError, SettingError, UsageError
from gradscope.schema import ClipEvent, Coverage, Record, RunMeta, SiteInfo, StepRow
from gradscope.store import codec
from gradscope.store.beginning import Beginning, remove_empty, said
from gradscope.store.journal import Journal
from gradscope.store.locking import lock_directory
from gradscope.store.segment import sync_directory
from gradscope.store.worker import Worker

#: SQLite takes no larger row.
MAX_ENTRY_BYTES = 900 << 20

#: Writers of this process, for a forked child that has to leave them alone.
_writers: weakref.WeakSet[RunWriter] = weakref.WeakSet()


class RunWriter:
    """Writes what one process records in one attempt, beside the training.

    What is added is encoded and handed to a thread, which commits it every 64 entries, 2 seconds or 8 MiB and has the
    journal sealed into an HDF5 segment, by a process of its own, when it passes ``seal_bytes``. Adding never waits for
    the disk, and memory does not grow with the run.

    Parameters
    ----------
    run_dir : str or Path
        Created; must not exist unless ``restart``, or unless other ranks of this run are writing there.
    meta : RunMeta
        ``attempt``, ``rank`` and ``world_size`` are set by the writer.
    durability : {"default", "full"}
        After `flush`, ``"default"`` survives the death of the process; ``"full"`` also a power cut.
    restart : bool
        Write a new attempt beside what is there.
    rank, world_size : int
        Which of how many processes this is.
    seal_bytes : int
        Size of the journal at which a segment is sealed.

    Attributes
    ----------
    run_dir : Path
        Absolute: the script may change its directory.
    path : Path
        Directory of this attempt and rank.

    Raises
    ------
    RunExistsError
    SettingError
        ``durability``, ``rank`` or ``seal_bytes`` is out of range.
    RunError
        The disk refuses. Nothing is left behind.

    Notes
    -----
    What the disk refuses is kept, up to 256 MiB, and written once it takes it; what has to be dropped is counted in
    the run's ``lost``. `flush` and `close` may be called from any thread and any signal handler. In a forked child
    nothing happens: the run is its parent's. A writer that is dropped, or whose interpreter ends, commits what it has
    and leaves the journal, which reads as a run.
    """

    def __init__(
        self,
        run_dir: str | Path,
        meta: RunMeta,
        *,
        durability: str = "default",
        restart: bool = False,
        rank: int = 0,
        world_size: int = 1,
        seal_bytes: int = 64 << 20,
    ) -> None:
        if durability not in {"default", "full"}:
            raise SettingError(f"durability must be 'default' or 'full', not {durability!r}")
        if not 0 <= rank < world_size:
            raise SettingError(f"rank must be in 0..{world_size - 1}, not {rank}")
        if seal_bytes < 1:
            raise SettingError(f"seal_bytes must be positive, not {seal_bytes}")
        self.run_dir = Path(os.path.abspath(run_dir))
        self._process = os.getpid()
        beginning = Beginning(self.run_dir)
        try:
            directory = beginning.rank_directory(restart, rank, world_size)
            self.path = directory.path
            self.meta = replace(meta, attempt=directory.attempt, rank=rank, world_size=world_size)
            held = lock_directory(self.path)
            beginning.undo.callback(held.close)
            journal = Journal.create(directory.journal, self.meta, durability)
            beginning.undo.callback(journal.discard)
            if durability == "full":
                for folder in beginning.named_in:
                    sync_directory(folder)
            self._made = tuple(beginning.made)
            unsynced = () if durability == "full" else beginning.named_in
            self._worker = Worker(directory, journal, held, self.meta, seal_bytes, unsynced)
        except BaseException as error:
            beginning.undo.close()
            if (own := beginning.told(error)) is not None:
                raise own from error
            raise
        _writers.add(self)
        weakref.finalize(self, self._worker.end, "leave").atexit = False

    # --- adding ------------------------------------------------------------------------------------------------------

    def add_record(self, record: Record) -> None:
        """Add a record; its arrays are copied."""
        self._add(codec.RECORD, codec.encode_record(record))

    def add_step(self, row: StepRow) -> None:
        """Add the scalars of an optimizer step."""
        self._add(codec.STEP, codec.encode_step(row))

    def add_clip(self, event: ClipEvent) -> None:
        """Add a clipping call."""
        self._add(codec.CLIP, codec.encode_clip(event))

    def set_sites(self, sites: dict[str, SiteInfo]) -> None:
        """Replace what is known of the sites."""
        if self._mine:
            with self._worker.change() as description:
                description.sites = dict(sites)

    def set_coverage(self, coverage: list[Coverage]) -> None:
        """Replace which sites were seen, and why one was not."""
        if self._mine:
            with self._worker.change() as description:
                description.coverage = list(coverage)

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Replace the settings: some are known only once the training runs."""
        if self._mine:
            self.meta = replace(self.meta, settings=dict(settings))
            with self._worker.change() as description:
                description.meta = self.meta

    def add_lost(self, reason: str, count: int = 1) -> None:
        """Count what could not be recorded."""
        if self._mine:
            self._worker.count_lost(reason, count)

    def _add(self, kind: int, payload: bytes) -> None:
        if not self._mine:
            return
        if self._worker.ending:
            raise UsageError(f"the run {str(self.run_dir)!r} is closed")
        if len(payload) > MAX_ENTRY_BYTES:
            raise SettingError(f"one record of {len(payload) >> 20} MiB is too large; record fewer samples")
        self._worker.put(kind, payload)

    @property
    def _mine(self) -> bool:
        """False in a forked worker (a data loader's), which shares this object, not the run."""
        return os.getpid() == self._process

    # --- making durable ----------------------------------------------------------------------------------------------

    @property
    def error(self) -> RunError | None:
        """Why the disk does not take what was added, with what to do; None while it does."""
        error = self._worker.error
        return None if error is None else RunError(f"cannot write {str(self.path)!r}: {said(error)}")

    @property
    def trouble(self) -> RunError | None:
        """What the user should know of: `error`, or that the disk was too slow for what was added."""
        if (error := self.error) is None and (dropped := self._worker.dropped):
            return RunError(
                f"the disk of {str(self.path)!r} is too slow: {dropped} entries had to be dropped. "
                "Record fewer steps, samples or tensors."
            )
        return error

    def flush(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds, until everything added so far is in the journal.

        Raises
        ------
        RunError
            The disk refuses; what was added is kept.
        """
        if self._mine:
            self._worker.flush(timeout)
            self._raise()

    def close(self, timeout: float | None = None) -> None:
        """Wait, at most ``timeout`` seconds, until what is left is sealed and the journal gone.

        Raises
        ------
        RunError
            The disk refuses. The journal stays, and the run stays readable.
        """
        if not self._mine or self._worker.ended:
            return
        self._worker.end("seal")
        self._worker.join(timeout)
        if (error := self.error) is not None and not self._worker.dropped:
            remedy = f"Everything recorded is in its journal: `gradscope repair {self.run_dir}` seals it."
            raise RunError(f"{error} {remedy}") from self._worker.error
        self._raise()

    def discard(self) -> None:
        """Undo the beginning: remove the journal, and the directories that were made for it."""
        if self._mine:
            self._worker.end("discard")
            self._worker.join()
            for folder in reversed(self._made):
                remove_empty(folder)

    def _raise(self) -> None:
        if (error := self.error) is not None:
            raise error from self._worker.error


#: How long a fork may wait for a commit to end.
_FORK_SECONDS = 0.1
_paused = threading.local()


def _pause_all() -> None:
    """Fork between two commits: a child that uses SQLite itself would find its mutexes held by nobody who is there."""
    locks = [writer._worker.busy for writer in list(_writers)]
    _paused.locks = [lock for lock in locks if lock.acquire(timeout=_FORK_SECONDS)]


def _resume_all() -> None:
    for lock in _paused.__dict__.pop("locks", ()):
        lock.release()


def _disown_all() -> None:
    for writer in list(_writers):
        writer._worker.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_disown_all)
