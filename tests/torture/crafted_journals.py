"""Journals: tables of their own, entries of every wrong shape, and rows that share what they are made of."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.store.journal import STATEMENTS
from tests.torture.resum import resum_journal
from tests.torture.strange import JOURNAL, Make

SCHEMAS = {
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM info; END",
    "a view": "CREATE VIEW v AS SELECT load_extension('/tmp/evil')",
    "another table": "CREATE TABLE more (x)",
    "a computed column": "ALTER TABLE entries ADD COLUMN x GENERATED ALWAYS AS (kind + 1)",
    "no table": "DROP TABLE info",
    "an index of its own": "CREATE INDEX i ON entries (kind)",
    "entries that never end": "DROP TABLE entries; CREATE VIEW entries AS WITH RECURSIVE c(id) AS (SELECT 1 UNION ALL"
    " SELECT id + 1 FROM c) SELECT id, 1 AS kind, zeroblob(1000) AS payload, 0 AS crc FROM c",
    "no rows": "DELETE FROM entries; DELETE FROM info",
    "text for a payload": "UPDATE entries SET payload = 'text'",
    "a number for a kind": "UPDATE entries SET kind = 1.5",
    "an unknown kind": "UPDATE entries SET kind = 9",
    "a version of before": "UPDATE info SET value = '-1.0' WHERE key = 'schema_version'",
    "a version to come": "UPDATE info SET value = '9.0' WHERE key = 'schema_version'",
    "blobs for texts": "UPDATE info SET value = CAST(value AS BLOB)",
    "a last entry of text": "UPDATE info SET value = 'x' WHERE key = 'last_id'",
    "a last entry far away": "UPDATE info SET value = '4611686018427387904' WHERE key = 'last_id'",
    "a first entry far away": "UPDATE entries SET id = 9223372036854775807 WHERE id = 1",
    "a negative entry": "UPDATE entries SET id = -5 WHERE id = 1",
    "a log instead": "PRAGMA journal_mode=WAL",
}
#: Fields of a record's header, each with values it may not have.
RECORD: dict[str, tuple[Any, ...]] = {
    "step": (-1, 2**62, "0", None, 1.5, True),
    "micro": (2**31, "0", None),
    "time": ("now", None, [], 10**400),
    "loss_scale": ("1", None, {}),
    "skipped": (2, "no", None),
    "role": (-1, 200, "update"),
    "sites": (None, {}, [[]], [5], [["a"]], "abc"),
    "parameters": (None, {}, [5], ["a", "a"], [None], ["a"] * 100_000),
}
#: Of a site in it: [name, sequences, smallest normal, non-finite, carried, arrays, after].
SITE: dict[int, tuple[Any, ...]] = {
    0: (None, 5, [], "x" * 200_000, "\ud800"),
    1: (-5, 2**31 - 1, 10**18, "2", None, True, 2.0),
    2: (-1.0, "x", None, float("nan")),
    3: (-1, "x", 2**40),
    4: (-2, None, 2**60),
    5: (None, {}, [[]], [["cell"]], [["nothing", [2, 5]]], [["cell", [2]]], [["cell", [2, -5]]],
        [["cell", [2, 2**31 - 1]]], [["cell", [0, 2**62]]], [["cell", [2, 5]]] * 2, [["cell", "25"]],
        [["cell", [2.0, 5]]]),
    6: (-1, "x", 2**60),
}  # fmt: skip


def cases() -> Iterator[tuple[str, Make, str]]:
    for what, statement in SCHEMAS.items():
        yield what, _sql(statement), "open"
    for field, values in RECORD.items():
        for value in values:
            yield (
                f"{field} {str(value)[:24]}",
                _edited(lambda header, f=field, v=value: header.__setitem__(f, v)),
                "open",
            )
    for place, values in SITE.items():
        for value in values:
            edit: Callable[[Any], None] = lambda header, p=place, v=value: header["sites"][0].__setitem__(p, v)  # noqa: E731
            yield f"field {place} of a site {str(value)[:40]}", _edited(edit), "open"
    for name, text in (("not JSON", b"{"), ("deep", b"[" * 200_000), ("UTF-16", '{"step":0}'.encode("utf-16"))):
        yield f"a header that is {name}", _payload(struct.pack("<I", len(text)) + text), "open"
    yield "a header beyond the payload", _payload(struct.pack("<I", 2**32 - 1) + b"{}"), "open"
    yield "no payload", _payload(b""), "open"
    for length in (-5, 2**31 - 1, 6):
        yield f"a sequence of length {length}", _first_length(length), "open"
    yield "no sequences, many lags", _empty_axes, "open"
    yield "one long among ten thousand short", _ragged, "open"
    yield "five thousand sites", _many_sites, "open"
    yield "rows on one chain of pages", _shared_chain, "open"
    yield "sixty megabytes of lists", _lists, "open"
    yield "a hundred thousand clips", _clips, "open"
    yield "different scalars in every step", _scalars, "open"
    yield "a hundred thousand columns", _wide, "open"
    yield "a rollback journal of another database", _foreign_rollback, "open"
    yield "a rollback journal that names a file", _super_journal, "open"
    yield "a journal of zeros", lambda run, outside: _raw(run, bytes(100_000)), "open"
    yield "a journal that is a segment", lambda run, outside: _raw(run, _segment(outside)), "open"
    yield "half a journal", lambda run, outside: _raw(run, (run / JOURNAL).read_bytes()[:40_000]), "open"


def _sql(script: str) -> Make:
    def make(run: Path, outside: Path) -> None:
        with closing(sqlite3.connect(run / JOURNAL)) as connection:
            connection.executescript(script)
        _resum(run)

    return make


def _resum(run: Path) -> None:
    with suppress(sqlite3.Error):
        resum_journal(run / JOURNAL)


def _put(run: Path, rows: list[tuple[int, bytes]], *, only: bool = False) -> None:
    """Add entries behind those there, or in their place."""
    with closing(sqlite3.connect(run / JOURNAL)) as connection, connection:
        if only:
            connection.execute("DELETE FROM entries")
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM entries").fetchone()
        values = [(last + 1 + number, kind, payload) for number, (kind, payload) in enumerate(rows)]
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, 0)", values)
        connection.execute("UPDATE info SET value = ? WHERE key = 'last_id'", (str(last + len(rows)),))
    _resum(run)


def _join(header: Any, arrays: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + arrays


def _first(run: Path) -> tuple[Any, bytes]:
    """Header and arrays of the first record."""
    with closing(sqlite3.connect(run / JOURNAL)) as connection:
        (payload,) = connection.execute("SELECT payload FROM entries WHERE kind = 1 ORDER BY id").fetchone()
    (length,) = struct.unpack_from("<I", payload)
    return json.loads(payload[4 : 4 + length]), payload[4 + length :]


def _payload(payload: bytes) -> Make:
    return lambda run, outside: _put(run, [(1, payload)])


def _edited(edit: Callable[[Any], None]) -> Make:
    def make(run: Path, outside: Path) -> None:
        header, arrays = _first(run)
        edit(header)
        _put(run, [(1, _join(header, arrays))])

    return make


def _first_length(length: int) -> Make:
    def make(run: Path, outside: Path) -> None:
        header, arrays = _first(run)
        _put(run, [(1, _join(header, struct.pack("<i", length) + arrays[4:]))])

    return make


def _record(sites: list[Any], step: int = 0, arrays: bytes = b"") -> tuple[int, bytes]:
    header = {"step": step, "micro": 0, "time": 0.0, "loss_scale": 1.0, "skipped": False, "role": 0}
    return 1, _join({**header, "sites": sites, "parameters": []}, arrays)


def _empty_axes(run: Path, outside: Path) -> None:
    _put(run, [_record([["a/l0", 0, 1e-38, 0, 0, [["hidden", [0, 2**30]]], 0]])])


def _ragged(run: Path, outside: Path) -> None:
    def one(lags: int, step: int) -> tuple[int, bytes]:
        arrays = struct.pack("<ii", lags, 0) + np.ones(lags).tobytes()
        return _record([["a/l0", 1, 1e-38, 0, 0, [["hidden", [1, lags]]], 0]], step, arrays)

    _put(run, [one(200_000, 0), *(one(1, step) for step in range(1, 10_000))])


def _many_sites(run: Path, outside: Path) -> None:
    _put(run, [_record([[f"m.{k}/l0", 0, 1e-38, 0, 0, [], 0] for k in range(5000)], step) for step in range(3)])


def _clips(run: Path, outside: Path) -> None:
    event = {"step": 1, "kind": "norm", "threshold": 1, "norm_before": 2, "norm_after": 1, "scale": 0.5, "cosine": 1,
             "clipped": 1}  # fmt: skip
    _put(run, [(3, _join(event))] * 100_000)


def _scalars(run: Path, outside: Path) -> None:
    _put(run, [(2, _join({"step": k, "time": 0, "scalars": {f"s{k}": 1.0}})) for k in range(20_000)])


def _wide(run: Path, outside: Path) -> None:
    _put(run, [(2, _join({"step": 0, "time": 0, "scalars": {f"s{k}": 1.0 for k in range(100_000)}}))])


def _lists(run: Path, outside: Path) -> None:
    with closing(sqlite3.connect(run / JOURNAL)) as connection, connection:
        text = "[" + "[],[]," * 10_000_000 + "[]]"
        connection.execute("UPDATE info SET value = ? WHERE key = 'sites'", (text,))
    _resum(run)


def _shared_chain(run: Path, outside: Path) -> None:
    """Seven rows of 16 MiB each, all of them the same pages of a file of 16 MiB."""
    path, size = run / JOURNAL, 16 << 20
    with closing(sqlite3.connect(path)) as connection:
        info = connection.execute("SELECT key, value FROM info").fetchall()
    path.unlink()
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in STATEMENTS:
            connection.execute(statement)
        connection.executemany("INSERT INTO info VALUES (?, ?, 0)", [(k, v) for k, v in info if k != "reserved"])
        for number in range(1, 8):
            connection.execute("INSERT INTO entries VALUES (?, 1, zeroblob(?), 0)", (number, size))
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries'").fetchone()
        connection.execute("UPDATE info SET value = '7' WHERE key = 'last_id'")
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    at = (root - 1) * page
    assert content[at] == 13  # a leaf: all rows are in it
    cells = [struct.unpack_from(">H", content, at + 8 + 2 * k)[0] for k in range(7)]
    ends = [*sorted(cells)[1:], page]
    chain = {cell: ends[sorted(cells).index(cell)] - 4 for cell in cells}
    first = content[at + chain[cells[0]] : at + chain[cells[0]] + 4]
    for cell in cells:
        content[at + chain[cell] : at + chain[cell] + 4] = first
    pages = struct.unpack(">I", first)[0] + size // (page - 4) + 1
    content[28:32] = struct.pack(">I", pages)
    path.write_bytes(content[: pages * page])


def _foreign_rollback(run: Path, outside: Path) -> None:
    (run / f"{JOURNAL}-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + b"\0\0\0\1" * 200)


def _super_journal(run: Path, outside: Path) -> None:
    name = str(outside / "attempt-1/rank-0/segment-00001.h5").encode()
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 1, 0, 8, 512, 4096)
    tail = struct.pack(">I", 1) + name + struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    (run / f"{JOURNAL}-journal").write_bytes(head.ljust(512, b"\0") + tail)


def _segment(outside: Path) -> bytes:
    return (outside / "attempt-1/rank-0/segment-00001.h5").read_bytes()


def _raw(run: Path, content: bytes) -> None:
    (run / JOURNAL).write_bytes(content)
