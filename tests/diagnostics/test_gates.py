import numpy as np
import pytest

from gradscope.diagnostics import saturation, summarise_timescales, timescale, timescale_of_log
from gradscope.errors import SettingError


def test_a_gate_forgets_to_one_over_e_in_its_timescale():
    f = np.array([0.3, 0.9, 0.999])
    np.testing.assert_allclose(f ** timescale(f), np.exp(-1))


def test_a_closed_and_an_open_gate_have_limiting_timescales():
    np.testing.assert_array_equal(timescale([0.0, 1.0]), [0.0, np.inf])


def test_a_varying_gate_retains_what_the_product_of_its_values_says():
    f = np.array([0.99, 0.5, 0.9, 0.7])
    tau = timescale_of_log(np.log(f).mean())
    assert np.exp(-4 / tau) == pytest.approx(np.prod(f))


def test_preactivations_are_refused():
    with pytest.raises(SettingError, match="between 0 and 1"):
        timescale([1.2])
    with pytest.raises(SettingError, match="never positive"):
        timescale_of_log([0.1])


def test_the_summary_counts_units_that_outlast_the_sequence():
    summary = summarise_timescales([1.0, 5.0, 200.0, np.inf, np.nan], length=100)
    assert (summary.units, summary.share_longer) == (4, 0.5)
    assert summary.quantiles[2] == pytest.approx(102.5)  # median of 1, 5, 200, 200
    assert np.isnan(summarise_timescales([], 10).share_longer)


def test_saturated_shares_are_counted_per_gate_without_padding():
    gates = np.array([[0.05, 0.5, 0.95, np.nan], [0.01, 0.02, 0.03, 0.5]])
    result = saturation(gates)
    np.testing.assert_allclose(result.share_low, [1 / 3, 3 / 4])
    np.testing.assert_allclose(result.share_high, [1 / 3, 0])
    with pytest.raises(SettingError, match="below high"):
        saturation(gates, 0.9, 0.1)
