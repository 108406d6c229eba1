import numpy as np
import pytest
from scipy import stats

from gradscope.diagnostics import compare_rates, fit_decay
from gradscope.errors import SettingError

LAGS = np.arange(50)


def fits(rates):
    return [fit_decay(LAGS, 10 ** (rate * LAGS)) for rate in rates]


def test_the_interval_is_welchs():
    a, b = [-0.19, -0.195, -0.2, -0.188], [-0.15, -0.18, -0.16]
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    result = compare_rates(fits(a), fits(b), confidence=0.9)
    assert result.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert result.interval == pytest.approx((expected.low, expected.high), rel=1e-6)
    assert result.distinguishable is True


def test_rates_within_the_spread_of_seeds_are_not_told_apart():
    # Five seeds of an LSTM and of a GRU at their default initialisation.
    lstm, gru = [-0.194, -0.188, -0.190, -0.196, -0.192], [-0.191, -0.185, -0.187, -0.188, -0.197]
    assert compare_rates(fits(lstm), fits(gru)).distinguishable is False


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [([-0.2], [-0.1, -0.2], "at least two runs"), ([], [-0.1, -0.2], "no run with a number")],
)
def test_too_few_runs_give_no_interval(first, second, reason):
    result = compare_rates(fits(first), fits(second))
    assert result.interval is None
    assert result.distinguishable is None
    assert reason in result.reason


def test_identical_runs_differ_by_exactly_their_difference():
    zeros = [fit_decay(LAGS, np.ones(50))] * 2
    assert compare_rates(zeros, zeros).distinguishable is False


def test_confidence_out_of_range_is_refused():
    with pytest.raises(SettingError, match="confidence"):
        compare_rates(fits([-0.1]), fits([-0.1]), confidence=0)
