from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gradscope.errors import SettingError
from gradscope.plots import lyapunov, spectrum, style

QUANTILES = list(spectrum.LEVELS)


def test_lines_are_order_statistics_of_the_singular_values():
    values = np.random.default_rng(0).uniform(0.1, 2, (12, 3, 7))  # 21 values: quartiles are the 6th and 16th
    data = spectrum.table(values)
    ordered = np.log10(np.sort(values.reshape(12, 21), axis=1))
    np.testing.assert_allclose(data[QUANTILES], ordered[:, [0, 5, 10, 15, 20]])
    with style.use("screen"):
        ax = spectrum.draw(data)
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    for name in ("median", "largest", "smallest"):
        np.testing.assert_array_equal(drawn[name], data[name])


def test_a_measured_spectrum_is_drawn_at_its_own_lags_and_from_its_logarithms():
    """e^-3000 is 0 in float64; its logarithm is a point on the figure."""
    lags = np.array([4000, 0, 1000])
    logs = -lags[:, None, None] * np.array([0.5, 0.75])
    data = spectrum.table(SimpleNamespace(log_singular_values=logs, lags=lags))
    assert data["lag"].tolist() == [0, 1000, 4000]
    np.testing.assert_allclose(data["smallest"], -0.75 * data["lag"] / np.log(10))
    with style.use("screen"):
        ax = spectrum.draw(data)
        ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    assert low < -3000 / np.log(10) < high
    assert [t.get_text() for t in ax.get_yticklabels()] == ["$10^{-1000}$", "$10^{-500}$", "1"]
    assert "(3 of them)" in spectrum.caption(data)


def test_zeros_and_missing_sequences_are_no_numbers():
    logs = np.array([[[0.0, 0.0], [0.0, 0.0]], [[-1.0, -np.inf], [np.nan, np.nan]], [[np.nan] * 2, [np.nan] * 2]])
    data = spectrum.table(SimpleNamespace(log_singular_values=logs, lags=np.arange(3)))
    assert data["smallest"].tolist()[1] == -np.inf
    assert data["largest"][1] == pytest.approx(-1 / np.log(10))
    assert data.loc[2, QUANTILES].isna().all()
    with style.use("screen"):
        ax = spectrum.draw(data)
    marked = {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()}
    assert marked["_zero"] == [1]
    assert marked["_not finite"] == [2]


def test_the_effective_rank_counts_the_directions_that_are_left():
    logs = np.array([[0.0, 0.0, 0.0, 0.0], [-900.0, -900.0, -np.inf, -np.inf], [-2000.0, -5000.0, -5000.0, -5000.0]])
    data = spectrum.table(SimpleNamespace(log_singular_values=logs[:, None], lags=np.arange(3)))
    np.testing.assert_allclose(data["effective_rank"], [4, 2, 1])


@pytest.mark.parametrize("lags", [[0, 1], [0, 0, 1], [-1, 0, 1]])
def test_lags_that_do_not_fit_are_refused(lags):
    with pytest.raises(SettingError, match="distinct lag per row"):
        spectrum.table(np.ones((3, 2)), lags)


def test_lyapunov_exponents_are_sorted_and_destroyed_directions_marked():
    data = lyapunov.table({"a": [-1.0, 0.5, -np.inf]})
    assert data["exponent"].tolist() == [0.5, -1.0, -np.inf]
    with style.use("screen"):
        ax = lyapunov.draw(data)
    marked = next(line for line in ax.get_lines() if line.get_label() == "_destroyed")
    assert list(marked.get_xdata()) == [3]
    with pytest.raises(SettingError, match="no exponents"):
        lyapunov.table({})


def test_lyapunov_takes_what_was_measured():
    data = lyapunov.table({"a": SimpleNamespace(exponents=np.array([-2.0, -1.0]))})
    assert data["exponent"].tolist() == [-1.0, -2.0]
