"""Give a file that was changed on purpose the checksums it would have: what is tried then is what lies behind them."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np

from gradscope.store import sums
from gradscope.store.journal import info_crc, row_crc
from gradscope.store.part import DATASET_AXIS
from gradscope.store.segment import DESCRIPTION, checksum_path


def resum_segment(path: Path) -> None:
    """Every checksum in an HDF5 file, as far as its arrays can be read, and the SHA-256 beside it."""
    with h5py.File(path, "r+", libver=("v108", "v110")) as file:
        file.visititems(lambda _, found: _resum_site(found) if isinstance(found, h5py.Group) else None)
        file.visititems(lambda _, found: _resum_array(found) if isinstance(found, h5py.Dataset) else None)
        with contextlib.suppress(KeyError, ValueError, AttributeError, TypeError):
            texts = {name: bytes(file.attrs[name]).decode() for name in DESCRIPTION}
            numbers = {name: int(file.attrs[name]) for name in ("n_records", "first_id", "last_id", "closing")}
            sums.state(file, sums.crc_of_description(texts, numbers))
    sum_beside(path)


def sum_beside(path: Path) -> None:
    """Only the SHA-256."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    checksum_path(path).write_text(f"{digest}  {path.name}\n")


def _resum_array(dataset: h5py.Dataset) -> None:
    if sums.ATTRIBUTE in dataset.attrs:
        with contextlib.suppress(OSError, ValueError, TypeError, MemoryError):
            sums.state(dataset, sums.crc(np.asarray(dataset[()])))


def _resum_site(group: h5py.Group) -> None:
    with contextlib.suppress(KeyError, OSError, ValueError, TypeError, IndexError, AttributeError, MemoryError):
        stated = group[sums.CHECKSUM]
        for column, name in enumerate(group[DATASET_AXIS][()]):
            if name.decode() in group:
                stated[:, column] = sums.crc_of_rows(np.asarray(group[name.decode()][()]))


def resum_journal(path: Path) -> None:
    """Every checksum in a journal; of no view, which may never end."""
    with closing(sqlite3.connect(path)) as connection, connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'view' AND name = 'entries'").fetchone():
            return
        rows = connection.execute("SELECT id, kind, payload FROM entries").fetchall()
        info = connection.execute("SELECT key, value FROM info").fetchall()
        for row in rows:
            if isinstance(row[2], bytes) and isinstance(row[1], int):
                connection.execute("UPDATE entries SET crc = ? WHERE id = ?", (row_crc(row), row[0]))
        for key, value in info:
            if isinstance(key, str) and isinstance(value, str):
                crc = info_crc(key, value)
                connection.execute("UPDATE info SET crc = ? WHERE key = ?", (crc, key))
