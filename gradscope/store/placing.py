"""Where an output goes: never over something, complete or not at all, and in sight while it is written.

What is being written stands beside its place as ``NAME.<random>.partial`` under a lock. A process that is killed leaves
it, and the next output to the same place removes it: nobody holds its lock.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gradscope.errors import RunExistsError, RunNotFoundError
from gradscope.store.locking import is_being_written, lock_directory
from gradscope.store.segment import sync_directory

PARTIAL = ".partial"


def refuse_existing(out: Path) -> None:
    """Refuse to write where something is, or where there is no directory to write in.

    Raises
    ------
    RunExistsError, RunNotFoundError
    """
    if out.exists() or out.is_symlink():
        raise _already_there(out)
    if not out.absolute().parent.is_dir():
        raise RunNotFoundError(f"there is no directory {str(out.parent)!r} to write {out.name!r} in.")


def _already_there(out: Path) -> RunExistsError:
    return RunExistsError(f"{str(out)!r} exists already and is never overwritten. Choose another name or remove it.")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to write in, which is at ``out`` once the block has ended well.

    Raises
    ------
    RunExistsError, RunNotFoundError
    """
    refuse_existing(out)
    _sweep(out)
    whole = Path(tempfile.mkdtemp(prefix=_beginning(out), suffix=PARTIAL, dir=out.absolute().parent))
    lock = lock_directory(whole)
    try:
        mask = os.umask(0)
        os.umask(mask)
        whole.chmod(0o777 & ~mask)  # mkdtemp keeps others out
        yield whole
        refuse_existing(out)
        os.rename(whole, out)
    finally:
        lock.close()
        shutil.rmtree(whole, ignore_errors=True)


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """An unbuffered file to write, which is at ``out``, on the disk, once the block has ended well.

    Raises
    ------
    RunExistsError, RunNotFoundError
    """
    refuse_existing(out)
    _sweep(out)
    whole = out.absolute().with_name(f"{_beginning(out)}{secrets.token_hex(4)}{PARTIAL}")
    with open(whole, "x+b", buffering=0) as file:
        lock = lock_directory(whole)
        try:
            yield file
            os.fsync(file.fileno())
            _name(whole, out)
        finally:
            lock.close()
            whole.unlink(missing_ok=True)
    sync_directory(whole.parent)


def _name(whole: Path, out: Path) -> None:
    try:
        os.link(whole, out)  # a rename would replace what another process wrote meanwhile
    except FileExistsError:
        raise _already_there(out) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        refuse_existing(out)  # a disk that has no second names
        os.rename(whole, out)


def _beginning(out: Path) -> str:
    """What the names of unfinished outputs begin with: a name has 255 bytes at most."""
    return os.fsencode(out.name)[:200].decode(errors="ignore") + "."


def _sweep(out: Path) -> None:
    """Remove what killed processes have left of earlier outputs to the same place."""
    for left in out.absolute().parent.glob(f"{glob.escape(_beginning(out))}*{PARTIAL}"):
        if left.is_symlink() or not (left.is_dir() or left.is_file()) or is_being_written(left):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
