"""Bring a run whose process died, or whose files were damaged, back into order. Nothing is ever deleted unread."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradscope.errors import RunDamagedError, RunError, RunNotFoundError, UnsafeFileError
from gradscope.store import guard
from gradscope.store.codec import RECORD, CorruptEntryError, decode
from gradscope.store.header import parse_header
from gradscope.store.journal import BESIDE, Row, remove_journal
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.locking import is_being_written, lock_directory
from gradscope.store.part import Header
from gradscope.store.sealed import SealedPart
from gradscope.store.sealing import seal_rows
from gradscope.store.segment import build, checksum_path, sync_directory, write_segment
from gradscope.store.validation import checksum_problems, segment_problems

_DAMAGED = ".damaged"


@dataclass
class RepairReport:
    """What `repair` did.

    Attributes
    ----------
    path : Path
    actions : list of str
        One sentence per change; empty when nothing was wrong.
    lost : list of str
        One sentence per thing that could not be recovered.
    recovered : int
        Records moved from a journal into a sealed segment.
    """

    path: Path
    actions: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    recovered: int = 0


def repair(path: str | Path) -> RepairReport:
    """Seal what a dead process left in its journal, set damaged files aside, restore checksums.

    Damaged files keep their content under a name ending in ``.damaged``. A rank that a living process is writing is
    left alone.

    Parameters
    ----------
    path : str or Path
        A run directory. A packed file has nothing to repair from; it is only checked.

    Raises
    ------
    RunNotFoundError
    RunDamagedError
        A single file that cannot be read.
    RunError
        The disk refuses.
    """
    path = Path(path)
    report = RepairReport(path)
    if not path.exists():
        raise RunNotFoundError(f"there is no run at {str(path)!r}.")
    if not path.is_dir():
        if problems := segment_problems(path, path.resolve().parent)[0]:
            raise RunDamagedError(
                f"{problems[0]} A single file holds nothing to repair it from: copy it again, or pack the run again."
            )
        return report
    for rank in rank_directories(path):
        if is_being_written(rank.path):
            report.actions.append(f"{str(rank.path)!r} is being written by a living process: left alone.")
            continue
        held = lock_directory(rank.path)
        try:
            _repair_rank(rank, path, report)
        except OSError as error:
            raise RunError(
                f"cannot write in {str(rank.path)!r}: {error.strerror or error}. No record was removed; repair again."
            ) from error
        finally:
            held.close()
    return report


def _repair_rank(rank: RankDirectory, root: Path, report: RepairReport) -> None:
    for left in sorted(rank.path.glob(".*.tmp")):
        left.unlink()
        report.actions.append(f"removed {str(left)!r}, left behind by an interrupted write.")
    last = Header()
    for segment in rank.segments():
        last = _check_segment(segment, root, report) or last
    if rank.journal.exists() or rank.journal.is_symlink():
        _seal_journal(rank, root, last, report)
    elif not last.closing:
        _close_run(rank, last, report)
    sync_directory(rank.path)


def _check_segment(segment: Path, root: Path, report: RepairReport) -> Header | None:
    """Header of a segment that can be read; one that cannot is set aside."""
    guard.check_path(segment, root)
    problems, part = segment_problems(segment, root)
    wrong_sum = checksum_problems(segment, required=True)
    if part is None and not _is_damaged(segment):
        # Newer or unsafe is not damaged: it stays where it is.
        raise RunDamagedError(f"{problems[0]} Nothing was changed there.")
    if part is None or problems:
        _set_aside(segment, report)
        report.lost.append(f"the records of {str(segment)!r}: {(problems or wrong_sum)[0]}")
        return None
    if wrong_sum:
        content = segment.read_bytes()
        write_segment(segment, content)
        report.actions.append(f"wrote a new checksum for {str(segment)!r}; its content reads without error.")
    return part.header


def _is_damaged(segment: Path) -> bool:
    try:
        SealedPart(segment)
    except RunDamagedError:
        return True
    except RunError:
        return False
    return False


def _set_aside(path: Path, report: RepairReport) -> None:
    target = path.with_name(path.name + _DAMAGED)
    os.replace(path, target)
    if checksum_path(path).exists():
        os.replace(checksum_path(path), checksum_path(target))
    report.actions.append(f"set {str(path)!r} aside as {target.name!r}.")


def _seal_journal(rank: RankDirectory, root: Path, last: Header, report: RepairReport) -> None:
    guard.check_path(rank.journal, root)
    rows, header, complete = _salvage(rank.journal)
    fresh = [row for row in rows if row[0] > last.last_id]
    readable = [row for row in fresh if _decodes(row)]
    seal_rows(rank, readable, replace(header, closing=True), last.last_id)
    recovered = sum(kind == RECORD for _, kind, _ in readable)
    report.recovered += recovered
    report.actions.append(f"sealed {recovered} records ({len(readable)} entries) of {str(rank.journal)!r}.")
    if complete and len(readable) == len(fresh):
        remove_journal(rank.journal)
    else:
        report.lost.append(f"what could not be read of {str(rank.journal)!r}.")
        for suffix in (*BESIDE, ""):
            beside = rank.journal.with_name(rank.journal.name + suffix)
            if beside.exists():
                os.replace(beside, beside.with_name(beside.name + _DAMAGED))


def _salvage(path: Path) -> tuple[list[Row], Header, bool]:
    """What can be read of a journal, and whether that is everything."""
    try:
        content = guard.load_journal(path)
        return content.rows, content.header, True
    except RunDamagedError as error:
        damage = error
    rows: dict[int, Row] = {}
    header = Header()
    with ExitStack() as stack:
        try:  # a transaction that a crash has left half done is undone there
            source = stack.enter_context(guard.copied(path, damage))
        except RunDamagedError:
            source = path
        with suppress(sqlite3.Error, UnsafeFileError), closing(guard.connect(source)) as connection:
            header = _salvage_header(connection)
            for order in ("ASC", "DESC"):  # from both ends, up to the damage
                _take_rows(connection, order, rows)
    return [rows[row_id] for row_id in sorted(rows)], header, False


def _take_rows(connection: sqlite3.Connection, order: str, rows: dict[int, Row]) -> None:
    try:
        for row in connection.execute(f"SELECT id, kind, payload FROM entries ORDER BY id {order}"):
            if isinstance(row[0], int) and row[0] not in rows:
                rows[row[0]] = row
    except sqlite3.Error:
        pass


def _salvage_header(connection: sqlite3.Connection) -> Header:
    try:
        info = dict(connection.execute("SELECT key, value FROM info"))
        known = ("metas", "sites", "coverage", "lost")
        return parse_header({key: json.loads(info[key]) for key in known if key in info})
    except (sqlite3.Error, ValueError, TypeError):
        return Header()


def _decodes(row: Row) -> bool:
    try:
        decode(row[1], row[2])
    except (CorruptEntryError, TypeError):
        return False
    return True


def _close_run(rank: RankDirectory, last: Header, report: RepairReport) -> None:
    """A run without an end gets an empty closing segment, so that readers take it as sealed."""
    closing_header = replace(last, first_id=last.last_id + 1, closing=True)
    write_segment(rank.next_segment(), build([], closing_header))
    report.lost.append(f"the end of {str(rank.path)!r}: there is neither a journal nor a closing segment.")
    report.actions.append(f"marked {str(rank.path)!r} as closed.")
