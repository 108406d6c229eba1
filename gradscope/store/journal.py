"""The open part of a run: a SQLite database in write-ahead mode, which survives being killed at any moment."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradscope.schema import SCHEMA_VERSION, RunMeta
from gradscope.store.header import check_version, parse_header
from gradscope.store.part import Header
from gradscope.store.segment import to_json

#: The only things a journal may contain; a file with anything else is refused.
STATEMENTS = (
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, payload BLOB NOT NULL)",
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
_SYNCHRONOUS = {"default": "NORMAL", "full": "FULL"}

Row = tuple[int, int, bytes]


class Journal:
    """The writing end.

    Committed rows survive the death of the process. ``durability="full"`` also syncs the disk at every commit, so
    that they survive a power cut; with ``"default"`` a power cut may take the last seconds, never the run.
    """

    def __init__(self, path: Path, durability: str = "default") -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")

    @classmethod
    def create(cls, path: Path, meta: RunMeta, durability: str = "default") -> Journal:
        """Begin a journal. It appears under its name complete with ``meta``, or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA page_size=16384")  # rows are arrays of some ten KiB
            connection.execute("PRAGMA journal_mode=WAL")
            for statement in STATEMENTS:
                connection.execute(statement)
            _put(connection, {"schema_version": SCHEMA_VERSION, "metas": [asdict(meta)]})
        os.replace(temporary, path)
        return cls(path, durability)

    def append(self, rows: Iterable[Row], info: dict[str, Any]) -> None:
        """Commit rows and what is known of the run, all or nothing. Rows that are there already stay as they are."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", rows)
            _put(connection, info)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def rows(self) -> list[Row]:
        """Every row that is not sealed yet."""
        return list(self._connection.execute("SELECT id, kind, payload FROM entries ORDER BY id"))

    def forget(self, last_id: int) -> None:
        """Drop the rows up to ``last_id``, which a segment holds now."""
        self._connection.execute("DELETE FROM entries WHERE id <= ?", (last_id,))
        # Never waits for a reader: a training must not.
        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        self._connection.close()


def _put(connection: sqlite3.Connection, info: dict[str, Any]) -> None:
    values = [(key, value if isinstance(value, str) else to_json(value)) for key, value in info.items()]
    connection.executemany("INSERT OR REPLACE INTO info VALUES (?, ?)", values)


def remove_journal(path: Path) -> None:
    """Delete a closed journal, the database last: what is left at any moment is the whole of it or nothing."""
    for suffix in ("-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@dataclass
class JournalContent:
    """What a journal held at one moment."""

    header: Header
    rows: list[Row] = field(default_factory=list)


def read_content(connection: sqlite3.Connection, path: Path) -> JournalContent:
    """Read a journal, at one consistent moment, through a connection from the guard.

    Raises
    ------
    sqlite3.DatabaseError, ValueError
        It is damaged.
    SchemaVersionError
    """
    connection.execute("BEGIN")
    info = dict(connection.execute("SELECT key, value FROM info"))
    rows = list(connection.execute("SELECT id, kind, payload FROM entries ORDER BY id"))
    connection.execute("COMMIT")
    check_version(info.get("schema_version"), path)
    parsed = {key: json.loads(value) for key, value in info.items() if key in {"metas", "sites", "coverage", "lost"}}
    header = parse_header(parsed)
    if not all(isinstance(i, int) and isinstance(k, int) and isinstance(p, bytes) for i, k, p in rows):
        raise ValueError("a row that is no journal entry")
    return JournalContent(header, rows)
