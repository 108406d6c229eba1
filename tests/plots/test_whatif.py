from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import UnknownNameError
from gradscope.plots import style, whatif


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 4).double()
    x = torch.randn(12, 3, 2, dtype=torch.float64)
    return gradscope.clip_whatif(lstm, lambda: lstm(x)[0][-1].square().sum(), [0.01, float("inf"), 0.1])


def test_the_table_holds_each_thresholds_own_curve(measured):
    data = whatif.table(measured)
    assert list(dict.fromkeys(data["threshold"])) == [np.inf, 0.1, 0.01]
    for threshold, rows in data.groupby("threshold"):
        norms = measured.norms["cell"][measured.thresholds.index(threshold)]
        np.testing.assert_allclose(rows["norm"], np.exp(np.log(norms).mean(axis=0)), rtol=1e-12)
    assert set(data["quantity"]) == {"cell"}
    assert set(whatif.table(measured, quantity="hidden")["quantity"]) == {"hidden"}


def test_a_tighter_clip_is_a_lower_curve_and_clips_more(measured):
    data = whatif.table(measured).set_index(["threshold", "lag"])
    assert data.loc[0.01, "norm"].iloc[-1] < data.loc[0.1, "norm"].iloc[-1] <= data.loc[np.inf, "norm"].iloc[-1]
    assert (data.loc[0.01, "clipped"] >= data.loc[0.1, "clipped"]).all()
    assert (data.loc[np.inf, "clipped"] == 0).all()


def test_lines_are_named_by_their_threshold_and_the_share_is_drawn_below(measured):
    data = whatif.table(measured)
    with style.use("neurips"):
        ax = whatif.draw(data, style_name="neurips")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["none", "0.1", "0.01"]
    share = ax.figure.axes[1].get_lines()
    np.testing.assert_array_equal(share[1].get_ydata(), data[data["threshold"] == 0.01]["clipped"])
    assert "parameter gradients" in whatif.caption(data)


def test_a_quantity_that_was_not_measured_is_named(measured):
    with pytest.raises(UnknownNameError, match="hidden"):
        whatif.table(measured, quantity="hiden")
