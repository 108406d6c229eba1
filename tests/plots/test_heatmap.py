from __future__ import annotations

import numpy as np

from gradscope.plots import gates, heatmap, style
from tests.made_runs import make_run


def test_large_matrices_are_joined_to_printable_cells_by_their_geometric_mean():
    values = np.exp(np.random.default_rng(0).normal(size=(400, 600)))
    small, across, down = heatmap._thinned(values)
    assert (down, across) == (2, 3)
    expected = np.exp(np.log(values).reshape(200, 2, 200, 3).mean(axis=(1, 3)))
    np.testing.assert_allclose(small, expected)


def test_joined_cells_keep_zero_infinite_and_missing_apart():
    values = np.repeat(np.array([[0.0, np.inf, np.nan, 2.0]]), 150, axis=1).repeat(300, axis=0)
    small, *_ = heatmap._thinned(values)
    assert small.shape == (150, 200)
    assert np.isnan(small).any()
    assert (small == 0).any()
    assert np.isinf(small).any()
    assert np.nanmax(small[np.isfinite(small)]) == 2.0


def test_gates_are_averaged_over_sequences_each_by_itself(tmp_path):
    rng = np.random.default_rng(1)
    values = 10.0 ** rng.normal(-2, 1, (6, 4, 40))
    data = gates.table([make_run(tmp_path / "r", extra={"gates": values})])
    expected = np.exp(np.log(values).mean(axis=0))
    for i, gate in enumerate("ifgo"):
        np.testing.assert_allclose(data[data["gate"] == gate]["norm"], expected[i], rtol=1e-12)
    with style.use("screen"):
        ax = gates.draw(data)
    assert [label.get_text() for label in ax.get_yticklabels()] == list("ifgo")
    np.testing.assert_allclose(np.ma.getdata(ax.collections[-1].get_array()).reshape(4, 40), expected)
