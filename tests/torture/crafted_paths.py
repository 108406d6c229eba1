"""Links, pipes, devices, sockets and directories where a run has files, and the other way round."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.torture.strange import JOURNAL, SEGMENT, Make


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_outside(path: Path, outside: Path) -> None:
    same = outside / path.relative_to(path.parents[2]) if path.suffix else outside
    path.symlink_to(same if same.exists() else outside / SEGMENT)


def _link_inside(path: Path, outside: Path) -> None:
    moved = path.with_name("moved")
    shutil.copy(outside / SEGMENT, moved)
    path.symlink_to(moved)


def _socket(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path, outside: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


INSTEAD = {
    "a link outside": _link_outside,
    "a link inside": _link_inside,
    "a link to nowhere": lambda path, outside: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": lambda path, outside: path.symlink_to(path),
    "a pipe": lambda path, outside: os.mkfifo(path),
    "a device": lambda path, outside: path.symlink_to("/dev/zero"),
    "a directory": lambda path, outside: path.mkdir(),
    "a socket": _socket,
    "holes": _sparse,
    "nothing in it": lambda path, outside: path.write_bytes(b""),
}
#: Of a file that a run also reads without.
BESIDE = ("a link outside", "a pipe", "a device", "a directory")
FILES = {
    "the segment": (SEGMENT, "sealed"),
    "its checksum": (f"{SEGMENT}.sha256", "sealed"),
    "the journal": (JOURNAL, "open"),
    "the rollback journal": (f"{JOURNAL}-journal", "open"),
    "a write-ahead log": (f"{JOURNAL}-wal", "open"),
    "its index": (f"{JOURNAL}-shm", "open"),
    "a temporary file": ("attempt-1/rank-0/.segment-00002.h5.9.tmp", "sealed"),
}
DIRECTORIES = {
    "a link outside": lambda path, outside: path.symlink_to(outside / "attempt-1" / path.name.replace("attempt-1", "")),
    "a link to nowhere": lambda path, outside: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": lambda path, outside: path.symlink_to(path),
    "a pipe": lambda path, outside: os.mkfifo(path),
    "a file": lambda path, outside: path.write_bytes(b"x"),
    "a device": lambda path, outside: path.symlink_to("/dev/zero"),
}


def cases() -> Iterator[tuple[str, Make, str]]:
    for where, (file, base) in FILES.items():
        kinds = INSTEAD if where in ("the segment", "the journal", "the rollback journal") else BESIDE
        for what in kinds:
            put = INSTEAD[what]
            yield f"{what} for {where}", _instead(file, put), base
    for where in ("attempt-1", "attempt-1/rank-0", "attempt-2", "attempt-1/rank-1"):
        for what, put in DIRECTORIES.items():
            yield f"{what} for {where}", _instead(where, put), "sealed"
    yield "the run a pipe", lambda run, outside: _whole(run, lambda path: os.mkfifo(path)), "sealed"
    yield "the run a device", lambda run, outside: Path("/dev/zero"), "sealed"
    yield (
        "the run itself within it",
        lambda run, outside: (run / "attempt-1/rank-0/attempt-1").symlink_to(run),
        "sealed",
    )
    yield "ten thousand other files", _crowd, "sealed"
    yield "two names of one segment", _two_names, "sealed"


def _instead(where: str, put: object) -> Make:
    def make(run: Path, outside: Path) -> None:
        _clear(run / where)
        put(run / where, outside)  # type: ignore[operator]

    return make


def _whole(run: Path, put: object) -> Path:
    path = run.with_name("other")
    put(path)  # type: ignore[operator]
    return path


def _crowd(run: Path, outside: Path) -> None:
    for number in range(10_000):
        (run / f"attempt-1/rank-0/{number}").touch()


def _two_names(run: Path, outside: Path) -> None:
    os.link(run / SEGMENT, (run / SEGMENT).with_name("segment-00002.h5"))
    shutil.copy(run / f"{SEGMENT}.sha256", run / "attempt-1/rank-0/segment-00002.h5.sha256")
