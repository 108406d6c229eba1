"""The runs that crafted and mutated ones begin as."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from gradscope.schema import ClipEvent, Coverage, StepRow
from gradscope.store import RunWriter, pack
from tests.store.conftest import META, SITES, die, record, site_record

#: Turns a good run directory (its first argument) into a bad one; the second is somebody else's run. Returns what is
#: read, where that is not the directory.
Make = Callable[[Path, Path], "Path | None"]
SEGMENT = "attempt-1/rank-0/segment-00001.h5"
JOURNAL = "attempt-1/rank-0/journal.sqlite"
SITE = "sites/lstm/l0"


class Bases:
    """Makes each kind once: ``sealed``, ``open`` (its process died), ``both`` (segments and a journal), ``torn`` (it
    died in a commit) and ``packed``.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        home.mkdir()

    def get(self, kind: str) -> Path:
        """A run directory; that of ``packed`` holds one file, ``run.h5``."""
        path = self._home / kind
        if not path.exists():
            if kind == "packed":
                path.mkdir()
                pack(self.get("both"), path / "run.h5")
            elif kind == "torn":
                _tear(self.get("open"), path)
            else:
                _write(path, kind)
        return path


def _write(path: Path, kind: str) -> None:
    writer = RunWriter(path, META, seal_bytes=1 if kind == "both" else 64 << 20)
    writer.set_sites(SITES)
    writer.set_coverage([Coverage("lstm/l0", "recorded", count=3), Coverage("x/l0", "missing", "a reason", 1)])
    for step in range(3):
        data = site_record((5, 3), seed=step, quantities=("hidden", "cell", "gates", "weight"))
        data.arrays["hidden_tensor"] = np.arange(2 * 5 * 4, dtype=np.float64).reshape(2, 5, 4)
        writer.add_record(record(10 * step, {"lstm/l0": data, "head/l0": site_record((4, 2), seed=9 + step)}))
        writer.add_step(StepRow(step, 100.0 + step, {"loss": 1.0 / (step + 1), "lr": 0.1}))
        writer.add_clip(ClipEvent(step, "norm", 1.0, 2.0, 1.0, 0.5, float("nan"), 1.0, parameters=4))
        if kind == "both" and step < 2:
            writer.flush()
            wait = writer.path / f"segment-0000{step + 1}.h5"
            while not wait.exists():
                writer.flush()
    writer.flush()
    if kind == "sealed":
        writer.close()
    else:
        die(writer)


def _tear(source: Path, target: Path) -> None:
    """A copy in the middle of a commit: pages of it are in the database, and SQLite's rollback journal beside it."""
    journal = target / JOURNAL
    journal.parent.mkdir(parents=True)
    work = source.with_name("torn-at-work")
    shutil.copytree(source, work)
    with closing(sqlite3.connect(work / JOURNAL, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        connection.execute("UPDATE entries SET payload = zeroblob(100000)")
        for suffix in ("", "-journal"):
            shutil.copy(work / f"{JOURNAL}{suffix}", f"{journal}{suffix}")
        connection.execute("ROLLBACK")
    shutil.rmtree(work)
