"""A process that dies between any two of its operations on files, or in the middle of a write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.torture import recorded
from tests.torture.filetrace import PAGE, SECTOR, Files, Op
from tests.torture.outcome import Outcome
from tests.torture.recorded import SEALED, SEALING, Notes, Recorded

PROMISE = "a crash anywhere in writing, sealing, packing or repairing: nothing flushed lost, nothing unreadable"

#: At every such operation a process that seals is left alone.
_ALONE = 3


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Try every state, or about ``count``, evenly spread."""
    outcome = Outcome(PROMISE, 0)
    everything = [(done, state) for done in _recorded(scratch) for state in states(done)]
    for done, (where, files, notes) in everything[:: max(1, len(everything) // (count or len(everything)))]:
        outcome.tries += 1
        if wrong := look(done, files, notes, scratch / "state"):
            outcome.fell_short.append(f"{where}: {wrong}")
    return outcome


def _recorded(root: Path) -> Iterator[Recorded]:
    for make in (recorded.writing, recorded.large, recorded.restarting, recorded.packing):
        yield make(recorded.below(root, make.__name__))
    yield from recorded.repairs(root)


def look(done: Recorded, files: Files, notes: Notes, at: Path) -> str | None:
    """How files fall short."""
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    files.lay_out(done.root, at)
    with mock.patch("os.fsync"):  # no power is cut here
        return done.look(at, notes)


def states(done: Recorded) -> Iterator[tuple[str, Files, Notes]]:
    """Every state that the death of the process may leave, and what had been promised by then."""
    files = done.before.copy()
    yield f"{done.name}, before it", files.copy(), Notes()
    for at, op in enumerate(done.ops):
        notes = Notes.of(done.ops[: at + 1])
        where = f"{done.name}, operation {at} ({op.kind} {os.path.basename(op.path)})"
        if op.kind == "write" and len(op.data) > SECTOR:
            torn = files.copy()
            torn.apply(op, _half(len(op.data)))
            yield f"{where} half done", torn, notes
        files.apply(op)
        if op.kind not in {"mark", "sync"}:  # those leave the files as they are
            yield f"{where} done", files.copy(), notes
        if at % _ALONE == 0 and at not in done.beside and _seals(done.ops[: at + 1]):
            yield from _sealing_alone(done, at, files.copy(), where, notes)


def _half(size: int) -> int:
    """A write ends early at the border of a page, or of a sector where it is smaller."""
    unit = PAGE if size >= 2 * PAGE else SECTOR
    return size // 2 // unit * unit or unit


def _seals(ops: list[Op]) -> bool:
    """Whether a process that seals is at work."""
    marks = [op.note[0] for op in ops if op.kind == "mark"]
    return marks.count(SEALING) > marks.count(SEALED)


def _sealing_alone(
    done: Recorded, at: int, files: Files, where: str, notes: Notes
) -> Iterator[tuple[str, Files, Notes]]:
    """The process that seals outlives the one that has died, and may come to its end."""
    for later in sorted(number for number in done.beside if number > at):
        op = done.ops[later]
        if op.kind == "mark":
            return
        files.apply(op)
        if op.kind != "sync":
            yield f"{where} done, then sealing as far as operation {later}", files.copy(), notes
