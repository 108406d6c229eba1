import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from gradscope import open_run
from gradscope.errors import RunError, RunExistsError, RunNotFoundError, SettingError, UnknownNameError
from gradscope.schema import SiteRecord, StepRow
from gradscope.store import RunWriter, codec, sealing, validate
from gradscope.store import worker as worker_module
from gradscope.store.journal import Journal
from gradscope.store.worker import DROPPED
from tests.store.conftest import META, die, record, site_record, wait_until, write_run
from tests.torture.nursery import Nursery


def test_a_small_run_leaves_one_segment_and_its_checksum(sealed, segment):
    left = sorted(path.relative_to(sealed).as_posix() for path in sealed.rglob("*") if path.is_file())
    assert left == [f"attempt-1/rank-0/{segment.name}", f"attempt-1/rank-0/{segment.name}.sha256"]
    done = subprocess.run(["sha256sum", "-c", f"{segment.name}.sha256"], cwd=segment.parent, check=False)
    assert done.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_is_whole_whenever_it_is_read(tmp_path):
    """Another process writes and seals as fast as it can; no reading misses, repeats or damages a record."""
    with Nursery("tests.torture.kills") as nursery:
        writing = nursery.start("write", tmp_path / "run", 50_000)
        seen = []
        try:
            noted = tmp_path / "run.flushed"
            wait_until(lambda: noted.exists() and noted.read_text())
            end = time.monotonic() + 60.0
            segments = (tmp_path / "run").rglob
            while (len(list(segments("segment-*.h5"))) < 2 or len(set(seen)) < 2) and time.monotonic() < end:
                steps = open_run(tmp_path / "run").records("lstm/l0")["step"].tolist()
                assert steps == list(range(len(steps)))
                seen.append(len(steps))
        finally:
            os.kill(writing, signal.SIGKILL)
            nursery.wait(writing)
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
    assert len(list((tmp_path / "run").rglob("segment-*.h5"))) > 1
    assert validate(tmp_path / "run") == []


def test_a_crash_between_sealing_and_deleting_duplicates_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "forget", lambda self, last_id: None)
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    for step in range(3):
        writer.add_record(record(step))
        writer.add_step(StepRow(step, 0.0, {}))
    writer.flush()
    wait_until(lambda: writer._worker._sealed_id == 6)
    die(writer)
    run = open_run(tmp_path / "run")
    assert len(run.parts) == 2
    assert run.records("lstm/l0")["step"].tolist() == [0, 1, 2]
    assert len(run.steps()) == 3


def test_an_interrupted_seal_is_made_up_for(tmp_path, monkeypatch):
    writer = write_run(tmp_path / "run", close=False)

    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "write_segment", full)
        with pytest.raises(RunError, match=r"No space left on device\. Make room"):
            writer.close()
    assert open_run(tmp_path / "run").n_records == 3
    writer.close()  # closed is closed: no second failure
    assert open_run(tmp_path / "run").sealed is False


def test_a_run_directory_is_never_written_twice(sealed):
    before = sorted(sealed.rglob("*"))
    with pytest.raises(RunExistsError, match="restart=True"):
        RunWriter(sealed, META)
    with pytest.raises(RunExistsError):
        RunWriter(sealed, META, rank=0, world_size=2)
    assert sorted(sealed.rglob("*")) == before


def test_an_existing_empty_directory_or_file_is_refused(tmp_path):
    with pytest.raises(RunExistsError):
        RunWriter(tmp_path, META)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunExistsError, match="is a file"):
        RunWriter(tmp_path / "file", META, restart=True)


def test_a_restart_with_more_processes_is_an_attempt_of_its_own(tmp_path):
    for rank in range(2):
        RunWriter(tmp_path / "run", META, rank=rank, world_size=2).close()
    with pytest.raises(RunExistsError):
        RunWriter(tmp_path / "run", META, rank=3, world_size=4)
    attempts = [
        RunWriter(tmp_path / "run", META, rank=r, world_size=4, restart=True).meta.attempt for r in (3, 0, 2, 1)
    ]
    assert attempts == [2, 2, 2, 2]


@pytest.mark.parametrize("wrong", [{"durability": "none"}, {"rank": 1}, {"rank": -1}, {"seal_bytes": 0}])
def test_settings_out_of_range_leave_nothing_behind(tmp_path, wrong):
    with pytest.raises(SettingError):
        RunWriter(tmp_path / "run", META, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_do_not_fit_their_dataset_are_refused(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    two = np.array([1, 1], np.int32)
    with pytest.raises(SettingError, match="hidden has shape"):
        writer.add_record(record(0, {"a/l0": SiteRecord(two, two, 1e-38, {"hidden": np.ones((3, 1))})}))
    with pytest.raises(UnknownNameError, match="Did you mean 'hidden'"):
        writer.add_record(record(0, {"a/l0": SiteRecord(two, two, 1e-38, {"hiden": np.ones((2, 1))})}))
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add_record(record(0))


def test_the_caller_may_reuse_its_arrays(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    data = site_record()
    expected = data.arrays["hidden"].copy()
    writer.add_record(record(0, {"lstm/l0": data}))
    data.arrays["hidden"][:] = -1.0
    writer.close()
    np.testing.assert_array_equal(open_run(tmp_path / "run").array("lstm/l0", "hidden")[0], expected)


@pytest.mark.parametrize("durability", ["default", "full"])
def test_flushed_records_are_seen_at_once(tmp_path, durability):
    writer = RunWriter(tmp_path / "run", META, durability=durability)
    assert open_run(tmp_path / "run").n_records == 0
    writer.add_record(record(0))
    assert open_run(tmp_path / "run").n_records == 0
    writer.flush()
    assert open_run(tmp_path / "run").n_records == 1
    for step in range(worker_module.FLUSH_ENTRIES):
        writer.add_record(record(step))
    wait_until(lambda: open_run(tmp_path / "run").n_records == 1 + worker_module.FLUSH_ENTRIES)
    writer.close()


def test_entries_are_flushed_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "FLUSH_SECONDS", 0.0)
    writer = RunWriter(tmp_path / "run", META)
    writer.add_record(record(0))
    wait_until(lambda: open_run(tmp_path / "run").n_records == 1)
    writer.close()


def test_a_refusing_disk_loses_nothing_until_memory_is_bounded(tmp_path, monkeypatch):
    one = len(codec.encode_record(record(100))) + worker_module._ENTRY_BYTES
    monkeypatch.setattr(worker_module, "MAX_WAITING_BYTES", 100 * one + one // 2)
    writer = RunWriter(tmp_path / "run", META)
    good = Journal.append

    def full(self, rows, info):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "append", full)
    for step in range(100, 250):
        writer.add_record(record(step))
    with pytest.raises(RunError, match=r"disk is full\. Make room"):
        writer.flush()
    assert "Make room" in str(writer.error)
    monkeypatch.setattr(Journal, "append", good)
    writer.close()
    run = open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == list(range(100, 200))
    assert run.lost == {DROPPED: 50}


def test_what_a_full_disk_refused_until_the_end_is_counted(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path / "run", META)
    good = Journal.append

    def no_room_for_entries(self, rows, info):
        if rows:
            raise sqlite3.OperationalError("database or disk is full")
        good(self, rows, info)

    monkeypatch.setattr(Journal, "append", no_room_for_entries)
    for step in range(5):
        writer.add_record(record(step))
    with pytest.raises(RunError, match="Make room"):
        writer.close()
    run = open_run(tmp_path / "run")
    assert (run.n_records, run.lost) == (0, {DROPPED: 5})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_write(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.add_record(record(0))
    child = os.fork()
    if child == 0:
        try:
            writer.add_record(record(1))
            writer.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    writer.close()
    assert open_run(tmp_path / "run").records("lstm/l0")["step"].tolist() == [0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_ten_thousand_records_do_not_grow_memory(tmp_path):
    """They are 28 MB, and go to the journal."""
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1 << 30)
    one = record(0, {"lstm/l0": site_record((20,) * 8)})
    for _ in range(1000):
        writer.add_record(one)
    writer.flush()
    before = _resident_bytes()
    for _ in range(20):  # a loop that does nothing else is faster than any disk
        for _ in range(500):
            writer.add_record(one)
        writer.flush()
    assert _resident_bytes() - before < 5_000_000
    assert open_run(tmp_path / "run").n_records == 11_000


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_one_long_sequence_does_not_pad_thousands_of_short_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(sealing, "BLOCK_BYTES", 1 << 20)
    writer = RunWriter(tmp_path / "run", META)
    for step in range(200):
        writer.add_record(record(step, {"a/l0": site_record((20_000 if step == 100 else 2,), quantities=("hidden",))}))
    writer.close()
    segments = list((tmp_path / "run/attempt-1/rank-0").glob("segment-*.h5"))
    assert 1 < len(segments) < 50
    run = open_run(tmp_path / "run")
    assert run.sealed
    assert len(run.norms("a/l0", "hidden")) == 199 * 2 + 20_000
    assert validate(tmp_path / "run") == []


def test_a_run_that_never_began_is_not_found(tmp_path):
    (tmp_path / "run/attempt-1/rank-0").mkdir(parents=True)
    with pytest.raises(RunNotFoundError):
        open_run(tmp_path / "run")
