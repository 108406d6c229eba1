import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from gradscope import open_run
from gradscope.errors import RunError, RunExistsError, RunNotFoundError
from gradscope.store import RunWriter, pack, sealing, segment, validate
from gradscope.store.locking import lock_directory
from tests.store.conftest import META, SITES, record, site_record, write_run


@pytest.mark.parametrize("growing", [False, True])
def test_a_packed_run_reads_as_the_directory_does(tmp_path, growing, monkeypatch):
    monkeypatch.setattr(sealing, "STRETCH_BYTES", 1000)
    for attempt in (1, 2):
        for rank in (0, 1):
            writer = RunWriter(tmp_path / "run", META, rank=rank, world_size=2, restart=attempt > 1)
            writer.set_sites(SITES)
            writer.add_lost("a bug", 2)
            for step in range(attempt + rank):
                data = site_record((step + 1, attempt), seed=step, quantities=("cell", "gates") if rank else ("cell",))
                writer.add_record(record(step, {"lstm/l0": data}))
            writer.flush()
            if not growing:
                writer.close()
    out = pack(tmp_path / "run", tmp_path / "one.h5")
    directory, file = open_run(tmp_path / "run"), open_run(out)
    assert file.name == "one"
    assert file.sealed
    assert (file.metas, file.lost, file.coverage) == (directory.metas, directory.lost, directory.coverage)
    assert file.n_records == directory.n_records == 8
    for quantity in ("cell", "gates"):
        assert file.norms("lstm/l0", quantity).equals(directory.norms("lstm/l0", quantity))
    assert file.records("lstm/l0").equals(directory.records("lstm/l0"))
    assert file.parameters().equals(directory.parameters())
    assert validate(out) == []
    with xr.open_dataset(out, group="sites/lstm/l0", engine="h5netcdf") as site:
        assert site["attempt"].values.tolist() == [1, 1, 1, 2, 2, 2, 2, 2]


def test_packing_never_overwrites(sealed, tmp_path):
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(RunExistsError, match="never overwritten"):
        pack(sealed, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").read_text() == "mine"
    with pytest.raises(RunNotFoundError, match="no directory"):
        pack(sealed, tmp_path / "nowhere" / "out.h5")


def test_a_failed_pack_leaves_nothing(sealed, segment, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(RunError, match="No space"):
        pack(sealed, tmp_path / "out.h5")
    assert set(tmp_path.iterdir()) == before


def test_packing_a_packed_run_changes_nothing(sealed, tmp_path):
    once = pack(sealed, tmp_path / "once.h5")
    twice = pack(once, tmp_path / "twice.h5")
    assert once.read_bytes() == twice.read_bytes()


def test_the_same_records_give_the_same_file_however_they_were_sealed(tmp_path, monkeypatch):
    """Of which chunks there are many, and records of which some lack a quantity."""
    for module, name, size in ((segment, "_CHUNK_BYTES", 256), (segment, "STRETCH_BYTES", 700)):
        monkeypatch.setattr(module, name, size)
    for name, stretch in (("cut", 3000), ("whole", 1 << 20)):
        monkeypatch.setattr(sealing, "STRETCH_BYTES", stretch)
        writer = RunWriter(tmp_path / name, META)
        writer.set_sites(SITES)
        for step in range(12):
            quantities = ("cell", "gates", "weight") if step % 4 < 2 else ("cell",)
            writer.add_record(record(step, {"lstm/l0": site_record((5, 1 + step % 7), step, quantities)}))
        writer.close()
    assert len(open_run(tmp_path / "cut").parts) > len(open_run(tmp_path / "whole").parts) == 1
    packed = [pack(tmp_path / name, tmp_path / f"{name}.h5") for name in ("cut", "whole")]
    again = pack(packed[0], tmp_path / "again.h5")
    for dataset in ("cell", "gates", "weight"):
        expected = open_run(tmp_path / "whole").array("lstm/l0", dataset)
        for file in (*packed, again):
            np.testing.assert_array_equal(open_run(file).array("lstm/l0", dataset), expected)
    assert packed[0].read_bytes() == again.read_bytes()
    assert packed[0].stat().st_size == packed[1].stat().st_size


def test_packing_holds_a_few_mib_of_a_run_of_any_size(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    data = site_record((40,) * 4)
    data.arrays["cell_tensor"] = np.random.default_rng(0).integers(0, 9, (4, 40, 1500)).astype(np.float32)
    for step in range(40):
        writer.add_record(record(step, {"lstm/l0": data}))
    writer.close()
    tracemalloc.start()
    packed = pack(tmp_path / "run", tmp_path / "one.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert open_run(packed).nbytes("lstm/l0", "cell_tensor") > 38e6
    assert peak < 16e6


#: A real refusal by the system: files may have this size and no more.
_LIMITED = """
import resource, sys
from gradscope.errors import RunError
from gradscope.store import pack
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    pack(*sys.argv[1:])
except RunError as error:
    sys.exit(0 if "File too large" in str(error) else 3)
sys.exit(4)
"""


def test_a_disk_that_ends_in_the_middle_is_an_error_and_no_crash(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    for step in range(40):
        data = site_record((200,) * 4, step)
        writer.add_record(record(step, {"lstm/l0": data}))
    writer.close()
    done = subprocess.run([sys.executable, "-c", _LIMITED, tmp_path / "run", tmp_path / "one.h5"])
    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_pack_left_is_in_sight_and_goes_with_the_next(sealed, tmp_path):
    left, living = tmp_path / "one.h5.1.partial", tmp_path / "one.h5.2.partial"
    for each in (left, living):
        each.write_text("half a file")
    lock = lock_directory(living)
    pack(sealed, tmp_path / "one.h5")
    lock.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.h5", "one.h5.2.partial", "run"]


def test_an_empty_run_can_be_packed(tmp_path):
    write_run(tmp_path / "run", records=0)
    assert open_run(pack(tmp_path / "run", tmp_path / "out.h5")).n_records == 0
