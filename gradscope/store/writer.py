"""Writing a run: a journal while it grows, sealed segments behind it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gradscope.errors import RunExistsError, SettingError
from gradscope.schema import ClipEvent, Coverage, Record, RunMeta, SiteInfo, StepRow
from gradscope.store import codec
from gradscope.store.journal import Journal, Row, remove_journal
from gradscope.store.layout import RankDirectory, attempts
from gradscope.store.locking import lock_directory
from gradscope.store.part import BLOCK_BYTES, Block, Header, blocks
from gradscope.store.segment import build, sync_directory, write_segment

FLUSH_ENTRIES = 64
FLUSH_SECONDS = 2.0
FLUSH_BYTES = 8 << 20
#: What may wait in memory while the disk refuses writes; beyond it new entries are dropped and counted.
MAX_WAITING_BYTES = 64 << 20
MAX_WAITING_ENTRIES = 10_000
#: SQLite takes no larger row.
MAX_ENTRY_BYTES = 900 << 20

DROPPED = "the disk refused the journal"


class RunWriter:
    """Writes what one process records in one attempt.

    Entries are buffered, written to the journal every 64 entries, 2 seconds or 8 MiB (checked when one is added),
    and sealed into an HDF5 segment when the journal passes ``seal_bytes``. Memory does not grow with the run.

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

    Raises
    ------
    RunExistsError
    SettingError
        ``durability``, ``rank`` or ``seal_bytes`` is out of range.

    Notes
    -----
    Every method may raise ``OSError`` or ``sqlite3.Error``. What was added stays buffered (up to 64 MiB) and is
    written by a later flush that succeeds; what had to be dropped is counted in the run's ``lost``.
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
        self.run_dir = Path(run_dir)
        self._directory = _begin(self.run_dir, restart, rank, world_size)
        self.path = self._directory.path
        self.meta = replace(meta, attempt=self._directory.attempt, rank=rank, world_size=world_size)
        self._lock = threading.RLock()
        self._held = lock_directory(self.path)
        self._process = os.getpid()
        self._journal: Journal | None = Journal.create(self._directory.journal, self.meta, durability)
        if durability == "full":  # a power cut takes names that were never synced, and the journal with them
            for folder in (self.path, self.path.parent, self.run_dir, self.run_dir.absolute().parent):
                sync_directory(folder)
        self._seal_bytes = seal_bytes
        self._sites: dict[str, SiteInfo] = {}
        self._coverage: list[Coverage] = []
        self._lost: dict[str, int] = {}
        self._changed = False  # sites, coverage or lost, since the last commit
        self._waiting: list[Row] = []
        self._waiting_bytes = 0
        self._journal_bytes = 0
        self._last_id = self._sealed_id = 0
        self._flushed_at = time.monotonic()
        self._failing = False

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
        with self._lock:
            self._sites, self._changed = dict(sites), True

    def set_coverage(self, coverage: list[Coverage]) -> None:
        """Replace which sites were seen, and why one was not."""
        with self._lock:
            self._coverage, self._changed = list(coverage), True

    def set_settings(self, settings: dict[str, Any]) -> None:
        """Replace the settings: some are known only once the training runs."""
        with self._lock:
            self.meta, self._changed = replace(self.meta, settings=dict(settings)), True

    def add_lost(self, reason: str, count: int = 1) -> None:
        """Count what could not be recorded."""
        with self._lock:
            self._lost[reason] = self._lost.get(reason, 0) + count
            self._changed = True

    def _add(self, kind: int, payload: bytes) -> None:
        if os.getpid() != self._process:
            return  # a forked worker (a data loader's) shares this object, not the run
        with self._lock:
            if self._journal is None:
                raise ValueError(f"the run {str(self.run_dir)!r} is closed")
            if len(payload) > MAX_ENTRY_BYTES:
                raise SettingError(f"one record of {len(payload) >> 20} MiB is too large; record fewer samples")
            if (
                self._waiting_bytes + len(payload) > MAX_WAITING_BYTES + FLUSH_BYTES
                or len(self._waiting) >= MAX_WAITING_ENTRIES
            ):
                self.add_lost(DROPPED)
            else:
                self._last_id += 1
                self._waiting.append((self._last_id, kind, payload))
                self._waiting_bytes += len(payload)
            full = len(self._waiting) >= FLUSH_ENTRIES or self._waiting_bytes >= FLUSH_BYTES
            if time.monotonic() - self._flushed_at >= FLUSH_SECONDS or (full and not self._failing):
                self.flush()

    # --- making durable ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Commit everything added so far to the journal; seal a segment when the journal has grown large."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._journal is None:
                return
            # A disk that refuses is asked again every FLUSH_SECONDS, not at every entry.
            self._flushed_at, self._failing = time.monotonic(), True
            if self._waiting or self._changed:
                self._journal.append(self._waiting, self._info() if self._changed else {})
                self._journal_bytes += self._waiting_bytes
                self._waiting, self._waiting_bytes, self._changed = [], 0, False
            if self._journal_bytes >= self._seal_bytes:
                self._seal(closing=False)
            self._failing = False

    def close(self) -> None:
        """Seal what is left and remove the journal. On an error the journal stays, and the run stays readable."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._journal is None:
                return
            try:
                self.flush()
                self._seal(closing=True)
            except BaseException:
                self._count_waiting()
                self._release(remove=False)
                raise
            self._release(remove=True)

    def _count_waiting(self) -> None:
        """Say in the run what never reached it; that much may fit where the entries did not."""
        if self._journal is not None and self._waiting:
            self.add_lost(DROPPED, len(self._waiting))
            with contextlib.suppress(OSError, sqlite3.Error):
                self._journal.append([], self._info())

    def _release(self, *, remove: bool) -> None:
        assert self._journal is not None
        journal, self._journal = self._journal, None
        self._waiting, self._waiting_bytes = [], 0
        try:
            journal.close()
            if remove:
                remove_journal(journal.path)
                sync_directory(self.path)
        finally:
            self._held.close()

    def _info(self) -> dict[str, Any]:
        return {
            "metas": [asdict(self.meta)],
            "sites": [info.to_json() for info in self._sites.values()],
            "coverage": [entry.to_json() for entry in self._coverage],
            "lost": self._lost,
        }

    def _seal(self, *, closing: bool) -> None:
        assert self._journal is not None
        header = Header((self.meta,), self._sites, tuple(self._coverage), self._lost, closing=closing)
        # The journal is the one source: a row that never reached it is not sealed either.
        rows = [row for row in self._journal.rows() if row[0] > self._sealed_id]
        seal_rows(self._directory, rows, header, self._sealed_id)
        self._sealed_id = rows[-1][0] if rows else self._sealed_id
        self._journal_bytes = 0
        if not closing:
            self._journal.forget(self._sealed_id)


def seal_rows(directory: RankDirectory, rows: Sequence[Row], header: Header, sealed_id: int) -> list[Path]:
    """Write journal rows as segments, the last of which is the run's last if ``header.closing``."""
    entries = [codec.decode(kind, payload) for _, kind, payload in rows]
    gates = {site: info.gates for site, info in header.sites.items()}
    written = []
    for start, stop in blocks(entries, BLOCK_BYTES):
        last_id = rows[stop - 1][0] if rows else sealed_id
        block = Block(entries[start:stop], directory.attempt, directory.rank, gates)
        last = header.closing and stop == len(entries)
        described = replace(header, first_id=sealed_id + 1, last_id=last_id, closing=last)
        # A training waits for a segment sealed on the way; `pack` compresses those too.
        content = build([block], described, compress=header.closing)
        written.append(directory.next_segment())
        write_segment(written[-1], content)
        sealed_id = last_id
    return written


# --- whose directory -------------------------------------------------------------------------------------------------


def _begin(run_dir: Path, restart: bool, rank: int, world_size: int) -> RankDirectory:
    """Create this rank's directory, exclusively."""
    shared = world_size > 1
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError:
        if not run_dir.is_dir():
            raise RunExistsError(f"{str(run_dir)!r} is a file; give the name of a new run directory.") from None
        if not restart and not shared:
            raise _exists(run_dir) from None
    latest = max(attempts(run_dir), default=0)
    joins = shared and latest > 0 and _may_join(run_dir / f"attempt-{latest}", rank, world_size)
    attempt = latest if joins else latest + 1
    if attempt > 1 and not restart:
        raise _exists(run_dir)
    path = run_dir / f"attempt-{attempt}" / f"rank-{rank}"
    try:
        path.parent.mkdir(exist_ok=shared)
        if shared:
            (path.parent / f"world-{world_size}").touch()
        path.mkdir()
    except FileExistsError:
        raise _exists(run_dir) from None
    return RankDirectory(attempt, rank, path)


def _may_join(attempt: Path, rank: int, world_size: int) -> bool:
    """Whether an attempt was begun by the other ranks of this very start."""
    worlds = [entry.name for entry in attempt.glob("world-*")]
    return not (attempt / f"rank-{rank}").exists() and worlds in ([], [f"world-{world_size}"])


def _exists(run_dir: Path) -> RunExistsError:
    return RunExistsError(
        f"the run {str(run_dir)!r} exists already and is never overwritten. "
        "Choose another directory, remove it, or pass restart=True to add a new attempt to it."
    )
