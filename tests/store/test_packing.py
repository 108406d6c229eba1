import pytest
import xarray as xr

from gradscope import open_run
from gradscope.errors import RunError, RunExistsError, RunNotFoundError
from gradscope.store import RunWriter, pack, sealing, validate
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


def test_an_empty_run_can_be_packed(tmp_path):
    write_run(tmp_path / "run", records=0)
    assert open_run(pack(tmp_path / "run", tmp_path / "out.h5")).n_records == 0
