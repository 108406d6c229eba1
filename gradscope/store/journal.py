"""The open part of a run: a SQLite database, which survives being killed at any moment.

It keeps a rollback journal, not a write-ahead log: a log's index is mapped into memory, and whoever truncates that
file ends the training by SIGBUS. Nor does a log work on the network disks of clusters. A commit waits for the disk, 12
to 20 ms where a log needed .1 to 2, in a thread that no training waits for.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradscope.schema import SCHEMA_VERSION, RunMeta
from gradscope.store.budget import Budget
from gradscope.store.fields import read_json
from gradscope.store.header import check_version, parse_header
from gradscope.store.part import Header
from gradscope.store.segment import to_json

#: The only things a journal may contain; a file with anything else is refused. ``crc`` is the CRC-32 of a row.
STATEMENTS = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL)",
)
#: What journals of before format 1.2 contain, which have no checksums.
EARLIER_STATEMENTS = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
_SYNCHRONOUS = {"default": "NORMAL", "full": "FULL"}
#: What SQLite keeps beside a journal; the last two beside those of earlier versions.
BESIDE = ("-journal", "-wal", "-shm")
#: Room taken at the start, so that a full disk can still be told what it has refused.
RESERVED_BYTES = 96 << 10
#: A rollback journal stays, as room too, but not larger than this.
_KEPT_BYTES = 1 << 20
#: A larger payload is handed to SQLite in pieces: it copies what it is given, and nobody else runs meanwhile.
_PIECE_BYTES = 4 << 20

_DESCRIBING = {"metas", "sites", "coverage", "lost"}
#: What stands in a journal from its beginning.
_DESCRIBED = {"schema_version", "metas"}
#: Under this name stands the last entry that was committed: none may be missing before it.
_LAST = "last_id"

Row = tuple[int, int, bytes]

_WHICH = struct.Struct("<qq")


def row_crc(row: Row) -> int:
    """Checksum of an entry: of its number and kind too."""
    return zlib.crc32(row[2], zlib.crc32(_WHICH.pack(row[0], row[1])))


def info_crc(key: str, value: str) -> int:
    """Checksum of what is known of the run under a name."""
    return zlib.crc32(f"{key}={value}".encode())


class Journal:
    """The writing end.

    Committed rows survive the death of the process. ``durability="full"`` also syncs the end of every commit, so
    that they survive a power cut; with ``"default"`` a power cut may take the last seconds, never the run.
    """

    def __init__(self, path: Path, durability: str = "default") -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            for pragma in (
                "journal_mode=PERSIST",
                f"journal_size_limit={_KEPT_BYTES}",
                f"synchronous={_SYNCHRONOUS[durability]}",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            self._reserve(RESERVED_BYTES)
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def create(cls, path: Path, meta: RunMeta, durability: str = "default") -> Journal:
        """Begin a journal. It appears under its name complete with ``meta``, or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA page_size=16384")  # rows are arrays of some ten KiB
                connection.execute("PRAGMA journal_mode=MEMORY")  # whole by its renaming
                for statement in STATEMENTS:
                    connection.execute(statement)
                _put(connection, {"schema_version": SCHEMA_VERSION, "metas": [asdict(meta)]})
                _put(connection, {"reserved": " " * RESERVED_BYTES})
            os.replace(temporary, path)
            return cls(path, durability)
        except BaseException:
            temporary.unlink(missing_ok=True)
            remove_journal(path)
            raise

    def _reserve(self, size: int) -> None:
        """Write the reserved room anew: what SQLite needs beside the journal to change that much stays there."""
        self.append((), {"reserved": " " * size})

    def append(self, rows: Iterable[Row], info: dict[str, Any]) -> None:
        """Commit rows and what is known of the run, all or nothing. Rows that are there already stay as they are."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            last = None
            for row in rows:
                self._insert(row)
                last = row[0]
            _put(connection, info if last is None else {**info, _LAST: last})
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _insert(self, row: Row) -> None:
        number, kind, payload = row
        if len(payload) <= _PIECE_BYTES or not hasattr(self._connection, "blobopen"):  # Python 3.11
            self._connection.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", (*row, row_crc(row)))
            return
        empty = (number, kind, len(payload), row_crc(row))
        if not self._connection.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, zeroblob(?), ?)", empty).rowcount:
            return
        with self._connection.blobopen("entries", "payload", number) as blob:
            for start in range(0, len(payload), _PIECE_BYTES):
                blob.write(payload[start : start + _PIECE_BYTES])

    def note(self, info: dict[str, Any]) -> None:
        """Commit what is known of the run into the room that was reserved: the disk may be full."""
        self.append((), {"reserved": "", **info})

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for reading what has been written."""
        return self._connection

    def forget(self, last_id: int) -> None:
        """Drop the rows up to ``last_id``, which a segment holds now."""
        self._connection.execute("DELETE FROM entries WHERE id <= ?", (last_id,))

    def close(self) -> None:
        self._connection.close()

    def discard(self) -> None:
        """Delete a journal in which nothing is."""
        self.close()
        remove_journal(self.path)


def _put(connection: sqlite3.Connection, info: dict[str, Any]) -> None:
    texts = {key: value if isinstance(value, str) else to_json(value) for key, value in info.items()}
    values = [(key, text, info_crc(key, text)) for key, text in texts.items()]
    connection.executemany("INSERT OR REPLACE INTO info VALUES (?, ?, ?)", values)


def remove_journal(path: Path) -> None:
    """Delete a closed journal, the database last: what is left at any moment is the whole of it or nothing."""
    for suffix in (*BESIDE, ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@dataclass
class JournalContent:
    """What a journal held at one moment. ``first_id`` is the entry before which none may be missing; 0 is unknown."""

    header: Header
    rows: list[Row] = field(default_factory=list)
    first_id: int = 0


def read_content(connection: sqlite3.Connection, path: Path, budget: Budget, after: int = 0) -> JournalContent:
    """Read a journal beyond row ``after``, at one consistent moment, through a connection from the guard.

    Raises
    ------
    sqlite3.DatabaseError, ValueError
        It is damaged.
    SchemaVersionError
    """
    connection.execute("BEGIN")
    info = read_info(connection)
    check_version(info.get("schema_version"), path)
    header = parse_info(info, path, budget)
    rows = list(read_rows(connection, "WHERE id > ? ORDER BY id", (after,)))
    connection.execute("COMMIT")
    if not has_sums(connection):
        return JournalContent(header, rows)
    last_id = int(info.get(_LAST, 0))
    first_id = rows[0][0] if rows else last_id + 1
    # Counted first: a last entry far away is no reason to make a list that reaches there.
    if len(rows) != last_id - first_id + 1 or [row[0] for row in rows] != list(range(first_id, last_id + 1)):
        raise ValueError(f"of the entries up to {last_id} some are missing")
    return JournalContent(header, rows, first_id)


def has_sums(connection: sqlite3.Connection) -> bool:
    """Whether rows carry checksums: since format 1.2."""
    found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()
    return found is not None and found[0] == STATEMENTS[0]


def read_rows(connection: sqlite3.Connection, which: str, values: Sequence[int] = ()) -> Iterator[Row]:
    """Read entries, each compared with its checksum.

    Raises
    ------
    ValueError
        At an entry that differs.
    """
    sums = has_sums(connection)
    columns = "id, kind, payload, crc" if sums else "id, kind, payload"
    for number, kind, payload, *crc in connection.execute(f"SELECT {columns} FROM entries {which}", values):
        if not (isinstance(number, int) and isinstance(kind, int) and isinstance(payload, bytes)):
            raise ValueError("a row that is no journal entry")
        if sums and row_crc((number, kind, payload)) != crc[0]:
            raise ValueError(f"entry {number} differs from its checksum")
        yield number, kind, payload


def read_info(connection: sqlite3.Connection) -> dict[str, str]:
    """Read what a journal says of its run, as text by name, each compared with its checksum.

    Raises
    ------
    ValueError
        At one that differs, or is no text.
    """
    sums = has_sums(connection)
    found = {}
    columns = "key, value, crc" if sums else "key, value"
    for key, value, *crc in connection.execute(f"SELECT {columns} FROM info WHERE key != 'reserved'"):
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError("a description that is no text")
        if sums and info_crc(key, value) != crc[0]:
            raise ValueError(f"{key!r} differs from its checksum")
        found[key] = value
    if sums and not found.keys() >= _DESCRIBED:
        raise ValueError("its description is missing")
    return found


def read_header(connection: sqlite3.Connection, path: Path, budget: Budget) -> Header:
    """Read what a journal says of its run; raises as `read_content` does."""
    info = read_info(connection)
    check_version(info.get("schema_version"), path)
    return parse_info(info, path, budget)


def parse_info(info: Mapping[str, str], path: Path, budget: Budget) -> Header:
    """A header from the texts of a journal; those that are missing are left out."""
    return parse_header({key: read_json(value, budget, path) for key, value in info.items() if key in _DESCRIBING})
