"""Where a sequence goes on in another layer, figures count from its ends, not from those of the layer."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.plots import gates, weight
from gradscope.schema import Record, RunMeta, SiteRecord
from gradscope.store import RunWriter, open_run
from tests.made_runs import SMALLEST, site_info

LAGS, SEQUENCES = 10, 3


@pytest.fixture
def encoder(tmp_path):
    """An encoder of 10 steps whose sequence began 7 steps before it and goes on for 5 in a decoder."""
    fall = 10.0 ** (-0.1 * np.arange(LAGS))
    arrays = {
        "hidden": np.broadcast_to(fall, (SEQUENCES, LAGS)).copy(),
        "gates": np.broadcast_to(fall, (SEQUENCES, 4, LAGS)).copy(),
        "weight": fall[::-1].copy(),
    }
    lengths, rows = np.full(SEQUENCES, LAGS, np.int32), np.arange(SEQUENCES, dtype=np.int32)
    writer = RunWriter(tmp_path / "run", RunMeta("", "0", "0", {}, {}))
    writer.set_sites({"encoder/l0": site_info("encoder/l0", "lstm")})
    record = SiteRecord(lengths, rows, SMALLEST, arrays, carried=7, after=5)
    writer.add_record(Record(0, 0, 0.0, {"encoder/l0": record}))
    writer.close()
    return open_run(tmp_path / "run")


def test_lags_of_gates_begin_behind_the_steps_that_came_after(encoder):
    data = gates.table([encoder])
    of_one = data[data["gate"] == "f"]
    assert list(of_one["lag"]) == list(range(5, 15))
    np.testing.assert_allclose(of_one["norm"], 10.0 ** (-0.1 * np.arange(LAGS)))
    assert set(of_one["n_sequences"]) == {SEQUENCES}


def test_timesteps_of_the_weight_begin_behind_those_that_came_before(encoder):
    data = weight.table([encoder])
    assert list(data["time"]) == list(range(7, 17))
    np.testing.assert_allclose(data["norm"], 10.0 ** (-0.1 * np.arange(LAGS)[::-1]))
