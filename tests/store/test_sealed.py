import h5py
import numpy as np
import pytest
import xarray as xr

from gradscope import open_run
from gradscope.errors import RunDamagedError, SchemaVersionError
from gradscope.schema import DATASETS, RunMeta
from gradscope.store import RunWriter, pack, validate
from gradscope.store.layout import group_of
from gradscope.store.part import ADDED_COLUMNS
from gradscope.store.sealed import SealedPart
from tests.store.conftest import META, SITES, record, site_record
from tests.torture.resum import resum_segment, sum_beside


@pytest.fixture
def wide(tmp_path):
    """A segment with gates, tensors and a model description beyond 64 KiB."""
    model = {"class": "LSTM", "text": "x" * 200_000}
    writer = RunWriter(tmp_path / "wide", RunMeta(**{**vars(META), "model": model}))
    writer.set_sites(SITES)
    for step in (0, 10, 20):
        data = site_record((5, 3), seed=step, quantities=("hidden", "cell", "gates", "weight"))
        data.arrays["hidden_tensor"] = np.arange(2 * 5 * 4, dtype=np.float64).reshape(2, 5, 4)
        writer.add_record(record(step, {"lstm/l0": data}))
    writer.close()
    return tmp_path / "wide/attempt-1/rank-0/segment-00001.h5"


def test_xarray_opens_a_site_unaided(wide):
    with xr.open_dataset(wide, group="sites/lstm/l0", engine="h5netcdf") as site:
        assert site["cell"].dims == ("step", "sequence", "lag")
        assert site["step"].values.tolist() == [0, 10, 20]
        assert site["lag"].values.tolist() == [0, 1, 2, 3, 4]
        assert site["gate"].values.tolist() == [b"i", b"f", b"g", b"o"]
        np.testing.assert_array_equal(site["cell"].values, open_run(wide).array("lstm/l0", "cell"))
        assert (
            float(site["hidden"].sel(step=10, sequence=1, lag=2)) == open_run(wide).array("lstm/l0", "hidden")[1, 1, 2]
        )
        assert site.attrs["site"] == "lstm/l0"


@pytest.mark.parametrize("group", [None, "steps", "clips", "parameters"])
def test_xarray_opens_every_other_group(wide, sealed, segment, group):
    for path in (wide, segment):
        with xr.open_dataset(path, group=group, engine="h5netcdf") as data:
            data.load()
            if group is None:
                assert data.attrs["schema"] == "gradscope-run"
                assert open_run(path).model["text"] in data.attrs["model"]


def test_only_what_outside_readers_understand_is_used(wide):
    def look(_name, item):
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind in "iufS"
            assert item.compression in (None, "gzip")
            assert h5py.check_string_dtype(item.dtype) is None or h5py.check_string_dtype(item.dtype).length
            for axis, size in zip(item.dims, item.shape, strict=True):
                scale = item if item.is_scale else axis[0]
                assert scale.parent == item.parent
                assert scale.shape == (size,)
        for name in item.attrs:
            assert item.attrs.get_id(name).dtype.kind != "b"

    with h5py.File(wide) as file:
        file.visititems(look)
        site = file["sites/lstm/l0"]
        assert {site[name].dtype.str for name in DATASETS if name in site and not name.endswith("_tensor")} == {"<f8"}
        assert site["hidden_tensor"].dtype.str == "<f4"


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_read(segment):
    _set(segment, "schema_version", b"1.99")
    resum_segment(segment)
    assert open_run(segment).n_records == 3
    _set(segment, "schema_version", b"2.0")
    with pytest.raises(SchemaVersionError, match=r"format 2\.0.*Upgrade"):
        open_run(segment)
    with pytest.raises(SchemaVersionError):
        open_run(segment.parents[2])


@pytest.mark.parametrize("name", ["schema", "metas", "n_records", "schema_version"])
def test_a_file_without_its_description_is_no_run(segment, name):
    with h5py.File(segment, "r+") as file:
        del file.attrs[name]
    with pytest.raises(RunDamagedError, match=r"segment-00001\.h5"):
        open_run(segment)


CHANGES = [
    ("sites/lstm/l0/cell", (1, 0, 2)),
    ("sites/lstm/l0/hidden_tensor", (1, 0, 2, 3)),
    ("sites/lstm/l0/length", (0, 0)),
    ("sites/lstm/l0/step", 1),
    ("sites/lstm/l0/skipped", 1),
    ("sites/lstm/l0/recorded", (0, 0)),
    ("sites/lstm/l0/checksum", (0, 0)),
    ("steps/value", (0, 0)),
    ("clips/norm_before", 0),
    ("parameters/norm", (2, 0)),
]


@pytest.mark.parametrize(("name", "where"), CHANGES, ids=lambda value: str(value))
def test_a_changed_number_is_told_by_its_own_checksum(wide, segment, name, where):
    path = wide if name.endswith("_tensor") else segment
    with h5py.File(path, "r+") as file:
        file[name][where] = file[name][where] + 1 if file[name].dtype.kind != "f" else 0.125
    sum_beside(path)
    with pytest.raises(RunDamagedError, match="differs from its checksum"):
        _read_all(open_run(path))
    assert any("differs from its checksum" in problem for problem in validate(path.parents[2]))


def test_a_changed_description_is_told_by_its_checksum(segment):
    with h5py.File(segment, "r+") as file:
        sites = bytes(file.attrs["sites"]).replace(b'"lstm"', b'"gru0"')
        file.attrs.modify("sites", np.bytes_(sites))
    with pytest.raises(RunDamagedError, match="differs from its checksum"):
        open_run(segment)


def _read_all(run):
    for site in run.sites:
        run.records(site), run.lengths(site), run.rows(site)
        for dataset in run.datasets(site):
            run.array(site, dataset)
    run.steps(), run.clips(), run.parameters()


def test_a_truncated_file_is_named_with_the_remedy(segment):
    whole = segment.read_bytes()
    for size in (0, 10, 100, len(whole) // 2, len(whole) - 1):
        segment.write_bytes(whole[:size])
        with pytest.raises(RunDamagedError, match=r"segment-00001\.h5.*gradscope repair"):
            open_run(segment.parents[2])


def test_garbage_is_damage_whatever_byte_it_hits(segment):
    """Flipped bytes end in a clear error or in the right numbers, never in anything else."""
    whole = segment.read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        broken = bytearray(whole)
        for position in random.integers(0, len(whole), 20):
            broken[position] = random.integers(0, 256)
        segment.write_bytes(broken)
        try:
            run = open_run(segment)
            for site in run.sites:
                for quantity in run.quantities(site):
                    run.norms(site, quantity)
            run.steps(), run.clips(), run.parameters()
            outcomes.add("read")
        except Exception as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"read", "RunDamagedError", "UnsafeFileError", "SchemaVersionError", "UnknownNameError"}
    assert "RunDamagedError" in outcomes


def _set(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs.create(name, value, dtype=h5py.string_dtype("utf-8", len(value)))


def test_a_file_of_format_1_0_reads_as_if_every_pass_had_fed_its_update(segment):
    whole = SealedPart(segment)
    new = whole.table("clips").columns
    with h5py.File(segment, "r+") as file:
        for column in ADDED_COLUMNS:
            file["clips"].pop(column, None)
        for group in (file["parameters"], *(file[group_of(site)] for site in whole.sites())):
            del group["role"]
    part = SealedPart(segment)
    assert all((part.column(site, "role") == 0).all() for site in part.sites())
    old = part.table("clips").columns
    assert old["norm_before"].tolist() == new["norm_before"].tolist()
    assert set(old["place"].tolist()) == {b""}
    assert old["effective"].tolist() == [1, 1, 1]
    run = open_run(segment)
    assert run.n_records == 3
    assert run.apart.n_records == 0


def test_passes_that_fed_no_update_are_kept_apart_from_every_table_and_count(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.set_sites(SITES)
    for step in range(3):
        writer.add_record(record(step, {"lstm/l0": site_record(seed=step), "head/l0": site_record(seed=9 + step)}))
        writer.add_record(record(step, {"lstm/l0": site_record(seed=50)}, micro=-1, role=1, parameters={}))
    writer.add_record(record(3, {"lstm/l0": site_record(seed=4)}, micro=-1, role=2, parameters={}))
    writer.flush()
    growing = open_run(tmp_path / "run")
    writer.close()
    packed = open_run(pack(tmp_path / "run", tmp_path / "packed.h5"))
    for run in (growing, open_run(tmp_path / "run"), packed):
        assert run.n_records == 3
        assert run.records("lstm/l0").step.tolist() == [0, 1, 2]
        assert len(run.array("lstm/l0", "cell")) == len(run.lengths("lstm/l0")) == 3
        assert set(run.norms("lstm/l0", "cell").micro) == {0}
        assert len(run.parameters()) == 3
        assert run.apart.n_records == 4
        assert run.apart.sites == ("lstm/l0",)
        assert run.apart.records("lstm/l0").role.tolist() == ["dropped"] * 3 + ["other"]
        assert run.apart.records("lstm/l0").dropped.tolist() == [True] * 3 + [False]
        np.testing.assert_array_equal(run.apart.array("lstm/l0", "cell")[0], site_record(seed=50).arrays["cell"])
