"""Which paths of a run may be touched: ordinary files and directories inside it, never what a link leads to."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from gradscope.errors import RunError, RunNotFoundError, UnsafeFileError

#: A file that takes far less room than its size is made of holes, which cost time and no disk.
_MOST_HOLES = 8
_FREE_BYTES = 1 << 20
_HDF5 = b"\x89HDF\r\n\x1a\n"
# Pieces of a file that are looked at for holes between them.
_MOST_EXTENTS = 10_000
#: Entries of one directory that are looked at.
MAX_ENTRIES = 100_000


def present(path: Path) -> bool:
    """Whether there is anything of this name, a link that leads nowhere included."""
    return os.path.lexists(path)


def check_file(path: Path) -> os.stat_result:
    """Refuse what is not an ordinary file, before it is opened; a link is not followed.

    Raises
    ------
    RunNotFoundError, UnsafeFileError
    """
    return _checked(path, _status(path))


def is_file(path: Path) -> bool:
    """Whether it is an ordinary file, and no link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether it is a directory of the run itself.

    Raises
    ------
    RunNotFoundError
    UnsafeFileError
        It is a link.
    """
    mode = _status(path).st_mode
    if stat.S_ISLNK(mode):
        raise _linked(path, "directory")
    return stat.S_ISDIR(mode)


def open_file(path: Path) -> BinaryIO:
    """Open an ordinary file for reading, in a way that neither follows a link nor waits for a pipe.

    Raises
    ------
    RunNotFoundError, UnsafeFileError
    OSError
        The disk refuses.
    """
    check_file(path)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _checked(path, os.fstat(descriptor))  # what was put there between the two looks
        return open(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def begins_as_hdf5(path: Path) -> bool:
    """Whether a file has HDF5's signature where all of gradscope's have it; True where it cannot be read."""
    try:
        with open_file(path) as raw:
            return raw.read(len(_HDF5)) == _HDF5
    except OSError:
        return True


def entries(path: Path) -> list[str]:
    """Names in a directory, sorted.

    Raises
    ------
    UnsafeFileError
        There are more than a run has.
    """
    found = []
    with os.scandir(path) as listed:
        for entry in listed:
            found.append(entry.name)
            if len(found) > MAX_ENTRIES:
                raise UnsafeFileError(f"the directory {str(path)!r} has more than {MAX_ENTRIES} entries; not read.")
    return sorted(found)


def stored_bytes(path: Path) -> int:
    """Size of an ordinary file; 0 where there is none."""
    try:
        return check_file(path).st_size
    except RunError:
        return 0


def _status(path: Path) -> os.stat_result:
    try:
        return os.lstat(path)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RunNotFoundError(f"cannot open {str(path)!r}: {said}") from error


def _checked(path: Path, status: os.stat_result) -> os.stat_result:
    if stat.S_ISLNK(status.st_mode):
        raise _linked(path, "file")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(f"{str(path)!r} is not an ordinary file; it was not opened.")
    if _seems_hollow(status) and status.st_size > _FREE_BYTES + _MOST_HOLES * _data_bytes(path):
        raise UnsafeFileError(f"{str(path)!r} consists of holes; it was not opened.")
    return status


def _seems_hollow(status: os.stat_result) -> bool:
    blocks = getattr(status, "st_blocks", None)
    return blocks is not None and status.st_size > _FREE_BYTES + _MOST_HOLES * 512 * blocks


def _data_bytes(path: Path) -> int:
    """How many bytes of an ordinary file are no hole, as far as its first extents tell.

    Blocks are not enough: a file system may count none before it has written them (ZFS), or fewer where it compresses.
    """
    if not hasattr(os, "SEEK_DATA"):
        return os.lstat(path).st_size
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = place = 0
        for _ in range(_MOST_EXTENTS):
            begin = os.lseek(descriptor, place, os.SEEK_DATA)
            place = os.lseek(descriptor, begin, os.SEEK_HOLE)
            found += place - begin
    except OSError:  # no data beyond
        pass
    finally:
        os.close(descriptor)
    return found


def _linked(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{str(path)!r} is a link, and links inside a run are not followed; it was not opened. "
        f"Replace it by the {what} if the run is your own."
    )
