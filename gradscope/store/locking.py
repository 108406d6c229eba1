"""Which rank directories a living process writes to, so that nobody repairs them under its hands."""

from __future__ import annotations

import os
from pathlib import Path

from gradscope.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class DirectoryLock:
    """A lock on a directory, released by `close` or with the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What a process must inherit to hold the lock too."""
        return () if self._descriptor is None else (self._descriptor,)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_directory(path: Path) -> DirectoryLock:
    """Mark a directory, or a file, as being written. Where the file system has no locks, nothing is marked.

    Raises
    ------
    RunError
        The operating system has none: nothing is written, since nobody could tell that it is being written.
    """
    if fcntl is None:
        raise RunError(
            f"{str(path)!r} is not written: gradscope writes runs under Linux, macOS and WSL only, where a directory "
            "can be locked and synced. Record there; a finished run can be copied here and read."
        )
    return _lock(path) or DirectoryLock(None)


def share_directory(path: Path) -> DirectoryLock | None:
    """A lock on a directory that others may share; None where one process has it to itself."""
    return _lock(path, shared=True)


def is_being_written(path: Path) -> bool:
    """Whether a living process holds `lock_directory` on the directory."""
    lock = _lock(path)
    if lock is None:
        return True
    lock.close()
    return False


def _lock(path: Path, shared: bool = False) -> DirectoryLock | None:
    """The lock; None where another holds it."""
    if fcntl is None:
        return DirectoryLock(None)
    lock = DirectoryLock(None)  # before there is anything to be closed
    lock._descriptor = descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # no locks on this file system
        pass
    return lock
