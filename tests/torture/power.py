"""A power cut: what was written and not synced is lost, kept or torn, in any mixture."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from tests.torture import recorded
from tests.torture.crashes import look
from tests.torture.filetrace import SECTOR, Files, Op, resize, write
from tests.torture.outcome import Outcome
from tests.torture.recorded import Notes, Recorded

PROMISE = "a power cut at any moment: nothing flushed lost, nothing unreadable"


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Cut the power several times at every operation, or ``count`` times in all."""
    outcome = Outcome(PROMISE, 0)
    chance = random.Random(0)
    everything = [(done, cut) for done, cuts in _recorded(scratch) for cut in moments(done, cuts)]
    for done, (at, disk, notes) in everything[:: max(1, len(everything) // (count or len(everything)))]:
        outcome.tries += 1
        seed = chance.randrange(1 << 32)
        if wrong := look(done, disk.cut(random.Random(seed)), notes, scratch / "state"):
            op = done.ops[at]
            where = (
                f"{done.name}, power cut after operation {at} ({op.kind} {os.path.basename(op.path)}), chance {seed}"
            )
            outcome.fell_short.append(f"{where}: {wrong}")
    return outcome


def _recorded(root: Path) -> Iterator[tuple[Recorded, int]]:
    yield recorded.writing(recorded.below(root, "writing"), "full"), 1
    yield recorded.large(recorded.below(root, "large"), "full"), 3
    with mock.patch("gradscope.store.worker.FLUSH_SECONDS", 0.0):  # as if the run were old enough to be worth a sync
        yield recorded.large(recorded.below(root, "default"), "default"), 1
    yield recorded.packing(recorded.below(root, "packing")), 1
    for done in recorded.repairs(root):
        yield done, 1


def moments(done: Recorded, cuts: int) -> Iterator[tuple[int, Disk, Notes]]:
    """The disk after every operation, each several times."""
    disk = Disk(done.before)
    for at, op in enumerate(done.ops):
        disk.apply(op)
        notes = Notes.of(done.ops[: at + 1])
        if op.kind != "mark":
            for _ in range(cuts):
                yield at, disk.copy(), notes


@dataclass
class Disk:
    """What lies on a disk for sure, and what was done since.

    Attributes
    ----------
    now : Files
        As programs see them.
    names : dict
        Of which the directory was synced.
    contents : list of bytes
        Of each file when it was last synced.
    unsynced : dict
        By the number of a file: writes and changes of size since.
    moves : list
        Changes of names since: directory, names that go, names that come.
    """

    now: Files
    names: dict[str, int | None] = field(default_factory=dict)
    contents: list[bytes] = field(default_factory=list)
    unsynced: dict[int, list[Op]] = field(default_factory=dict)
    moves: list[tuple[str, list[str], dict[str, int | None]]] = field(default_factory=list)

    def __init__(self, before: Files) -> None:
        self.now = before.copy()
        self.names, self.contents = dict(before.names), [bytes(content) for content in before.contents]
        self.unsynced, self.moves = {}, []

    def copy(self) -> Disk:
        """Return the same disk, to be changed apart."""
        copy = Disk.__new__(Disk)
        copy.now, copy.names, copy.contents = self.now.copy(), dict(self.names), list(self.contents)
        copy.unsynced = {number: list(ops) for number, ops in self.unsynced.items()}
        copy.moves = list(self.moves)
        return copy

    def apply(self, op: Op) -> None:
        """Do one operation."""
        number = self.now.names.get(op.path)
        self.now.apply(op)
        if op.kind == "sync" and number is None:
            self._sync_directory(op.path)
        elif op.kind == "sync" and number is not None:
            self.contents[number] = bytes(self.now.contents[number])
            self.unsynced.pop(number, None)
        elif op.kind in {"write", "truncate"} and number is not None:
            self.unsynced.setdefault(number, []).append(op)
        elif op.kind != "mark":
            if op.kind == "create":
                self.contents.append(b"")
            gone = [op.path] if op.kind in {"unlink", "rmdir", "rename"} else []
            comes = [name for name in (op.path, op.target) if name and name not in gone and op.kind not in {"unlink"}]
            self.moves.append((os.path.dirname(op.path), gone, {name: self.now.names[name] for name in comes}))

    def _sync_directory(self, path: str) -> None:
        for directory, gone, come in self.moves:
            if directory == path:
                _move(self.names, gone, come)
        self.moves = [move for move in self.moves if move[0] != path]

    def cut(self, chance: random.Random) -> Files:
        """One of the states that may be found when the power is back."""
        kept = Files(dict(self.names))
        # A file system that keeps a log keeps a beginning of it; another keeps anything.
        share, in_order = chance.choice((0.0, 0.3, 0.7, 1.0)), chance.random() < 0.5
        moves = self.moves[: chance.randint(0, len(self.moves))] if in_order else self.moves
        for _, gone, come in moves:
            if in_order or chance.random() < share:
                _move(kept.names, gone, come)
        kept.contents = [self._content(number, share, chance) for number in range(len(self.contents))]
        return kept

    def _content(self, number: int, share: float, chance: random.Random) -> bytearray:
        content = bytearray(self.contents[number])
        for op in self.unsynced.get(number, ()):
            if op.kind == "truncate":
                if chance.random() < share:
                    resize(content, op.offset)
                continue
            for start, stop in _sectors(op.offset, len(op.data)):
                if chance.random() < share:
                    if start > len(content):  # room that was taken and never filled
                        content.extend(chance.randbytes(start - len(content)))
                    write(content, start, op.data[start - op.offset : stop - op.offset])
        return content


def _move(names: dict[str, int | None], gone: list[str], come: dict[str, int | None]) -> None:
    for name in gone:
        names.pop(name, None)
    names.update(come)


def _sectors(offset: int, size: int) -> Iterator[tuple[int, int]]:
    start = offset
    while start < offset + size:
        stop = min(offset + size, (start // SECTOR + 1) * SECTOR)
        yield start, stop
        start = stop
