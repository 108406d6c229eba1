"""Runs that are written, packed and repaired under watch, to be interrupted afterwards wherever one likes."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from gradscope.errors import GradscopeError
from gradscope.schema import Coverage
from gradscope.store import RunWriter, open_run, pack, repair, sealer, validate
from tests.store.conftest import META, SITES, die, record, wait_until
from tests.torture.filetrace import Files, FileTrace, Op, lying_under
from tests.torture.wholeness import SITE, shortfall

#: Notes between operations.
FLUSHED, CLOSED, SEALING, SEALED = "flushed", "closed", "sealing", "sealed"

#: A sealing process that is watched too.
_WATCHED = """
import os, pickle, sys
sys.path[:] = sys.argv[6:]
from pathlib import Path
from gradscope.store.sealing import main
from tests.torture.filetrace import FileTrace
with FileTrace(Path({root!r})) as trace:
    main(*sys.argv[1:6])
    trace.mark(("sealed", 0))
Path({told!r}, str(os.getpid())).write_bytes(pickle.dumps(trace.ops))
"""

#: How the files at a place fall short, given the notes so far.
Look = Callable[[Path, "Notes"], str | None]


@dataclass
class Notes:
    """What had been promised by a moment."""

    flushed: int = 0
    closed: bool = False

    @classmethod
    def of(cls, ops: list[Op]) -> Notes:
        """What the marks among some operations say."""
        marks = [op.note for op in ops if op.kind == "mark"]
        return cls(max((n for name, n in marks if name == FLUSHED), default=0), any(n == CLOSED for n, _ in marks))


@dataclass
class Recorded:
    """Operations on files.

    Attributes
    ----------
    name : str
    root : Path
        Where they were done.
    before : Files
        What was there.
    ops : list of Op
        In their order, those of sealing processes among them.
    beside : set of int
        Which of them a sealing process did.
    look : callable
    """

    name: str
    root: Path
    look: Look
    before: Files = field(default_factory=Files)
    ops: list[Op] = field(default_factory=list)
    beside: set[int] = field(default_factory=set)


def watch(name: str, root: Path, work: Callable[[FileTrace], None], look: Look) -> Recorded:
    """Do ``work`` under watch; what it does to files must account for all that is there afterwards."""
    told = root.with_name(f"{root.name}.told")
    told.mkdir()
    done = Recorded(name, root, look, _files(root))
    start = sealer.Sealer.start

    def started(self: sealer.Sealer, after: int, upto: int) -> None:
        trace.mark((SEALING, 0))
        start(self, after, upto)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sealer, "_CODE", _WATCHED.format(root=str(root), told=str(told))))
        stack.enter_context(mock.patch.object(sealer.Sealer, "start", started))
        trace = stack.enter_context(FileTrace(root))
        work(trace)
    others = [pickle.loads(path.read_bytes()) for path in sorted(told.iterdir())]
    both = [(op, False) for op in trace.ops] + [(op, True) for ops in others for op in ops]
    both.sort(key=lambda entry: entry[0].when)
    done.ops = [op for op, _ in both]
    done.beside = {at for at, (_, sealing) in enumerate(both) if sealing}
    left = done.before.copy()
    for op in done.ops:
        left.apply(op)
    assert left.under(root) == lying_under(root), f"{name}: something was not watched"
    return done


def _files(root: Path) -> Files:
    files = Files()
    for name, content in lying_under(root).items():
        files.names[str(root / name)] = None if content is None else len(files.contents)
        if content is not None:
            files.contents.append(bytearray(content))
    return files


# --- what is recorded ------------------------------------------------------------------------------------------------


def _kept(run: str) -> Look:
    return lambda at, notes: shortfall(at / run, notes.flushed, closed=notes.closed)


def writing(root: Path, durability: str = "default", records: int = 8) -> Recorded:
    """A run that is flushed again and again, sealed twice beside, and closed."""

    def work(trace: FileTrace) -> None:
        writer = RunWriter(root / "new/run", META, durability=durability, seal_bytes=1 << 30)
        writer.set_sites(SITES)
        trace.mark((FLUSHED, 0))
        for step in range(records):
            writer.add_record(record(step))
            writer.set_coverage([Coverage(SITE, "recorded", count=step + 1)])
            writer._worker._seal_bytes = 1 if step in {2, 5} else 1 << 30
            writer.flush()
            trace.mark((FLUSHED, step + 1))
            if step in {4, 7}:  # until then it is sealed while more is recorded
                wait_until(lambda: not writer._worker._sealer.running)
        writer.close()
        trace.mark((CLOSED, 0))

    return watch(f"writing, {durability}", root, work, _kept("new/run"))


def large(root: Path, durability: str = "default") -> Recorded:
    """A commit of many pages, the journal of which is cut afterwards, and a run that is sealed in several stretches."""

    def work(trace: FileTrace) -> None:
        writer = RunWriter(root / "run", META, durability=durability)
        for step in range(60):
            writer.add_record(record(step))
        writer.flush()
        trace.mark((FLUSHED, 60))
        with mock.patch("gradscope.store.sealing.STRETCH_BYTES", 12_000):
            writer.close()
        trace.mark((CLOSED, 0))

    return watch("one large commit", root, work, _kept("run"))


def restarting(root: Path) -> Recorded:
    """A second attempt beside one that has died."""
    _dead(root / "run")

    def work(trace: FileTrace) -> None:
        trace.mark((FLUSHED, 3))
        writer = RunWriter(root / "run", META, restart=True)
        writer.add_record(record(3))
        writer.flush()
        trace.mark((FLUSHED, 4))
        writer.close()

    return watch("restarting", root, work, _kept("run"))


def packing(root: Path) -> Recorded:
    """A run that is packed: its file is whole or not there, and the run as it was."""
    _dead(root / "run")

    def look(at: Path, notes: Notes) -> str | None:
        out = at / "out.h5"
        if not out.exists() and notes.closed:
            return "the packed file is gone"
        if not out.exists():
            pack(at / "run", out)  # a crash is in nobody's way
        return shortfall(out, 3, repairing=False) or shortfall(at / "run", 3)

    def work(trace: FileTrace) -> None:
        pack(root / "run", root / "out.h5")
        trace.mark((CLOSED, 0))

    return watch("packing", root, work, look)


def repairing(root: Path, damage: str) -> Recorded:
    """A run that is repaired: whoever repairs it again comes to the same end."""
    steps = _DAMAGES[damage](root / "run")

    def look(at: Path, _notes: Notes) -> str | None:
        try:
            repair(at / "run")
            left = validate(at / "run") + repair(at / "run").actions
            with open_run(at / "run") as run:
                found = sorted(run.records(SITE)["step"])
        except GradscopeError as error:
            return f"{type(error).__name__}: {error}"
        if found != list(steps):
            return f"it holds the steps {found}"
        return left[0] if left else None

    return watch(f"repairing {damage}", root, lambda _: repair(root / "run") and None, look)


def _dead(run: Path, records: int = 3) -> None:
    """A run whose process has died, nothing of it sealed."""
    writer = RunWriter(run, META)
    writer.set_sites(SITES)
    for step in range(records):
        writer.add_record(record(step))
    writer.flush()
    die(writer)


def _sealed_and_dead(run: Path, records: int = 4) -> Path:
    """Two records in a segment, two in the journal; returns the segment."""
    writer = RunWriter(run, META, seal_bytes=1)
    writer.set_sites(SITES)
    for step in range(records):
        if step == records // 2:
            wait_until(lambda: writer._worker._sealed_id)
            writer._worker._seal_bytes = 1 << 30
        writer.add_record(record(step))
        if step == records // 2 - 1:
            writer.flush()
    writer.flush()
    die(writer)
    return writer.path / "segment-00001.h5"


def _journal(run: Path) -> range:
    _sealed_and_dead(run)
    return range(4)


def _torn(run: Path) -> range:
    """Half a commit is on the disk."""
    _dead(run)
    journal = run / "attempt-1/rank-0/journal.sqlite"
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        connection.execute("UPDATE info SET value = value || value")
        connection.execute("UPDATE entries SET payload = zeroblob(100000)")
        halves = {suffix: Path(f"{journal}{suffix}").read_bytes() for suffix in ("", "-journal")}
        connection.execute("ROLLBACK")
    for suffix, half in halves.items():
        Path(f"{journal}{suffix}").write_bytes(half)
    return range(3)


def _checksum(run: Path) -> range:
    segment = _sealed_and_dead(run)
    segment.with_name(segment.name + ".sha256").write_text(f"{'0' * 64}  {segment.name}\n")
    return range(4)


def _segment(run: Path) -> range:
    segment = _sealed_and_dead(run)
    segment.write_bytes(segment.read_bytes()[:700])
    return range(2, 4)


def _end(run: Path) -> range:
    """Neither a journal nor a closing segment is there, and a write was interrupted."""
    segment = _sealed_and_dead(run)
    for beside in segment.parent.glob("journal*"):
        beside.unlink()
    segment.with_name(".segment-00002.h5.99.tmp").write_bytes(b"half")
    return range(2)


#: What is repaired; each returns the steps that are left afterwards.
_DAMAGES: dict[str, Callable[[Path], range]] = {
    "a journal": _journal,
    "half a commit": _torn,
    "a wrong checksum": _checksum,
    "a damaged segment": _segment,
    "a missing end": _end,
}


def repairs(root: Path) -> list[Recorded]:
    """Every kind of repair."""
    return [repairing(below(root, damage.replace(" ", "-")), damage) for damage in _DAMAGES]


def below(root: Path, name: str) -> Path:
    """A new directory."""
    (root / name).mkdir()
    return root / name
