"""From journal rows to sealed segments: at the end of a run, in repair, and in a process beside a training."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from gradscope.errors import RunError
from gradscope.store import codec, guard
from gradscope.store.budget import Budget
from gradscope.store.journal import Row, read_header, read_rows
from gradscope.store.layout import RankDirectory
from gradscope.store.part import BLOCK_BYTES, Block, Header, blocks
from gradscope.store.sealed import SealedPart
from gradscope.store.segment import build, write_segment

#: Rows are sealed in stretches of about this size, so that memory is bounded however far a journal has grown.
STRETCH_BYTES = 64 << 20


def seal_rows(directory: RankDirectory, rows: Sequence[Row], header: Header, sealed_id: int) -> list[Path]:
    """Write journal rows as segments, the last of which is the run's last if ``header.closing``."""
    entries = [codec.decode(kind, payload) for _, kind, payload in rows]
    gates = {site: info.gates for site, info in header.sites.items()}
    written = []
    for start, stop in blocks(entries, BLOCK_BYTES):
        last_id = rows[stop - 1][0] if rows else sealed_id
        block = Block(entries[start:stop], directory.attempt, directory.rank, gates)
        last = header.closing and stop == len(entries)
        described = replace(header, first_id=sealed_id + 1, last_id=last_id, closing=last)
        # What is sealed while a training runs takes none of its processor for compression; `pack` compresses it.
        content = build([block], described, compress=header.closing)
        written.append(directory.next_segment())
        write_segment(written[-1], content)
        sealed_id = last_id
    return written


def seal_journal(
    connection: sqlite3.Connection, directory: RankDirectory, header: Header, after: int, upto: int | None = None
) -> int:
    """Seal the rows of a journal beyond ``after``, up to ``upto`` or all; returns the last of them.

    With ``header.closing`` the last segment closes the run, and is written even if there is no row.
    """
    after = max(after, sealed_before(directory))
    stretches = _stretches(connection, after, upto)
    if not stretches and not header.closing:
        return after
    for first, last in stretches or [(after + 1, after)]:
        rows = list(read_rows(connection, "WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)))
        is_last = not stretches or last == stretches[-1][1]
        seal_rows(directory, rows, replace(header, closing=header.closing and is_last), after)
        after = last
    return after


def sealed_before(directory: RankDirectory) -> int:
    """Return the last entry that a segment holds: a process that was killed may have sealed more than it told."""
    segments = directory.segments()
    if not segments:
        return 0
    try:
        return SealedPart(segments[-1]).header.last_id
    except RunError:
        return 0


def _stretches(connection: sqlite3.Connection, after: int, upto: int | None) -> list[tuple[int, int]]:
    """First and last row of each stretch."""
    found: list[tuple[int, int]] = []
    size = STRETCH_BYTES
    sizes: Iterator[tuple[int, int]] = connection.execute(
        "SELECT id, length(payload) FROM entries WHERE id > ? AND id <= ? ORDER BY id",
        (after, 2**62 if upto is None else upto),
    )
    for row_id, length in sizes:
        if size + length > STRETCH_BYTES:
            found.append((row_id, row_id))
            size = 0
        else:
            found[-1] = (found[-1][0], row_id)
        size += length
    return found


def main(rank_directory: str, attempt: str, rank: str, after: str, upto: str) -> None:
    """Seal beside a training, in a process of its own; tells on stdout which row was the last."""
    directory = RankDirectory(int(attempt), int(rank), Path(rank_directory))
    with closing(guard.connect(directory.journal)) as connection:
        header = read_header(connection, directory.journal, Budget.of([directory.journal]))
        last = seal_journal(connection, directory, header, int(after), int(upto))
    sys.stdout.write(f"sealed {last}")
