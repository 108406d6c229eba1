"""Figures of what was measured on demand: connectivity, and the dynamics through training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import connectivity, dynamics, style

INFO = SimpleNamespace(site="lstm/l0", curve="cell")


def source_target(n=6):
    """Each loss looks at its own step twice as much as at the one before, and so on."""
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    matrix = np.where(distance >= 0, 0.5 ** distance.clip(min=0), 0.0)
    return SimpleNamespace(info=INFO, input=matrix, hidden=matrix * 2, cell=None)


def spectrum(step, n_lags=4, destroyed=False):
    logs = np.log(10) * np.array([[[0.0, -lag * (1 + step)]] * 2 for lag in range(n_lags)], dtype=float)
    if destroyed:
        logs[..., -1] = -np.inf
    exponents = np.array([[-0.1 * step, -2.0], [-0.3 * step, -2.0]])
    return SimpleNamespace(lags=np.arange(n_lags), log_singular_values=logs, exponents_per_sequence=exponents)


def test_shares_of_a_loss_add_up_to_one():
    data = connectivity.table(source_target(), targets=[2, -1])
    assert list(dict.fromkeys(data["target"])) == [2, 5]
    np.testing.assert_allclose(data.groupby("target")["share"].sum(), 1)
    last = data[data["target"] == 5]
    np.testing.assert_allclose(last["share"], 0.5 ** np.arange(5, -1, -1) / np.sum(0.5 ** np.arange(6)))


def test_tokens_stand_below_the_steps_they_belong_to():
    tokens = ["the", "cat", "sat", "on", "the", "mat"]
    data = connectivity.table(source_target(), tokens=tokens)
    with style.use("neurips"):
        ax = connectivity.draw(data, style_name="neurips")
    assert [text.get_text() for text in ax.get_xticklabels()] == tokens
    assert "5 (mat) 51 %" in connectivity.caption(data)
    with pytest.raises(SettingError, match="one token for each of the 6"):
        connectivity.table(source_target(), tokens=["a"])


def test_a_loss_that_looks_at_nothing_says_so():
    nothing = SimpleNamespace(info=INFO, input=np.zeros((3, 3)))
    data = connectivity.table(nothing)
    assert (data["share"] == 0).all()
    with style.use("screen"):
        ax = connectivity.draw(data)
    assert "no gradient arrives at any step" in {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"quantity": "inputs"}, UnknownNameError, "input"),
        ({"quantity": "cell"}, NotRecordedError, "cell"),
        ({"targets": [6]}, SettingError, "there are 6"),
    ],
)
def test_what_was_not_measured_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        connectivity.table(source_target(), **options)


def test_exponents_and_condition_are_those_of_each_step():
    data = dynamics.table({100: spectrum(1), 0: spectrum(0)})
    assert list(data["step"]) == [0, 100]
    np.testing.assert_allclose(data["exponent"], [0, -0.2])
    np.testing.assert_allclose(data[["low", "high"]], [[0, 0], [-0.3, -0.1]], atol=1e-15)
    assert set(data["lag"]) == {1}
    np.testing.assert_allclose(data["condition"], [1, 2])


def test_a_destroyed_direction_is_marked_and_a_missing_lag_refused():
    data = dynamics.table({"lstm": {0: spectrum(0, destroyed=True), 1: spectrum(1)}})
    assert np.isinf(data["condition"][0])
    with style.use("screen"):
        ax = dynamics.draw(data, column="condition")
    marked = [line for line in ax.get_lines() if line.get_label() == "_destroyed" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in marked] == [[0]]
    with pytest.raises(SettingError, match="no common lag 9"):
        dynamics.table({0: spectrum(0)}, lag=9)
