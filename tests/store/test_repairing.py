import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from gradscope import open_run
from gradscope.errors import RunDamagedError, RunError, RunNotFoundError
from gradscope.schema import Coverage
from gradscope.store import RunWriter, pack, repair, sealing, validate
from gradscope.store.layout import RankDirectory
from tests.store.conftest import META, SITES, die, record, wait_until_sealed, write_run


@pytest.fixture
def dead(tmp_path):
    """A run whose process died: one sealed segment, four records in the journal, nobody writing."""
    writer = RunWriter(tmp_path / "dead", META, seal_bytes=1)
    writer.set_sites(SITES)
    writer.set_coverage([Coverage("lstm/l0", "recorded", count=9)])
    for step in range(5):
        writer.add_record(record(step))
    writer.flush()
    wait_until_sealed(writer)
    writer._worker._seal_bytes = 1 << 30
    for step in range(5, 9):
        writer.add_record(record(step))
    writer.flush()
    die(writer)
    return tmp_path / "dead"


def test_a_dead_process_journal_is_sealed(dead):
    before = open_run(dead)
    report = repair(dead)
    after = open_run(dead)
    assert (before.sealed, after.sealed) == (False, True)
    assert report.recovered == 4
    assert report.lost == []
    assert after.records("lstm/l0")["step"].tolist() == list(range(9))
    assert after.coverage == before.coverage
    assert not list(dead.rglob("journal*"))
    assert validate(dead) == []


def test_repairing_a_good_run_changes_nothing(sealed):
    before = {path: path.read_bytes() for path in sealed.rglob("*") if path.is_file()}
    assert repair(sealed).actions == []
    assert {path: path.read_bytes() for path in sealed.rglob("*") if path.is_file()} == before


def test_a_living_process_is_left_alone(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    assert "left alone" in repair(tmp_path / "run").actions[0]
    writer.add_record(record(3))
    writer.close()
    assert open_run(tmp_path / "run").n_records == 4


def test_a_damaged_segment_is_set_aside_and_the_rest_kept(dead):
    repair(dead)
    first = dead / "attempt-1/rank-0/segment-00001.h5"
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(RunDamagedError, match="gradscope repair"):
        open_run(dead)
    report = repair(dead)
    assert "segment-00001.h5" in report.lost[0]
    assert first.with_name("segment-00001.h5.damaged").stat().st_size == 500
    assert open_run(dead).records("lstm/l0")["step"].tolist() == [5, 6, 7, 8]


def test_entries_that_cannot_be_read_are_left_behind_in_the_old_journal(dead):
    journal = dead / "attempt-1/rank-0/journal.sqlite"
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE entries SET payload = x'01' WHERE id = 7")
    report = repair(dead)
    assert report.recovered == 3
    assert "journal.sqlite" in report.lost[0]
    assert open_run(dead).records("lstm/l0")["step"].tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert journal.with_name("journal.sqlite.damaged").exists()


def test_a_torn_database_keeps_what_lies_before_the_tear(tmp_path):
    writer = write_run(tmp_path / "run", records=300, close=False)
    die(writer)
    journal = tmp_path / "run/attempt-1/rank-0/journal.sqlite"
    content = bytearray(journal.read_bytes())
    middle = len(content) // 2 // 16384 * 16384
    content[middle : middle + 16384] = b"\xff" * 16384
    journal.write_bytes(content)
    report = repair(tmp_path / "run")
    assert 100 < report.recovered < 300
    assert report.lost
    run = open_run(tmp_path / "run")
    assert run.n_records == report.recovered
    assert run.sites == ("lstm/l0",)


def test_a_disk_that_refuses_the_repair_loses_nothing(dead, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunError, match=r"No space left on device\. No record was removed"):
            repair(dead)
    assert open_run(dead).n_records == 9
    assert repair(dead).recovered == 4


def test_leftovers_and_missing_checksums_are_put_right(sealed, segment):
    segment.with_name(".segment-00002.h5.99.tmp").write_bytes(b"half")
    segment.with_name(segment.name + ".sha256").unlink()
    assert len(repair(sealed).actions) == 2
    assert validate(sealed) == []


def test_a_run_without_an_end_is_closed(tmp_path):
    writer = RunWriter(tmp_path / "run", META, seal_bytes=1)
    writer.add_record(record(0))
    writer.flush()
    wait_until_sealed(writer)
    writer.close()
    (tmp_path / "run/attempt-1/rank-0/segment-00002.h5").unlink()
    assert not open_run(tmp_path / "run").sealed
    assert "end" in repair(tmp_path / "run").lost[0]
    assert open_run(tmp_path / "run").sealed


def test_a_single_damaged_file_cannot_be_repaired(sealed, tmp_path):
    packed = pack(sealed, tmp_path / "packed.h5")
    assert repair(packed).actions == []
    packed.write_bytes(packed.read_bytes()[:1000])
    with pytest.raises(RunDamagedError, match="copy it again"):
        repair(packed)
    with pytest.raises(RunNotFoundError):
        repair(tmp_path / "nowhere")


def test_a_segment_that_was_sealed_by_a_killed_process_is_not_sealed_again(dead):
    directory = RankDirectory(1, 0, dead / "attempt-1/rank-0")
    before, priority = open_run(dead).records("lstm/l0")["step"].tolist(), os.nice(0)
    sealing.main(str(directory.path), "1", "0", "0", "1000")
    count = len(directory.segments())
    sealing.main(str(directory.path), "1", "0", "0", "1000")  # as if the first had been killed before it told
    assert len(directory.segments()) == count
    assert open_run(dead).records("lstm/l0")["step"].tolist() == before
    assert os.nice(0) == priority


def test_a_segment_that_repeats_another_is_refused_and_set_aside(dead):
    first = dead / "attempt-1/rank-0/segment-00001.h5"
    before = open_run(dead).records("lstm/l0")["step"].tolist()
    for suffix in ("", ".sha256"):
        shutil.copy(f"{first}{suffix}", f"{first.with_name('segment-00002.h5')}{suffix}")
    with pytest.raises(RunDamagedError, match=r"segment-00002.*the segment before it holds too"):
        open_run(dead)
    assert any("repeats entries" in problem for problem in validate(dead))
    report = repair(dead)
    assert report.lost == []
    assert open_run(dead).records("lstm/l0")["step"].tolist() == before
