"""A file that never refuses HDF5 anything."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO


class Steady(io.RawIOBase):
    """A file for h5py to write to, which keeps what the disk refuses in memory.

    HDF5 does not survive a write that fails: it can neither close the file nor forget it, and takes the interpreter
    down at exit. So it is not told. Whoever writes calls `check` every few MiB and stops there; what HDF5 still
    writes, to close the file, is its cache.

    Parameters
    ----------
    file : BinaryIO
        Unbuffered, open to be read and written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = self._size = 0
        self._refused: list[tuple[int, bytes]] = []
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what the disk has refused.

        Raises
        ------
        OSError
        """
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        if self._error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self._error = error
        return self._size

    def write(self, data: Any) -> int:
        given = memoryview(data).cast("B")
        at, end = self._position, self._position + len(given)
        if self._error is None:
            try:
                self._file.seek(at)
                while at < end:  # a full disk may take a part
                    at += self._file.write(given[at - end :]) or 0
            except OSError as error:
                self._error = error
        if self._error is not None:
            self._refused.append((self._position, bytes(given)))
        self._position, self._size = end, max(self._size, end)
        return len(given)

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        start, size = self._position, max(0, min(len(wanted), self._size - self._position))
        self._file.seek(start)
        found = self._file.read(size)
        wanted[: len(found)] = found
        wanted[len(found) : size] = bytes(size - len(found))
        for at, data in self._refused:
            low, high = max(at, start), min(at + len(data), start + size)
            if low < high:
                wanted[low - start : high - start] = data[low - at : high - at]
        self._position += size
        return size
