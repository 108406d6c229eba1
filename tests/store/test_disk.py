"""What a full or failing disk, and a process that dies in the middle of a commit, leave behind."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gradscope import open_run
from gradscope.errors import RunError, UnsafeFileError
from gradscope.store import RunWriter, guard, repair, validate
from gradscope.store import worker as worker_module
from gradscope.store import writer as writer_module
from gradscope.store.beginning import said
from gradscope.store.journal import Journal
from tests.store.conftest import META, record, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def torn(tmp_path):
    """A run whose process died in the middle of a commit, after three records."""
    write_run(tmp_path / "run", close=False)
    source = tmp_path / "run/attempt-1/rank-0/journal.sqlite"
    target = tmp_path / "torn/attempt-1/rank-0"
    target.mkdir(parents=True)
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA cache_size=1")  # so that it is on the disk before it is committed
        connection.execute("BEGIN")
        connection.execute("UPDATE entries SET payload = zeroblob(100000)")
        connection.executemany("INSERT INTO entries VALUES (?, 1, ?, 0)", [(100 + k, b"x" * 100_000) for k in range(9)])
        for suffix in ("", "-journal"):
            shutil.copy(source.with_name(source.name + suffix), target)
        connection.execute("ROLLBACK")
    assert b"x" * 1000 in (target / "journal.sqlite").read_bytes()
    return tmp_path / "torn"


def test_half_a_commit_is_undone_by_whoever_reads_and_changes_nothing(torn):
    before = {path: path.read_bytes() for path in torn.rglob("*") if path.is_file()}
    assert open_run(torn).records("lstm/l0")["step"].tolist() == [0, 1, 2]
    assert validate(torn) == []
    assert {path: path.read_bytes() for path in torn.rglob("*") if path.is_file()} == before


def test_half_a_commit_is_repaired(torn):
    report = repair(torn)
    assert (report.recovered, report.lost) == (3, [])
    assert open_run(torn).sealed
    assert not list(torn.rglob("journal*"))
    assert validate(torn) == []


def test_a_rollback_journal_that_leads_elsewhere_is_refused(torn, tmp_path):
    """SQLite would open the file that it names, and delete it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    beside = torn / "attempt-1/rank-0/journal.sqlite-journal"
    name = str(victim).encode()
    pointer = (0).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
    beside.write_bytes(beside.read_bytes() + pointer + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(UnsafeFileError, match="another file"):
        open_run(torn)
    assert victim.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_for_a_rollback_journal_is_refused(torn):
    beside = torn / "attempt-1/rank-0/journal.sqlite-journal"
    beside.unlink()
    os.mkfifo(beside)
    with pytest.raises(UnsafeFileError, match="not an ordinary file"):
        open_run(torn)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
@pytest.mark.parametrize("limit", [200_000, 400_000, 700_000])
def test_a_disk_that_fills_up_keeps_what_fits_and_counts_the_rest(tmp_path, limit):
    """Where a file may not grow any more, the count still finds room."""
    code = (
        "import resource, sys\nfrom gradscope.errors import RunError\nfrom gradscope.store import RunWriter\n"
        "from tests.store.conftest import META, record, site_record\n"
        f"writer = RunWriter({str(tmp_path / 'run')!r}, META)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "for step in range(40):\n"
        "    writer.add_record(record(step, {'lstm/l0': site_record((200,) * 8, seed=step)}))\n"
        "    if step % 4 == 3:\n"
        "        try: writer.flush()\n"
        "        except RunError: pass\n"
        "try: writer.close()\n"
        "except RunError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "free space" in done.stderr
    run = open_run(tmp_path / "run")
    assert (run.n_records > 0) == (limit > 300_000)
    assert run.records("lstm/l0")["step"].tolist() == list(range(run.n_records)) if run.n_records else True
    assert run.n_records + sum(run.lost.values()) == 40
    assert repair(tmp_path / "run").recovered == run.n_records
    assert sum(open_run(tmp_path / "run").lost.values()) == 40 - run.n_records


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "failing",
    [
        (Path, "mkdir", OSError(30, "Read-only file system")),
        (sqlite3, "connect", sqlite3.OperationalError("unable to open database file")),
        (os, "replace", OSError(28, "No space left on device")),
        (Journal, "_reserve", sqlite3.OperationalError("database or disk is full")),
        (writer_module, "lock_directory", OSError(24, "Too many open files")),
        (writer_module, "sync_directory", OSError(5, "Input/output error")),
        (threading.Thread, "start", RuntimeError("can't start new thread")),
    ],
    ids=lambda failing: failing[1],
)
def test_a_run_that_cannot_begin_leaves_nothing_behind_and_says_what_to_do(tmp_path, monkeypatch, failing):
    place, name, error = failing

    def fail(*_args, **_options):
        raise error

    descriptors = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(RunError, match="cannot begin the run"):
            RunWriter(tmp_path / "deep/run", META, durability="full")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    RunWriter(tmp_path / "deep/run", META).close()


def test_a_refusal_is_told_with_what_to_do():
    assert "Make room" in said(OSError(28, "No space left on device"))
    assert "ulimit" in said(OSError(24, "Too many open files"))
    assert "record to another directory" in said(NotADirectoryError(20, "Not a directory"))
    assert "Leave it in place" in said(sqlite3.OperationalError("unable to open database file"))
    assert "Check the disk" in said(sqlite3.OperationalError("disk I/O error"))
    assert "Something else" in said(sqlite3.DatabaseError("file is not a database"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_a_journal_that_cannot_be_opened_for_want_of_descriptors_is_told_so():
    """SQLite says the same of a file that is not there."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        words = said(sqlite3.OperationalError("unable to open database file"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit" in words


def test_a_run_that_could_not_be_read_is_not_closed_as_if_it_could(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    taken = writer.path / "segment-00001.h5"
    taken.mkdir()
    with pytest.raises(RunError, match=r"not an ordinary file.*Something else"):
        writer.close()
    taken.rmdir()
    assert open_run(tmp_path / "run").n_records == 3


def test_rows_that_vanish_from_a_journal_are_counted(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    with closing(sqlite3.connect(writer.path / "journal.sqlite", isolation_level=None)) as connection:
        connection.execute("DELETE FROM entries WHERE id IN (1, 4)")
    writer.add_record(record(3))
    writer.close()
    run = open_run(tmp_path / "run")
    assert run.sealed
    assert run.records("lstm/l0")["step"].tolist() == [2, 3]
    assert list(run.lost.values()) == [2]


def test_full_durability_syncs_every_directory_that_has_a_new_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(writer_module, "sync_directory", lambda path: synced.append(path))
    RunWriter(tmp_path / "a/b/run", META, durability="full").close()
    run = tmp_path / "a/b/run"
    assert set(synced) == {tmp_path, run.parents[1], run.parent, run, run / "attempt-1", run / "attempt-1/rank-0"}


def test_the_directories_of_a_run_are_synced_once_it_is_worth_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(worker_module, "sync_directory", synced.append)
    RunWriter(tmp_path / "short", META).close()
    assert set(synced) == {tmp_path / "short/attempt-1/rank-0"}
    monkeypatch.setattr(worker_module, "FLUSH_SECONDS", 0.0)
    RunWriter(tmp_path / "long", META).close()
    assert {tmp_path, tmp_path / "long", tmp_path / "long/attempt-1"} <= set(synced)


def test_a_reader_in_the_middle_of_reading_delays_a_commit_and_costs_nothing(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    reader = guard.connect(writer.path / "journal.sqlite")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM entries").fetchall()
    writer.add_record(record(3))
    flushing = threading.Thread(target=writer.flush)
    flushing.start()
    flushing.join(0.2)
    assert flushing.is_alive()
    reader.execute("COMMIT")
    reader.close()
    flushing.join(60)
    assert open_run(tmp_path / "run").n_records == 4
    writer.close()
    assert open_run(tmp_path / "run").lost == {}


def test_a_run_whose_directory_is_removed_says_so_and_stops_nobody(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    shutil.rmtree(tmp_path / "run")
    writer.add_record(record(3))
    with pytest.raises(RunError, match="leave it in place"):
        writer.close()
