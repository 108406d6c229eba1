"""What is done to the files under a directory, operation by operation, and the files that any part of it leaves."""

from __future__ import annotations

import builtins
import errno
import io
import os
import pathlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.torture import vfs

#: A write may end early at the border of a page of the system's.
PAGE = 4096
#: A disk writes one of these whole.
SECTOR = 512


@dataclass(frozen=True)
class Op:
    """One operation; ``kind`` is ``create``, ``write``, ``truncate``, ``sync`` (of a file or a directory), ``rename``,
    ``link``, ``unlink``, ``mkdir``, ``rmdir``, or ``mark``: a note of whoever is watched.
    """

    kind: str
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    #: Of the system's clock, which processes share.
    when: int = 0
    note: Any = None


def never(_op: Op) -> int:
    return 0


class FileTrace:
    """Watches what this process changes under ``root``, through SQLite and through Python.

    Parameters
    ----------
    root : Path
    refuse : callable
        Takes what is about to happen, and returns the errno to refuse it with, or 0. It is asked about ``open`` and
        ``read`` too, which are no changes.
    """

    def __init__(self, root: Path, refuse: Callable[[Op], int] = never) -> None:
        self.ops: list[Op] = []
        self._root = os.path.abspath(root)
        self._refuse = refuse
        self._names: dict[int, str] = {}
        self._patches = ExitStack()

    def __enter__(self) -> FileTrace:
        os_functions = ("open", "close", "fsync", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")
        made = {name: getattr(self, f"_{name}")(getattr(os, name)) for name in os_functions}
        opened = self._open_file(builtins.open)
        for name, function in made.items():
            self._patches.enter_context(mock.patch.object(os, name, function))
        self._patches.enter_context(mock.patch.object(builtins, "open", opened))
        self._patches.enter_context(mock.patch.object(io, "open", opened))
        if held := getattr(pathlib, "_NormalAccessor", None):  # of Python 3.10, which took them at its import
            for name in made.keys() & vars(held).keys():
                function = opened if name == "open" else made[name]
                self._patches.enter_context(mock.patch.object(held, name, staticmethod(function)))
        self._patches.enter_context(vfs.watched(self._told_by_sqlite))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def mark(self, note: Any) -> None:
        """Note something between the operations."""
        self.ops.append(Op("mark", note=note, when=time.monotonic_ns()))

    # -- what happens -----------------------------------------------------------------------------------------

    def tell(self, kind: str, path: Any, target: Any = "", offset: int = 0, data: bytes = b"") -> int:
        """Note an operation; returns the errno it is refused with."""
        if not self._inside(path):
            return 0
        path, target = os.path.abspath(os.fspath(path)), target and os.path.abspath(os.fspath(target))
        op = Op(kind, path, target, offset, data, time.monotonic_ns())
        if number := self._refuse(op):
            return number
        if kind not in {"open", "read"}:
            self.ops.append(op)
        return 0

    def _inside(self, path: Any) -> bool:
        return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(self._root)

    def _told_by_sqlite(self, kind: str, path: str, offset: int, data: bytes) -> int:
        return self.tell(kind, path, "", offset, data)

    def _must(self, kind: str, path: Any, target: Any = "", offset: int = 0, data: bytes = b"") -> None:
        if number := self.tell(kind, path, target, offset, data):
            raise OSError(number, os.strerror(number), os.fspath(path))

    def _open(self, real: Any) -> Any:
        def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            self._begin(path, bool(flags & os.O_CREAT), bool(flags & os.O_TRUNC))
            descriptor: int = real(path, flags, *arguments, **options)
            self._names[descriptor] = os.path.abspath(os.fspath(path))
            return descriptor

        return opened

    def _begin(self, path: Any, create: bool, truncate: bool) -> None:
        there = os.path.lexists(path)
        self._must("create" if create and not there else "open", path)
        if truncate and there:
            self._must("truncate", path)

    def _close(self, real: Any) -> Any:
        def closed(descriptor: int) -> None:
            self._names.pop(descriptor, None)
            real(descriptor)

        return closed

    def _fsync(self, real: Any) -> Any:
        def synced(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            if descriptor in self._names:
                self._must("sync", self._names[descriptor])
            real(descriptor)

        return synced

    def _onto(self, kind: str, real: Any) -> Any:
        def moved(source: Any, target: Any, **options: Any) -> None:
            self._must(kind, source, target)
            real(source, target, **options)

        return moved

    def _at(self, kind: str, real: Any) -> Any:
        def changed(path: Any, *arguments: Any, **options: Any) -> None:
            if not self._inside(path) or options.get("dir_fd") is not None:
                real(path, *arguments, **options)
                return
            if kind == "mkdir" and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
            if kind != "mkdir" and not os.path.lexists(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            if kind == "rmdir" and os.listdir(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(path))
            self._must(kind, path)
            real(path, *arguments, **options)

        return changed

    def _replace(self, real: Any) -> Any:
        return self._onto("rename", real)

    def _rename(self, real: Any) -> Any:
        return self._onto("rename", real)

    def _link(self, real: Any) -> Any:
        return self._onto("link", real)

    def _unlink(self, real: Any) -> Any:
        return self._at("unlink", real)

    def _remove(self, real: Any) -> Any:
        return self._at("unlink", real)

    def _mkdir(self, real: Any) -> Any:
        return self._at("mkdir", real)

    def _rmdir(self, real: Any) -> Any:
        return self._at("rmdir", real)

    def _open_file(self, real: Any) -> Any:
        trace = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                piece = bytes(data)
                trace._must("write", self.name, "", self.tell(), piece)
                return super().write(piece)

            def truncate(self, size: int | None = None) -> int:
                size = self.tell() if size is None else size
                trace._must("truncate", self.name, "", size)
                return super().truncate(size)

            def close(self) -> None:
                if not self.closed:
                    trace._names.pop(self.fileno(), None)
                super().close()

        def opened(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            if not trace._inside(file):
                return real(file, mode, buffering, *arguments, **options)
            if not set(mode) & set("wxa"):
                trace._must("open", file)
                return real(file, mode, buffering, *arguments, **options)
            if "b" not in mode or "a" in mode or ("+" in mode and buffering):
                raise NotImplementedError(f"a file opened for {mode!r} is not watched")
            trace._begin(file, True, "w" in mode)
            raw = Raw(os.fspath(file), mode.replace("b", ""))
            trace._names[raw.fileno()] = os.path.abspath(os.fspath(file))
            return io.BufferedWriter(raw) if buffering else raw

        return opened


# --- what is left ----------------------------------------------------------------------------------------------------


@dataclass
class Files:
    """Files and directories as operations leave them: names of numbered files, None for a directory."""

    names: dict[str, int | None] = field(default_factory=dict)
    contents: list[bytearray] = field(default_factory=list)

    def copy(self) -> Files:
        """Return the same files, to be changed apart."""
        return Files(dict(self.names), [bytearray(content) for content in self.contents])

    def apply(self, op: Op, upto: int | None = None) -> None:
        """Do one operation; of a write only the first ``upto`` bytes."""
        if op.kind == "create":
            self.names[op.path] = len(self.contents)
            self.contents.append(bytearray())
        elif op.kind == "mkdir":
            self.names[op.path] = None
        elif op.kind in {"unlink", "rmdir"}:
            del self.names[op.path]
        elif op.kind == "rename":
            self.names[op.target] = self.names.pop(op.path)
        elif op.kind == "link":
            self.names[op.target] = self.names[op.path]
        elif op.kind == "write":
            write(self.file(op.path), op.offset, op.data[:upto])
        elif op.kind == "truncate":
            resize(self.file(op.path), op.offset)

    def file(self, path: str) -> bytearray:
        """Content of a file."""
        number = self.names[path]
        assert number is not None, path
        return self.contents[number]

    def lay_out(self, root: Path, at: Path) -> None:
        """Write everything that is under ``root`` under ``at``."""
        for name in sorted(self.names):  # a directory before what is in it
            number, path = self.names[name], at / os.path.relpath(name, root)
            if not path.parent.is_dir():
                continue  # nothing leads there
            if number is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(self.contents[number])

    def under(self, root: Path) -> dict[str, bytes | None]:
        """Content of every file, None for a directory, by its path below ``root``."""
        found = self.names.items()
        return {os.path.relpath(n, root): None if f is None else bytes(self.contents[f]) for n, f in found}


def write(content: bytearray, offset: int, data: bytes) -> None:
    """Write into a file's content, which grows by zeros up to there."""
    resize(content, max(len(content), offset + len(data)))
    content[offset : offset + len(data)] = data


def resize(content: bytearray, size: int) -> None:
    """Cut a file's content, or fill it with zeros."""
    del content[size:]
    content.extend(bytes(size - len(content)))


def lying_under(root: Path) -> dict[str, bytes | None]:
    """What is really there, as `Files.under` says it."""
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}
