"""Files from a stranger: each is refused before anything outside it is opened or anything large is read."""

import os
import shutil
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from gradscope import open_run
from gradscope.errors import RunDamagedError, RunError, SettingError, UnsafeFileError
from gradscope.schema import Record
from gradscope.store import guard, repair, validate
from gradscope.store.budget import LIMITS, Limit
from gradscope.store.codec import CorruptEntryError, decode, encode_record
from gradscope.store.paths import check_file
from tests.store.conftest import record, write_run

SITE = "sites/lstm/l0"


def _external_link(file):
    file[f"{SITE}/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft_link(file):
    file[f"{SITE}/again"] = h5py.SoftLink("/steps/time")


def _soft_link_in_place_of_the_sites(file):
    file.move("sites", "hidden_sites")
    file["sites"] = h5py.SoftLink("/hidden_sites")


def _hard_link_cycle(file):
    file[f"{SITE}/loop"] = file["sites"]


def _virtual_dataset(file):
    layout = h5py.VirtualLayout((3, 2, 5), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", (3, 2, 5))
    del file[f"{SITE}/hidden"]
    file.create_virtual_dataset(f"{SITE}/hidden", layout)


def _external_storage(file):
    del file[f"{SITE}/hidden"]
    file.create_dataset(f"{SITE}/hidden", (3, 2, 5), "f8", external=[("/etc/passwd", 0, 240)])


def _filter_plugin(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((2, 2, 2))
    plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL)  # LZ4, which HDF5 would load from its plug-in path
    space = h5py.h5s.create_simple((3, 2, 5))
    h5py.h5d.create(file[SITE].id, b"cell_carry", h5py.h5t.IEEE_F64LE, space, plist)


def _other_filter(file):
    file.create_dataset(f"{SITE}/cell_carry", (3, 2, 5), "i4", chunks=True, scaleoffset=2)


def _objects(file):
    file.create_dataset("steps/reference", (1,), h5py.ref_dtype)


def _variable_length_text(file):
    file.create_dataset("steps/text", (1,), h5py.string_dtype())


def _compound(file):
    file.create_dataset("steps/pairs", (1,), np.dtype([("a", "f8"), ("b", "i4")]))


def _named_type(file):
    file["steps/type"] = np.dtype("f8")


def _huge(file):
    file.create_dataset(f"{SITE}/cell_carry", (10**6, 10**4, 10**3), "f8", chunks=(10, 10, 10))


def _never_written(file):
    file.create_dataset(f"{SITE}/cell_carry", (3, 2, 5 * 10**6), "f8", chunks=(3, 2, 10**6))


def _tiny_chunks(file):
    file.create_dataset("steps/many", (2**21,), "i1", chunks=(1,))


def _huge_chunk(file):
    file.create_dataset("steps/chunk", (10,), "f8", maxshape=(None,), chunks=(2**26,))


def _deep(file):
    file.create_group("sites/" + "/".join("abcdefghijkl"))


def _no_extent(file):
    file.create_dataset("steps/nothing", data=h5py.Empty("f8"))


def _variable_length_attribute(file):
    file.attrs["metas"] = "[]"


HOSTILE = [
    value for name, value in list(globals().items()) if name.startswith("_") and getattr(value, "__code__", None)
]


@pytest.mark.parametrize("tamper", HOSTILE, ids=lambda tamper: tamper.__name__.strip("_"))
def test_a_hostile_segment_is_refused(segment, tamper):
    with h5py.File(segment, "r+", libver=("v108", "v110")) as file:
        tamper(file)
    with pytest.raises(UnsafeFileError, match=r"segment-00001\.h5|attribute"):
        open_run(segment)
    assert len(validate(segment.parents[2])) >= 1


def test_every_hostile_case_is_collected():
    assert len(HOSTILE) == 19


def test_a_link_out_of_the_run_is_not_followed(sealed, segment, tmp_path):
    outside = tmp_path / "outside.h5"
    segment.rename(outside)
    segment.symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="is a link"):
        open_run(sealed)
    assert any("is a link" in problem for problem in validate(sealed))


def test_a_linked_directory_is_not_followed_out_of_the_run(sealed, tmp_path):
    (sealed / "attempt-1").rename(tmp_path / "elsewhere")
    (sealed / "attempt-1").symlink_to(tmp_path / "elsewhere")
    for reading in (open_run, validate, repair):
        with pytest.raises(UnsafeFileError, match="is a link"):
            reading(sealed)


def test_a_users_own_link_to_a_run_is_followed(sealed, segment, tmp_path):
    (tmp_path / "link").symlink_to(sealed)
    (tmp_path / "file.h5").symlink_to(segment)
    assert open_run(tmp_path / "link").n_records == open_run(tmp_path / "file.h5").n_records == 3


def test_what_is_no_ordinary_file_is_not_opened(sealed, segment):
    segment.unlink()
    os.mkfifo(segment)
    with pytest.raises(UnsafeFileError, match="ordinary"):
        open_run(sealed)  # would wait for ever


def test_a_file_of_holes_is_refused_and_one_not_yet_written_out_is_not(tmp_path, monkeypatch):
    hollow, full = tmp_path / "hollow", tmp_path / "full"
    with open(hollow, "wb") as file:
        file.truncate(64 << 20)
    full.write_bytes(os.urandom(3 << 20))
    with pytest.raises(UnsafeFileError, match="consists of holes"):
        check_file(hollow)
    # A file system may count no block before it has written them.
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path: SimpleNamespace(**_fields(real(path)) | {"st_blocks": 0}))
    assert check_file(full).st_size == 3 << 20
    with pytest.raises(UnsafeFileError, match="consists of holes"):
        check_file(hollow)


def _fields(status):
    return {name: getattr(status, name) for name in ("st_mode", "st_size")}


def test_repair_removes_nothing_behind_a_link(sealed, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".segment-00001.h5.7.tmp").write_text("somebody's")
    (sealed / "attempt-1/rank-1").symlink_to(elsewhere)
    with pytest.raises(UnsafeFileError, match="rank-1' is a link"):
        repair(sealed)
    assert (elsewhere / ".segment-00001.h5.7.tmp").exists()


def test_repair_removes_only_what_gradscope_left(sealed, segment):
    (segment.parent / ".segment-00001.h5.7.tmp").write_text("")
    (segment.parent / ".mine.tmp").write_text("")
    (segment.parent / ".journal.sqlite.tmp").symlink_to(segment)
    repair(sealed)
    left = sorted(path.name for path in segment.parent.glob(".*"))
    assert left == [".journal.sqlite.tmp", ".mine.tmp"]


@pytest.mark.parametrize("name", ["segment-00001.h5.sha256", "journal.sqlite", "journal.sqlite-journal"])
def test_what_stands_beside_a_segment_must_be_an_ordinary_file(sealed, segment, name):
    path = segment.with_name(name)
    path.unlink(missing_ok=True)
    if name.endswith("-journal"):
        path.with_name("journal.sqlite").write_bytes(b"")
    os.mkfifo(path)
    assert any("not an ordinary file" in problem for problem in validate(sealed))
    with pytest.raises(UnsafeFileError, match="not an ordinary file"):
        repair(sealed)


def test_a_run_that_costs_too_much_names_the_limit_and_the_remedy(sealed, monkeypatch):
    monkeypatch.setitem(LIMITS, "sites", Limit("sites", 0, 0))
    with pytest.raises(UnsafeFileError, match=r"segment-00001\.h5.*1 sites.*may hold 0\. .*GRADSCOPE_BUDGET=8"):
        open_run(sealed)
    monkeypatch.setitem(LIMITS, "sites", Limit("sites", 0.5, 0))
    assert open_run(sealed, budget=2).n_records == 3
    monkeypatch.setenv("GRADSCOPE_BUDGET", "2")
    assert open_run(sealed).n_records == 3


@pytest.mark.parametrize("command", [validate, repair])
def test_a_file_is_looked_through_once_and_no_further_than_its_budget(sealed, segment, monkeypatch, command):
    with h5py.File(segment, "r+") as file:
        for number in range(30):
            file.copy("sites/lstm/l0", file["sites"], f"m{number}")
    monkeypatch.setitem(LIMITS, "sites", Limit("sites", 10.9, 0))
    looked = []
    whole = guard._Walk.group
    monkeypatch.setattr(guard._Walk, "group", lambda walk, *given: looked.append(given[1]) or whole(walk, *given))
    with pytest.raises(RunError, match=r"brings the run to 11 sites.*may hold 10\. "):
        raise RunError(*command(sealed))  # what validate says, repair raises
    assert len(looked) == len(set(looked)) < 20


@pytest.mark.parametrize("factor", ["0", "-1", "many", "inf", "nan"])
def test_a_budget_that_is_no_positive_number_is_refused(sealed, monkeypatch, factor):
    monkeypatch.setenv("GRADSCOPE_BUDGET", factor)
    with pytest.raises(SettingError, match="GRADSCOPE_BUDGET must be a positive number"):
        open_run(sealed)


# --- journals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    write_run(tmp_path / "grown", close=False)
    source = tmp_path / "grown/attempt-1/rank-0/journal.sqlite"
    target = tmp_path / "copy"
    target.mkdir()
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target / "journal.sqlite")) as new:
        old.backup(new)
    return target / "journal.sqlite"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM info; END",
        "CREATE VIEW v AS SELECT load_extension('/tmp/evil')",
        "CREATE TABLE more (x)",
        "ALTER TABLE entries ADD COLUMN x GENERATED ALWAYS AS (kind + 1)",
        "DROP TABLE info",
    ],
)
def test_a_journal_with_anything_of_its_own_is_refused(journal, statement):
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute(statement)
    with pytest.raises(UnsafeFileError, match="not a gradscope journal"):
        open_run(journal.parent)


def test_a_view_in_place_of_a_table_is_refused(journal):
    with closing(sqlite3.connect(journal)) as connection:
        connection.executescript(
            "DROP TABLE entries; CREATE VIEW entries AS"
            " WITH RECURSIVE c(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM c)"
            " SELECT id, 1 AS kind, zeroblob(1000) AS payload FROM c"
        )
    with pytest.raises(UnsafeFileError):
        open_run(journal.parent)


def test_a_row_beyond_the_limit_is_not_loaded(journal, monkeypatch):
    monkeypatch.setattr(guard, "MAX_ROW_BYTES", 10_000)
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("INSERT INTO entries VALUES (1000, 1, zeroblob(20000), 0)")
    with pytest.raises(RunError, match=r"unreasonably large|too big"):
        open_run(journal.parent)


def test_a_journal_that_is_no_database_is_damaged(journal):
    whole = journal.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"\0" * len(whole)):
        journal.write_bytes(content)
        with pytest.raises(RunError, match=r"journal\.sqlite"):
            open_run(journal.parent)


def test_a_linked_write_ahead_log_is_refused(journal, tmp_path):
    (tmp_path / "wal").write_bytes(b"")
    journal.with_name("journal.sqlite-wal").symlink_to(tmp_path / "wal")
    with pytest.raises(UnsafeFileError, match="link"):
        open_run(journal.parent)


def test_reading_a_strangers_journal_leaves_its_directory_alone(journal):
    before = journal.read_bytes()
    open_run(journal.parent)
    assert journal.read_bytes() == before


@pytest.mark.parametrize("left", ["closed", "killed"])
def test_a_journal_with_a_write_ahead_log_is_read_in_a_copy(journal, tmp_path, left):
    """As versions before 1.2 left one: SQLite would put the index of the log beside it, and map it into memory."""
    records = open_run(journal.parent).records(open_run(journal.parent).sites[0])
    run = tmp_path / "run"
    run.mkdir()
    with closing(sqlite3.connect(journal, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("DELETE FROM info WHERE key = 'reserved'")
        for suffix in ("", "-wal") if left == "killed" else ():
            shutil.copy(f"{journal}{suffix}", run)
    if left == "closed":
        shutil.copy(journal, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert len(before) == (2 if left == "killed" else 1)
    found = open_run(run)
    assert found.records(found.sites[0]).equals(records)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_an_entry_cannot_announce_more_than_it_holds():
    whole = encode_record(record(0))
    assert isinstance(decode(1, whole), Record)
    random = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(whole[: random.integers(0, len(whole) + 1)])
        for position in random.integers(0, max(len(broken), 1), 3):
            broken[position : position + 1] = bytes([random.integers(0, 256)])
        try:
            decode(int(random.integers(0, 5)), bytes(broken))
        except CorruptEntryError:
            continue


@pytest.mark.parametrize("size", ["1e18", "-1", "100000000000000000000", "true", "null", '"5"'])
def test_an_entry_of_absurd_shape_is_corrupt(size):
    header = (
        '{"step":0,"micro":0,"time":0,"loss_scale":1,"skipped":false,"parameters":[],'
        f'"sites":[["a/l0",{size},1e-38,0,0,[]]]}}'
    ).encode()
    with pytest.raises(CorruptEntryError):
        decode(1, len(header).to_bytes(4, "little") + header)


def test_stacking_a_small_journal_to_a_huge_array_is_refused(journal):
    """A sequence axis of length 0 can announce any number of lags without a single byte."""
    header = (
        b'{"step":0,"micro":0,"time":0,"loss_scale":1,"skipped":false,"parameters":[],'
        b'"sites":[["a/l0",0,1e-38,0,0,[["hidden",[0,4611686018427387904]]]]]}'
    )
    with closing(sqlite3.connect(journal)) as connection, connection:
        payload = len(header).to_bytes(4, "little") + header
        connection.execute("INSERT INTO entries VALUES (1000, 1, ?, 0)", (payload,))
    with pytest.raises(RunError):
        open_run(journal.parent).array("a/l0", "hidden")


def test_a_damaged_run_names_file_and_remedy(journal):
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("UPDATE entries SET payload = x'00'")
    with pytest.raises(RunDamagedError, match=r"journal\.sqlite.*gradscope repair"):
        open_run(journal.parent)
