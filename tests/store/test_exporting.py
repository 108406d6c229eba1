import csv
import io

import numpy as np
import pytest

from gradscope import open_run
from gradscope.errors import UnknownNameError
from gradscope.store import RunWriter, export, table
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
