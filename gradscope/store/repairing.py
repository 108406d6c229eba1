"""Bring a run whose process died, or whose files were damaged, back into order. Nothing is ever deleted unread."""

from __future__ import annotations

import itertools
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradscope.errors import RunDamagedError, RunError, UnsafeFileError
from gradscope.store import guard
from gradscope.store.budget import Budget
from gradscope.store.codec import RECORD, CorruptEntryError, Entry, decode
from gradscope.store.journal import BESIDE, Row, has_sums, info_crc, parse_info, remove_journal, row_crc
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.locking import is_being_written, lock_directory
from gradscope.store.nearby import no_run
from gradscope.store.part import Header, pay_for_stacking
from gradscope.store.paths import check_file, open_file, present
from gradscope.store.sealed import SealedPart
from gradscope.store.sealing import seal_rows
from gradscope.store.segment import build, checksum_path, sync_directory, write_segment
from gradscope.store.validation import checksum_problems, problems_within, segment_problems

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
        raise no_run(path)
    if not path.is_dir():
        if problems := segment_problems(path.resolve(), Budget.of([path.resolve()]))[0]:
            raise RunDamagedError(
                f"{problems[0]} A single file holds nothing to repair it from: copy it again, or pack the run again."
            )
        return report
    ranks = rank_directories(path)
    for rank in ranks:  # all of it before anything is changed
        for file in rank.files():
            _check_beside(file)
    budget = Budget.of(file for rank in ranks for file in rank.files())
    for rank in ranks:
        if is_being_written(rank.path):
            report.actions.append(f"{str(rank.path)!r} is being written by a living process: left alone.")
            continue
        held = lock_directory(rank.path)
        try:
            _repair_rank(rank, budget, report)
        except OSError as error:
            raise RunError(
                f"cannot write in {str(rank.path)!r}: {error.strerror or error}. No record was removed; repair again."
            ) from error
        finally:
            held.close()
    return report


def _check_beside(file: Path) -> None:
    """Refuse a run in which a file, or what stands beside it, is none."""
    check_file(file)
    for beside in (checksum_path(file), *(file.with_name(file.name + suffix) for suffix in BESIDE)):
        if present(beside):
            check_file(beside)


def _repair_rank(rank: RankDirectory, budget: Budget, report: RepairReport) -> None:
    for left in rank.left_behind():
        left.unlink()
        report.actions.append(f"removed {str(left)!r}, left behind by an interrupted write.")
    last = Header()
    for segment in rank.segments():
        header = _check_segment(segment, budget, report)
        if header is not None and header.first_id <= last.last_id:
            _set_aside(segment, report)
            if header.last_id > last.last_id:
                report.lost.append(f"entries {last.last_id + 1} to {header.last_id}, of a segment that repeats others.")
            header = replace(last, closing=last.closing or header.closing)
        last = header or last
    if present(rank.journal):
        _seal_journal(rank, budget, last, report)
    elif not last.closing:
        _close_run(rank, last, report)
    sync_directory(rank.path)


def _check_segment(segment: Path, budget: Budget, report: RepairReport) -> Header | None:
    """Header of a segment that can be read; one that cannot is set aside."""
    try:
        part = SealedPart(segment, budget)
        problems = problems_within(part)
    except RunDamagedError as error:
        problems = [str(error)]
    except RunError as error:  # newer or unsafe is not damaged: it stays where it is
        raise RunDamagedError(f"{error} Nothing was changed there.") from error
    wrong_sum = checksum_problems(segment, required=True)
    if problems:
        _set_aside(segment, report)
        report.lost.append(f"the records of {str(segment)!r}: {problems[0]}")
        return None
    if wrong_sum:
        with open_file(segment) as file:
            write_segment(segment, file.read())
        report.actions.append(f"wrote a new checksum for {str(segment)!r}; its content reads without error.")
    return part.header


def _set_aside(path: Path, report: RepairReport) -> None:
    target = _aside(path)
    os.rename(path, target)
    if present(checksum_path(path)):
        os.rename(checksum_path(path), _aside(checksum_path(path)))
    report.actions.append(f"set {str(path)!r} aside as {target.name!r}.")


def _aside(path: Path) -> Path:
    """A name for a damaged file that no other has."""
    names = (f"{path.name}{_DAMAGED}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(target for target in map(path.with_name, names) if not present(target))


def _seal_journal(rank: RankDirectory, budget: Budget, last: Header, report: RepairReport) -> None:
    rows, first_id, header, complete = _salvage(rank.journal, budget)
    fresh = [row for row in rows if row[0] > last.last_id]
    decoded = [(row, entry) for row in fresh if (entry := _decoded(row)) is not None]
    readable = [row for row, _ in decoded]
    if first_id > last.last_id + 1 and not last.closing:
        report.lost.append(f"entries {last.last_id + 1} to {first_id - 1}, which {str(rank.journal)!r} no longer has.")
    pay_for_stacking([entry for _, entry in decoded], budget, rank.journal)
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
            if present(beside):
                os.rename(beside, _aside(beside))


def _salvage(path: Path, budget: Budget) -> tuple[list[Row], int, Header, bool]:
    """What can be read of a journal, the entry before which none may be missing, and whether that is everything."""
    try:
        content = guard.load_journal(path, budget)
        return content.rows, content.first_id, content.header, True
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
            header = _salvage_header(connection, path, budget)
            for order in ("ASC", "DESC"):  # from both ends, up to the damage
                _take_rows(connection, order, rows)
    return [rows[row_id] for row_id in sorted(rows)], 0, header, False


def _take_rows(connection: sqlite3.Connection, order: str, rows: dict[int, Row]) -> None:
    """Rows from one end, up to the damage; one that differs from its checksum is left out."""
    sums = has_sums(connection)
    columns = "id, kind, payload, crc" if sums else "id, kind, payload"
    with suppress(sqlite3.Error):
        for number, kind, payload, *crc in connection.execute(f"SELECT {columns} FROM entries ORDER BY id {order}"):
            if not (isinstance(number, int) and isinstance(kind, int) and isinstance(payload, bytes)):
                continue
            if not sums or row_crc((number, kind, payload)) == crc[0]:
                rows.setdefault(number, (number, kind, payload))


def _salvage_header(connection: sqlite3.Connection, path: Path, budget: Budget) -> Header:
    """What the journal says of its run, as far as each text is whole."""
    sums = has_sums(connection)
    columns = "key, value, crc" if sums else "key, value"
    whole: dict[str, str] = {}
    with suppress(sqlite3.Error):
        for key, value, *crc in connection.execute(f"SELECT {columns} FROM info"):
            if isinstance(key, str) and isinstance(value, str) and (not sums or info_crc(key, value) == crc[0]):
                whole[key] = value
    try:
        return parse_info(whole, path, budget)
    except ValueError:
        return Header()


def _decoded(row: Row) -> Entry | None:
    """The entry in a row; None where it cannot be read."""
    try:
        return decode(row[1], row[2])
    except (CorruptEntryError, TypeError):
        return None


def _close_run(rank: RankDirectory, last: Header, report: RepairReport) -> None:
    """A run without an end gets an empty closing segment, so that readers take it as sealed."""
    closing_header = replace(last, first_id=last.last_id + 1, closing=True)
    write_segment(rank.next_segment(), build([], closing_header))
    report.lost.append(f"the end of {str(rank.path)!r}: there is neither a journal nor a closing segment.")
    report.actions.append(f"marked {str(rank.path)!r} as closed.")
