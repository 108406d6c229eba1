import csv
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gradscope import open_run
from gradscope.errors import RunError, UnknownNameError, UnsafeFileError
from gradscope.store import RunWriter, export, table
from gradscope.store.budget import LIMITS, Limit
from gradscope.store.locking import lock_directory
from tests.store.conftest import META, SITES, record, site_record


@pytest.fixture
def run(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.set_sites(SITES)
    data = site_record((3, 2), quantities=("cell", "gates"))
    data.arrays["cell"][0, 1] = np.nan
    data.arrays["cell_tensor"] = np.ones((2, 3, 4))
    writer.add_record(record(0, {"lstm/l0": data}))
    writer.close()
    return open_run(tmp_path / "run")


def test_exported_norms_are_the_recorded_ones_to_the_last_bit(run, tmp_path):
    files = export(run, tmp_path / "out")
    assert all(file.is_file() for file in files)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/sites/lstm/l0/cell.csv").read_text())))
    np.testing.assert_array_equal([float(row["norm"]) for row in rows], run.norms("lstm/l0", "cell")["norm"])
    assert rows[1]["flag"] == "non-finite"
    assert sorted(file.name for file in files if "lstm" in str(file.parent)) == ["cell.csv", "gates.csv", "records.csv"]


def test_a_table_is_asked_for_by_name(run):
    assert table(run, "norms", quantity="gates").equals(run.norms("lstm/l0", "gates"))
    assert table(run, "records").equals(run.records("lstm/l0"))
    assert table(run, "steps").equals(run.steps())
    with pytest.raises(UnknownNameError, match="Did you mean 'norms'"):
        table(run, "norm")


def test_a_dataset_in_pieces_is_the_dataset(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.set_sites(SITES)
    for step in range(7):
        data = site_record((3, 2), quantities=("cell", "gates"))
        writer.add_record(replace(record(step, {"lstm/l0": data}), role=step % 3))
    writer.close()
    run = open_run(tmp_path / "run")
    for of_role in (run, run.apart):
        whole = of_role.norms("lstm/l0", "cell")
        pieces = list(of_role.norms_in_pieces("lstm/l0", "cell", most=48))
        assert len(pieces) == of_role.n_records
        assert pd.concat(pieces, ignore_index=True).equals(whole)


def test_what_a_killed_export_left_is_in_sight_and_goes_with_the_next(run, tmp_path):
    left, living = tmp_path / "out.1.partial", tmp_path / "out.2.partial"
    for each in (left, living):
        each.mkdir()
    lock = lock_directory(living)
    export(run, tmp_path / "out")
    lock.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.2.partial", "run"]


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", refuse)
    with pytest.raises(RunError, match="No space left"):
        export(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_more_lines_than_a_file_of_its_size_may_come_to_are_not_written(sealed, tmp_path, monkeypatch):
    run = open_run(sealed)
    monkeypatch.setitem(LIMITS, "lines", Limit("lines of CSV", 47, 0))  # 3 records, 8 values each, of hidden and cell
    with pytest.raises(UnsafeFileError, match=r"48 lines of CSV.*GRADSCOPE_BUDGET"):
        export(run, tmp_path / "csv")
    assert not (tmp_path / "csv").exists()
    monkeypatch.setitem(LIMITS, "lines", Limit("lines of CSV", 23, 0))
    with pytest.raises(UnsafeFileError, match="24 lines of CSV"):
        table(run, "norms")
    monkeypatch.setitem(LIMITS, "lines", Limit("lines of CSV", 48, 0))
    assert len(export(run, tmp_path / "csv")) > 4
