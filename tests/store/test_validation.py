import h5py
import numpy as np
import pytest

from gradscope.errors import RunNotFoundError
from gradscope.store import RunWriter, pack, sealing, validate
from tests.store.conftest import META, record, write_run
from tests.torture.resum import resum_segment


def test_a_good_run_has_no_problem(sealed, tmp_path):
    write_run(tmp_path / "growing", close=False)
    assert validate(sealed) == []
    assert validate(tmp_path / "growing") == []
    assert validate(pack(sealed, tmp_path / "packed.h5")) == []


def test_a_missing_run_is_an_error_not_a_problem(tmp_path):
    with pytest.raises(RunNotFoundError):
        validate(tmp_path / "nowhere")


def test_a_changed_byte_is_found_by_the_checksum(sealed, segment):
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    assert any("differs from its checksum" in problem for problem in validate(sealed))


def test_a_changed_number_in_a_file_without_checksum_is_found(tmp_path):
    """A packed file travels alone: HDF5's own checksum of each chunk travels inside it."""
    writer = RunWriter(tmp_path / "run", META)
    for step in range(300):
        writer.add_record(record(step))
    writer.close()
    packed = pack(tmp_path / "run", tmp_path / "packed.h5")
    with h5py.File(packed) as file:
        chunk = file["sites/lstm/l0/hidden"].id.get_chunk_info(0)
    content = bytearray(packed.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    packed.write_bytes(content)
    assert any("packed.h5" in problem for problem in validate(packed))


def test_a_missing_segment_and_a_missing_end_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sealing, "STRETCH_BYTES", 1)
    writer = RunWriter(tmp_path / "run", META)
    for step in range(4):
        writer.add_record(record(step))
    writer.close()
    folder = tmp_path / "run/attempt-1/rank-0"
    (folder / "segment-00002.h5").unlink()
    (folder / "segment-00004.h5").unlink()
    problems = "\n".join(validate(tmp_path / "run"))
    assert "entries 2 to 2 before it are missing" in problems
    assert "the end of the run is missing" in problems


def test_a_missing_checksum_is_named(sealed, segment):
    segment.with_name(segment.name + ".sha256").unlink()
    assert any("has no checksum" in problem for problem in validate(sealed))


def test_numbers_where_there_is_no_sequence_are_found(sealed, segment):
    with h5py.File(segment, "r+") as file:
        file["sites/lstm/l0/cell"][0, 1, 4] = 1.0
    resum_segment(segment)
    problems = "\n".join(validate(segment))
    assert "beyond the end of a sequence" in problems


@pytest.mark.parametrize("length", [99, -5, 2**31 - 1])
def test_a_sequence_longer_than_its_axis_is_found(segment, length):
    with h5py.File(segment, "r+") as file:
        file["sites/lstm/l0/length"][1, 0] = length
    resum_segment(segment)
    assert any("length has values" in problem for problem in validate(segment))


def test_axes_that_disagree_are_found(segment):
    with h5py.File(segment, "r+") as file:
        del file["sites/lstm/l0/cell"]
        file["sites/lstm/l0/cell"] = np.zeros((1, 2, 3))
    assert len(validate(segment)) > 0
