"""A file layer under SQLite that is told of every change before it is made, and may refuse it.

SQLite reaches its files through a table of functions (https://www.sqlite.org/vfs.html). Here is one made of Python
functions around the system's own, put in its place while somebody watches; it needs the very library that Python's
sqlite3 uses, with its symbols visible.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, cast, sizeof
from typing import Any

#: (kind, path, offset, data) of what is about to happen -> an errno to refuse it with, or 0.
Told = Callable[[str, str, int, bytes], int]

_OK, _FULL, _CANTOPEN, _IOERR = 0, 13, 14, 10
#: SQLite's extended codes for what failed.
_FAILED = {"read": 1, "write": 3, "sync": 4, "truncate": 6, "unlink": 10}
_CREATE = 0x04
#: Journals: their first sync is one of their directory too, which SQLite does inside.
_SYNCS_DIRECTORY = 0x0800 | 0x4000 | 0x80000


class _Methods(Structure):
    _fields_ = (
        ("version", c_int),
        ("close", CFUNCTYPE(c_int, c_void_p)),
        ("read", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)),
        ("write", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)),
        ("truncate", CFUNCTYPE(c_int, c_void_p, c_int64)),
        ("sync", CFUNCTYPE(c_int, c_void_p, c_int)),
        ("size", CFUNCTYPE(c_int, c_void_p, c_void_p)),
        ("lock", CFUNCTYPE(c_int, c_void_p, c_int)),
        ("unlock", CFUNCTYPE(c_int, c_void_p, c_int)),
        ("reserved", CFUNCTYPE(c_int, c_void_p, c_void_p)),
        ("control", CFUNCTYPE(c_int, c_void_p, c_int, c_void_p)),
        ("sector", CFUNCTYPE(c_int, c_void_p)),
        ("device", CFUNCTYPE(c_int, c_void_p)),
    )


class _Vfs(Structure):
    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("longest", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)),
        ("delete", CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)),
        ("others", c_void_p * 14),
    )


#: Ours comes before the system's own in the memory of a file; a multiple of its alignment.
_OURS = 16


class _Watching:
    """The layer, made once: connections may outlive whoever watches."""

    def __init__(self) -> None:
        file = getattr(_sqlite3, "__file__", None)
        self.library = ctypes.CDLL(file)  # what it is linked to is found through it
        self.library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        self.library.sqlite3_vfs_register.argtypes = (c_void_p, c_int)
        self.system = self.library.sqlite3_vfs_find(None)
        self.told: Told | None = None
        # By the address of the file.
        self._paths: dict[int, str] = {}
        self._unsynced: set[int] = set()
        self.methods = _Methods(1, *(kind(self._guarded(name)) for name, kind in _Methods._fields_[1:]))
        self.vfs = _Vfs()
        ctypes.memmove(ctypes.byref(self.vfs), self.system, sizeof(_Vfs))
        self.vfs.next, self.vfs.name = None, b"watched"
        self.vfs.version = 1  # none of the functions that later versions add
        self.vfs.file_size = _OURS + self.system.contents.file_size
        fields = dict(_Vfs._fields_)
        self.vfs.open, self.vfs.delete = (
            fields["open"](self._guarded("open")),
            fields["delete"](self._guarded("delete")),
        )
        self.library.sqlite3_vfs_register(ctypes.byref(self.vfs), 0)

    def make_default(self, ours: bool) -> None:
        chosen = ctypes.byref(self.vfs) if ours else cast(self.system, c_void_p)
        self.library.sqlite3_vfs_register(chosen, 1)

    def _guarded(self, name: str) -> Callable[..., int]:
        """What fails in here is a failure of the disk for SQLite, and told; ctypes would go on as if all were well."""
        call = getattr(self, f"_{name}", None) or self._passed(name)

        def guarded(*arguments: Any) -> int:
            try:
                return call(*arguments)
            except BaseException:
                traceback.print_exc()
                return _IOERR

        return guarded

    def _passed(self, name: str) -> Callable[..., int]:
        return lambda file, *arguments: getattr(_methods(file + _OURS), name)(file + _OURS, *arguments)

    def _refused(self, kind: str, path: str, offset: int = 0, data: bytes = b"") -> int:
        number = self.told(kind, path, offset, data) if self.told and path else 0
        if not number:
            return _OK
        if number == errno.ENOSPC and kind in {"write", "sync"}:
            return _FULL
        return _IOERR | _FAILED[kind] << 8 if kind in _FAILED else _CANTOPEN

    def _open(self, _vfs: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""  # none: for SQLite alone, without a name
        creates = bool(path) and bool(flags & _CREATE) and not os.path.exists(path)
        cast(file, POINTER(c_void_p))[0] = None
        if code := self._refused("create" if creates else "open", path):
            return code
        code = self.system.contents.open(cast(self.system, c_void_p), name, file + _OURS, flags, out)
        if code == _OK:
            self._paths[file] = path
            self._unsynced.discard(file)
            if creates and flags & _SYNCS_DIRECTORY:
                self._unsynced.add(file)
            cast(file, POINTER(c_void_p))[0] = ctypes.addressof(self.methods)
        return code

    def _delete(self, _vfs: int, name: int, sync: int) -> int:
        path = os.fsdecode(ctypes.string_at(name))
        if os.path.exists(path) and (code := self._refused("unlink", path)):
            return code
        code = self.system.contents.delete(cast(self.system, c_void_p), name, sync)
        if sync and code == _OK and self.told:
            self.told("sync", os.path.dirname(path), 0, b"")
        return code

    def _close(self, file: int) -> int:
        self._paths.pop(file, None)
        return _methods(file + _OURS).close(file + _OURS)

    def _read(self, file: int, into: int, size: int, offset: int) -> int:
        if code := self._refused("read", self._paths[file]):
            return code
        return _methods(file + _OURS).read(file + _OURS, into, size, offset)

    def _write(self, file: int, data: int, size: int, offset: int) -> int:
        if code := self._refused("write", self._paths[file], offset, ctypes.string_at(data, size)):
            return code
        return _methods(file + _OURS).write(file + _OURS, data, size, offset)

    def _truncate(self, file: int, size: int) -> int:
        if code := self._refused("truncate", self._paths[file], size):
            return code
        return _methods(file + _OURS).truncate(file + _OURS, size)

    def _sync(self, file: int, flags: int) -> int:
        if code := self._refused("sync", self._paths[file]):
            return code
        code = _methods(file + _OURS).sync(file + _OURS, flags)
        if file in self._unsynced:
            self._unsynced.discard(file)
            self._refused("sync", os.path.dirname(self._paths[file]))
        return code


def _methods(file: int) -> _Methods:
    return cast(file, POINTER(POINTER(_Methods)))[0].contents


def available() -> bool:
    """Whether the SQLite of this Python can be reached."""
    return os.name == "posix" and _visible()


def _visible() -> bool:
    try:
        return hasattr(ctypes.CDLL(getattr(_sqlite3, "__file__", None)), "sqlite3_vfs_register")
    except OSError:
        return False


_watching: list[_Watching] = []


@contextmanager
def watched(told: Told) -> Iterator[None]:
    """Every SQLite file that is opened inside the block is watched."""
    if not _watching:
        _watching.append(_Watching())
    watching = _watching[0]
    watching.told = told
    watching.make_default(True)
    try:
        yield
    finally:
        watching.make_default(False)
        watching.told = None
