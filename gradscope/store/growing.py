"""Following a run while it grows: what came since the last look, and until when to look."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gradscope.store import guard
from gradscope.store.budget import Budget
from gradscope.store.header import merge
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.locking import is_being_written
from gradscope.store.part import Header, Part
from gradscope.store.paths import present
from gradscope.store.run import Run, journal_parts, open_run
from gradscope.store.sealed import SealedPart

#: A run with an open end that nobody is seen to write is given up when it has not changed for so many seconds: where a
#: file system has no locks, or another machine writes, that is all there is to go by.
PATIENCE = 20.0


@dataclass
class _Rank:
    """What has been seen of one process's records."""

    segments: set[str] = field(default_factory=set)
    last_id: int = 0


class Growing:
    """A run that is looked at again and again; what has been seen is not read a second time.

    Parameters
    ----------
    path : Path
        A run directory, or a packed file.

    Attributes
    ----------
    repeats : bool
        Whether what came last holds entries that had come before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repeats = False
        self._seen: dict[Path, _Rank] = {}

    def news(self) -> Run:
        """The run, with what came since the last call; everything at the first.

        Entries that were seen in a journal come again with the segment that they were sealed in, if others in it are
        new.

        Raises
        ------
        As :func:`open_run` does.
        """
        self.repeats = False
        if not self.path.is_dir():
            run = open_run(self.path)
            parts = () if self.path in self._seen else run.parts
            self._seen[self.path] = _Rank()
            return Run(self.path, run.header, parts, sealed=True)
        ranks = rank_directories(self.path)
        budget = Budget.of(file for rank in ranks for file in rank.files())
        found = [self._of_rank(rank, budget) for rank in ranks]
        header = merge(header for header, _ in found)
        return Run(self.path, header, [part for _, parts in found for part in parts], sealed=False)

    def _of_rank(self, rank: RankDirectory, budget: Budget) -> tuple[Header, list[Part]]:
        seen = self._seen.setdefault(rank.path, _Rank())
        before = seen.last_id
        content = None
        if present(rank.journal):
            try:
                with _not_stopped():
                    content = guard.load_journal(rank.journal, budget, before)
            except FileNotFoundError:
                content = None
        sealed: list[Part] = []
        header = Header()
        # After the journal: what the writer seals meanwhile is seen twice, not missed.
        for segment in rank.segments():
            if segment.name not in seen.segments:
                part = SealedPart(segment, budget)
                seen.segments.add(segment.name)
                header = part.header
                seen.last_id = max(seen.last_id, header.last_id)
                if header.last_id > before:
                    sealed.append(part)
                    self.repeats |= header.first_id <= before
        if content is None:
            return header, sealed
        rows = [row for row in content.rows if row[0] > seen.last_id]
        seen.last_id = rows[-1][0] if rows else seen.last_id
        return content.header, [*sealed, *journal_parts(rank, rows, content.header, budget)]


@contextmanager
def _not_stopped() -> Iterator[None]:
    """Ctrl-Z waits: a reader that is stopped in the middle of a journal holds up whoever writes it."""
    if not hasattr(signal, "SIGTSTP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGTSTP, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
        if asked:
            os.kill(os.getpid(), signal.SIGTSTP)


def changes(paths: Sequence[Path], interval: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[bool]:
    """Yield at once, then whenever any of these runs has changed, until nobody writes any of them.

    Parameters
    ----------
    paths : sequence of Path
    interval : float
        Seconds between two looks. Looking takes the names, sizes and times of files, and opens none.
    sleep : callable

    Yields
    ------
    bool
        Whether it is the last time.
    """
    known: tuple[object, ...] | None = None
    changed_at = time.monotonic()
    while True:
        written, open_ended = _is_written(paths)
        now = _signature(paths)
        if now != known:
            changed_at = time.monotonic()
        last = not written and (not open_ended or time.monotonic() - changed_at >= PATIENCE)
        if now != known or last:
            known = now
            yield last
        if last:
            return
        sleep(interval)


def _ranks(path: Path) -> list[RankDirectory]:
    return rank_directories(path) if path.is_dir() else []


def _is_written(paths: Sequence[Path]) -> tuple[bool, bool]:
    """Whether a living process writes any of them, and whether any has an open end."""
    ranks = [rank for path in paths for rank in _ranks(path)]
    return any(is_being_written(rank.path) for rank in ranks), any(present(rank.journal) for rank in ranks)


def _signature(paths: Sequence[Path]) -> tuple[object, ...]:
    found: list[object] = []
    for rank in (rank for path in paths for rank in _ranks(path)):
        try:
            status = os.lstat(rank.journal)
            journal: object = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            journal = None
        found.append((rank.path, journal, tuple(segment.name for segment in rank.segments())))
    return tuple(found)
