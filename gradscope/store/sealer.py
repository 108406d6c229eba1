"""The process that seals beside a training.

A thread would do for a disk that waits, but h5py holds the interpreter's lock, and torch asks for that lock after every
operation: while 200 MB are sealed in a thread, a step of 3 ms waits up to 33 ms; with a process up to 9, for what the
commits take. Starting one takes .3 ms. ``scripts/bench --holding`` measures it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from gradscope.errors import RunError
from gradscope.store.layout import RankDirectory
from gradscope.store.locking import DirectoryLock
from gradscope.store.sealing import sealed_before
from gradscope.store.segment import sync_directory

#: A process that fails this often is not started again: the journal grows, and is sealed at the end.
MAX_FAILURES = 2

# It gives way to the training. Here and not in `main`, whose caller would keep the lower priority.
_CODE = """
import os, sys
os.nice(10)
sys.path[:] = sys.argv[6:]
from gradscope.store.sealing import main
main(*sys.argv[1:6])
"""


class Sealer:
    """Starts the process and learns how it ended; one at a time.

    Parameters
    ----------
    directory : RankDirectory
    held : DirectoryLock
        Handed on, so that nobody repairs the directory while the process writes, even if the training is dead.
    """

    def __init__(self, directory: RankDirectory, held: DirectoryLock) -> None:
        self._directory, self._held = directory, held
        # As they are now: a script may change its directory.
        self._search = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        self._process: subprocess.Popen[bytes] | None = None
        # A frozen program is no Python that could be started.
        self._failures = 0 if sys.executable and not getattr(sys, "frozen", False) else MAX_FAILURES

    @property
    def running(self) -> bool:
        """Whether a process was started whose end is not known yet."""
        return self._process is not None

    def start(self, after: int, upto: int) -> None:
        """Begin to seal the rows beyond ``after`` up to ``upto``, where that is possible."""
        if self._process is not None or self._failures >= MAX_FAILURES:
            return
        who = (self._directory.path, self._directory.attempt, self._directory.rank, after, upto)
        try:
            self._process = subprocess.Popen(
                # -I: nothing in the current directory or the environment stands in for a module.
                [sys.executable, "-I", "-c", _CODE, *map(str, who), *self._search],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=self._held.descriptors,
                start_new_session=True,  # Ctrl-C ends the training, not what it has begun to seal
            )
        except (OSError, RuntimeError, ValueError):  # RuntimeError: the interpreter is ending
            self._failures += 1

    def ended(self, *, wait: bool = False) -> int | None:
        """Return the last row that was sealed, once; None while the process runs, or where nothing is sealed."""
        if self._process is None or (not wait and self._process.poll() is None):
            return None
        process, self._process = self._process, None
        # Not by its exit code: where SIGCHLD is ignored there is none.
        told = process.communicate()[0].decode("ascii", "replace").partition("sealed ")[2]
        self._failures = 0 if told else self._failures + 1
        return int(told) if told else self._left()

    def _left(self) -> int | None:
        """Return the last row that a process which died has sealed all the same; what it left unfinished is removed."""
        try:
            for left in self._directory.left_behind():
                left.unlink()
            sync_directory(self._directory.path)  # before rows are dropped for a segment that it may not have synced
            return sealed_before(self._directory) or None
        except (OSError, RunError):
            return None
