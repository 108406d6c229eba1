"""The beginning of a run: whose directory it is, and what to do where the disk refuses it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from gradscope.errors import RunError, RunExistsError
from gradscope.store.layout import RankDirectory, attempts


def said(error: Exception) -> str:
    """What a disk's refusal means, and what to do about it."""
    if not isinstance(error, OSError | sqlite3.Error | RuntimeError | RunError):
        return f"{type(error).__name__}: {error}. Please report this: it is a fault of gradscope's own."
    code = getattr(error, "errno", None)
    text = (os.strerror(code) if code else str(error)).rstrip(".")
    if "unable to open" in text:  # SQLite does not say why
        text = _unopened(text)
    for wanted, remedy in _REMEDIES.items():
        if any(word in text.lower() for word in wanted):
            return f"{text}. {remedy}"
    return f"{text}. See that the disk can be written."


def _unopened(text: str) -> str:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return os.strerror(error.errno or 0)
    return text


_REMEDIES = {
    ("no space", "is full", "quota", "file too large"): "Make room there, or record fewer steps, samples or tensors.",
    ("locked",): "Another process has been reading it for long; end that one.",
    ("read-only", "readonly", "permission"): "Make it writable, and leave it in place while it is written.",
    ("no such file", "moved", "unable to open"): "Leave it in place while it is written.",
    ("not a directory",): "Something that leads there is a file, or has become one: record to another directory.",
    ("not a database", "no such table", "not an ordinary file"): (
        "Something else has written there. Leave it in place while it is written; record to another directory."
    ),
    ("too many open files",): "Raise the limit with `ulimit -n`.",
    ("i/o error", "input/output", "malformed", "corrupt"): (
        "Check the disk, its free space and quota; `gradscope repair` keeps what can be read."
    ),
}


class Beginning:
    """Creates a rank's directory, exclusively, and knows how that is undone.

    Attributes
    ----------
    made : list of Path
        Directories, in the order in which they were made.
    undo : ExitStack
        To be closed where what follows fails.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self.made = run_dir, list[Path]()
        self.undo = contextlib.ExitStack()

    def told(self, error: BaseException) -> RunError | None:
        """Return what is told of what has failed; None where it tells of itself."""
        if isinstance(error, OSError | sqlite3.Error | RuntimeError):  # RuntimeError: no more threads
            return RunError(f"cannot begin the run {str(self._run_dir)!r}: {said(error)}")
        return None

    def rank_directory(self, restart: bool, rank: int, world_size: int) -> RankDirectory:
        """Create it."""
        run_dir, shared = self._run_dir, world_size > 1
        if not self._make(run_dir):
            if not run_dir.is_dir():
                raise RunExistsError(f"{str(run_dir)!r} is a file; give the name of a new run directory.")
            if not restart and not shared:
                raise _exists(run_dir)
        latest = max(attempts(run_dir), default=0)
        joins = shared and latest > 0 and _may_join(run_dir / f"attempt-{latest}", rank, world_size)
        attempt = latest if joins else latest + 1
        if attempt > 1 and not restart:
            raise _exists(run_dir)
        path = run_dir / f"attempt-{attempt}" / f"rank-{rank}"
        if not self._make(path.parent) and not shared:
            raise _exists(run_dir)
        if shared:
            (path.parent / f"world-{world_size}").touch()
        if not self._make(path):
            raise _exists(run_dir)
        return RankDirectory(attempt, rank, path)

    def _make(self, path: Path) -> bool:
        """Create a directory and those above it; False where there is something of this name."""
        if not path.parent.exists():
            self._make(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        self.made.append(path)
        self.undo.callback(remove_empty, path)
        return True

    @property
    def named_in(self) -> set[Path]:
        """Every directory that has a new name in it: a power cut takes names that were never synced."""
        return {self.made[-1], *(path.parent for path in self.made)}


def remove_empty(directory: Path) -> None:
    """Remove a directory that nothing is in."""
    with contextlib.suppress(OSError):  # another rank is in it
        directory.rmdir()


def _may_join(attempt: Path, rank: int, world_size: int) -> bool:
    """Whether an attempt was begun by the other ranks of this very start."""
    worlds = [entry.name for entry in attempt.glob("world-*")]
    return not (attempt / f"rank-{rank}").exists() and worlds in ([], [f"world-{world_size}"])


def _exists(run_dir: Path) -> RunExistsError:
    return RunExistsError(
        f"the run {str(run_dir)!r} exists already and is never overwritten. "
        "Choose another directory, remove it, or pass restart=True to add a new attempt to it."
    )
