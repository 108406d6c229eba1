import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

import gradscope
from gradscope.diagnostics import combine_fits, fit_decay
from gradscope.errors import SettingError

LAGS = np.arange(100)


def batch(rate, *, n=8, spread=0.004, lags=LAGS, seed=0):
    """Sequences whose own rates scatter around ``rate``, with autocorrelated wiggles and different levels."""
    rng = np.random.default_rng(seed)
    wiggle = np.cumsum(rng.normal(0, 0.01, (n, lags.size)), axis=1)
    return 10 ** (rng.normal(0, 1, (n, 1)) + (rate + rng.normal(0, spread, (n, 1))) * lags + wiggle)


def test_it_is_offered_at_the_top():
    assert gradscope.fit_decay is fit_decay


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.99, 1.02, 1.3])
def test_an_exact_exponential_is_recovered(factor):
    # W = factor * I: every adjoint is factor**lag times the last one.
    fit = fit_decay(LAGS, factor**LAGS)
    assert fit.rate == pytest.approx(np.log10(factor), rel=1e-10)
    assert fit.r2 == pytest.approx(1, abs=1e-12)
    assert fit.ratio(60) == pytest.approx(factor**60)
    assert fit.reach == pytest.approx(factor**99)
    if factor < 1:
        assert fit.half_life == pytest.approx(np.log(0.5) / np.log(factor), rel=1e-10)


def test_the_rate_is_the_regression_slope_of_the_mean_log_curve():
    norms = batch(-0.19)
    expected = stats.linregress(LAGS[5:], np.log10(norms).mean(0)[5:])
    fit = fit_decay(LAGS, norms)
    assert fit.rate == pytest.approx(expected.slope, rel=1e-10)
    assert fit.intercept == pytest.approx(expected.intercept, rel=1e-10)
    assert fit.r2 == pytest.approx(expected.rvalue**2, rel=1e-10)
    np.testing.assert_allclose(fit.line([0, 10]), 10 ** (expected.intercept + expected.slope * np.array([0, 10])))


def test_the_interval_is_that_of_an_explicit_bootstrap():
    # Complete data: the slope of a mean curve is the mean of the sequences' slopes.
    norms = batch(-0.19, n=12)
    slopes = np.array([stats.linregress(LAGS[5:], np.log10(row)[5:]).slope for row in norms])
    expected = stats.t.interval(0.95, 11, slopes.mean(), stats.sem(slopes))
    np.testing.assert_allclose(fit_decay(LAGS, norms, resamples=20_000).interval, expected, rtol=0.01)


def test_ragged_and_complete_batches_agree_about_the_interval():
    norms = batch(-0.19, n=16)
    ragged = norms.copy()
    ragged[3, 99] = np.nan  # one missing value sends it down the other road
    complete, other = fit_decay(LAGS, norms), fit_decay(LAGS, ragged)
    np.testing.assert_allclose(other.interval, complete.interval, rtol=2e-3)


def test_more_sequences_than_are_resampled_singly_keep_an_honest_interval():
    norms = batch(-0.19, n=5000, lags=np.arange(20), spread=0.02)
    fit = fit_decay(np.arange(20), norms)
    slopes = np.polyfit(np.arange(5, 20), np.log10(norms[:, 5:]).T, 1)[0]
    assert np.ptp(fit.interval) == pytest.approx(2 * 1.96 * stats.sem(slopes), rel=0.1)


def test_the_readout_is_left_out_by_default():
    norms = 10 ** (-0.1 * LAGS + 2 * (LAGS < 5))
    fit = fit_decay(LAGS, norms)
    assert fit.lag_range == (5, 99)
    assert fit.rate == pytest.approx(-0.1)
    assert fit_decay(LAGS, norms, lag_range=(0, 99)).rate < -0.101


@pytest.mark.parametrize(("length", "start"), [(100, 5), (64, 5), (20, 5), (12, 3), (8, 2), (3, 0)])
def test_short_sequences_leave_out_fewer_lags(length, start):
    assert fit_decay(range(length), 0.9 ** np.arange(length)).lag_range == (start, length - 1)


def test_the_range_counts_from_the_first_lag_that_the_loss_reaches():
    norms = np.r_[np.zeros(10), 0.9 ** np.arange(90)]
    fit = fit_decay(LAGS, norms)
    assert (fit.reference_lag, fit.lag_range) == (10, (15, 99))


def test_underflow_ends_the_range_instead_of_bending_the_line():
    norms = (10.0 ** (-0.5 * LAGS)).astype(np.float32)
    fit = fit_decay(LAGS, norms)
    assert fit.rate == pytest.approx(-0.5, abs=1e-6)
    assert fit.last_lag == 75  # 10**-37.5 is the last normal float32
    assert fit.lost_from == 76
    assert (fit.n_zero + fit.n_below_normal) == 24
    assert "below the smallest normal number" in fit.reason


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (-0.233, "vanishing"),
        (-0.062, "vanishing"),
        (-0.0001, "preserved"),
        (-0.0064, "preserved"),
        (0.014, "exploding"),
    ],
)
def test_published_rates_get_their_verdict(rate, verdict):
    fit = fit_decay(LAGS, batch(rate, spread=0.0005))
    assert fit.verdict == verdict
    assert fit.interval[0] < fit.rate < fit.interval[1]


def test_a_constant_curve_is_preserved_without_a_half_life():
    fit = fit_decay(LAGS, np.full((4, 100), 0.37))
    assert (fit.verdict, fit.rate, fit.reach, fit.horizon) == ("preserved", 0.0, 1.0, None)
    assert np.isnan(fit.r2)
    assert fit.half_life is None
    assert "does not shrink" in fit.half_life_reason


def test_a_curved_decay_vanishes_but_gets_no_half_life():
    fit = fit_decay(LAGS, 10 ** (-4 + 4e-4 * (LAGS - 99.0) ** 2))
    assert fit.r2 < 0.95
    assert fit.verdict == "vanishing"
    assert fit.half_life is None
    assert "not exponential" in fit.half_life_reason
    assert "not a straight line" in fit.reason


@pytest.mark.parametrize(("r2", "quoted"), [(0.94, False), (0.96, True)])
def test_a_half_life_is_quoted_from_an_r2_of_95_hundredths_on(r2, quoted):
    x = LAGS[5:] - LAGS[5:].mean()
    off = np.cos(x)
    off -= off.mean() + x * (off @ x) / (x @ x)  # what no straight line can explain
    off *= np.sqrt(0.1**2 * (x @ x) * (1 / r2 - 1) / (off @ off))
    fit = fit_decay(LAGS[5:], 10 ** (-0.1 * x + off), lag_range=(5, 99))
    assert fit.r2 == pytest.approx(r2)
    assert fit.rate == pytest.approx(-0.1)
    assert (fit.half_life is not None) == quoted


def test_one_sequence_has_no_interval_and_says_so():
    fit = fit_decay(LAGS, 0.5**LAGS)
    assert fit.interval is None
    assert fit.half_life_interval is None
    assert "single sequence" in fit.reason


def test_a_rate_that_may_be_zero_gives_neither_verdict_nor_half_life():
    rates = np.array([[-0.2], [0.1], [-0.1], [0.08]])
    fit = fit_decay(LAGS, 10 ** (rates * LAGS))
    assert fit.interval[0] < 0 < fit.interval[1]
    assert fit.verdict == "undetermined"
    assert "no change at all" in fit.reason
    assert "includes no decay at all" in fit.half_life_reason


def test_a_curve_that_falls_and_rises_is_undetermined():
    fit = fit_decay(LAGS, 10 ** (0.002 * (LAGS - 52.0) ** 2))
    assert fit.verdict == "undetermined"
    assert "falls and rises" in fit.reason


def test_a_change_near_the_threshold_is_undetermined():
    fit = fit_decay(LAGS, batch(-0.0100, n=4, spread=0.001))
    assert fit.verdict == "undetermined"
    assert "too close" in fit.reason


@pytest.mark.parametrize(("length", "used"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4)])
def test_too_few_lags_say_so(length, used):
    fit = fit_decay(range(length), 0.1 ** np.arange(length))
    assert fit.verdict == "undetermined"
    assert f"too few lags: {used} of at least 5" in fit.reason
    assert "too few lags for a half-life" in fit.half_life_reason
    assert np.isnan(fit.rate) == (length < 3)


@pytest.mark.parametrize(
    ("norms", "reason"),
    [
        (np.zeros((3, 50)), "every norm is zero"),
        (np.full((3, 50), 1e-320), "too small to be represented"),
        (np.full((3, 50), np.inf), "no norm is finite"),
        (np.full((3, 50), np.nan), "there are no norms"),
        (np.ones((0, 50)), "there are no norms"),
        (np.ones((3, 0)), "there are no norms"),
    ],
)
def test_nothing_to_fit_is_undetermined_with_the_reason(norms, reason):
    fit = fit_decay(np.arange(norms.shape[1]), norms)
    assert fit.verdict == "undetermined"
    assert reason in fit.reason
    assert fit.half_life is None
    assert np.isnan(fit.reach)


def test_a_gradient_that_is_zero_after_the_last_step_vanishes():
    # An LSTM with W_hh = 0: the hidden adjoint is exactly zero before the last step.
    fit = fit_decay(LAGS, np.r_[1.0, np.zeros(99)])
    assert fit.verdict == "vanishing"
    assert (fit.lost_from, fit.horizon, fit.last_lag) == (1, 1, 0)


def test_a_preserved_gradient_cut_off_at_a_lag_is_not_preserved():
    fit = fit_decay(LAGS, np.r_[np.ones(50), np.zeros(50)])
    assert fit.verdict == "vanishing"
    assert "from lag 50 on" in fit.reason
    assert fit.horizon == 50


def test_an_overflow_beyond_a_flat_curve_is_undetermined():
    fit = fit_decay(LAGS, np.r_[np.ones(50), np.full(50, np.inf)])
    assert fit.verdict == "undetermined"
    assert "not finite from lag 50 on" in fit.reason
    assert fit.n_nonfinite == 50


def test_sequences_without_any_gradient_do_not_weigh():
    norms = np.vstack([batch(-0.19), np.zeros((20, 100))])
    alone, together = fit_decay(LAGS, batch(-0.19)), fit_decay(LAGS, norms)
    assert together.rate == pytest.approx(alone.rate)
    assert together.n_sequences == 8
    assert "2000 norms exactly zero" in together.reason


def test_the_horizon_is_the_first_lag_below_the_fraction():
    assert fit_decay(LAGS, 0.5**LAGS).horizon == 7  # 2**-7 < .01 <= 2**-6
    assert fit_decay(LAGS, 0.5**LAGS, horizon_fraction=0.3).horizon == 2
    assert fit_decay(LAGS, 0.999**LAGS).horizon is None


def test_the_ratio_at_an_unknown_lag_is_not_a_number():
    assert np.isnan(fit_decay(LAGS, 0.5**LAGS).ratio(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lag_range": (9, 9)}, "lag_range"),
        ({"confidence": 1.0}, "confidence"),
        ({"resamples": 0}, "resamples"),
        ({"horizon_fraction": 0}, "horizon_fraction"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(SettingError, match=message):
        fit_decay(LAGS, 0.5**LAGS, **options)


# --- steps ---------------------------------------------------------------------------------------------------------


def by_steps(*rates, n=4):
    """Norms of ``n`` sequences at each of some recorded steps, and the step of each."""
    norms = np.vstack([batch(rate, n=n, spread=0.0005, seed=i) for i, rate in enumerate(rates)])
    return {"norms": norms, "steps": np.repeat(10 * np.arange(len(rates)), n)}


def test_the_interval_over_steps_comes_from_the_steps_alone():
    rates = np.array([-0.20, -0.21, -0.19, -0.205])
    exact = {"norms": np.repeat(10 ** (rates[:, None] * LAGS), 50, axis=0), "steps": np.repeat(np.arange(4), 50)}
    fit = fit_decay(LAGS, **exact, resamples=20_000)
    assert (fit.unit, fit.n_steps, fit.n_sequences) == ("step", 4, 200)
    np.testing.assert_allclose(fit.interval, stats.t.interval(0.95, 3, rates.mean(), stats.sem(rates)), rtol=0.01)


def test_steps_that_all_vanish_vanish_however_much_they_differ():
    fit = fit_decay(LAGS, **by_steps(-0.3, -0.2, -0.1, -0.05, -0.03))
    assert fit.interval[1] > -1 / 94  # the mean of so different steps is not known
    assert fit.verdict == "vanishing"
    assert "by 10 or more in each of the 5 recorded steps" in fit.reason


def test_steps_that_differ_are_named_where_no_verdict_holds_for_all():
    fit = fit_decay(LAGS, **by_steps(-0.3, -0.1, -0.05, -0.03, 0.02))
    assert fit.verdict == "undetermined"
    assert "the 5 recorded steps differ: over lags 5–99 their lines change by −28 to 1.9 decades" in fit.reason


@pytest.mark.parametrize("steps", [[0, 1], np.zeros(8), [[0] * 8]])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(SettingError, match="steps must hold one integer per sequence"):
        fit_decay(LAGS, batch(-0.1), steps=steps)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_the_interval_over_runs_comes_from_the_runs_alone():
    rates = np.array([-0.20, -0.21, -0.19, -0.205, -0.195])
    one_row = [fit_decay(LAGS, 10 ** (rate * LAGS)) for rate in rates]
    many_rows = [fit_decay(LAGS, 10 ** (rate * LAGS) * np.ones((50, 1))) for rate in rates]
    expected = stats.t.interval(0.95, 4, rates.mean(), stats.sem(rates))
    for fits in (one_row, many_rows):
        fit = combine_fits(fits, resamples=20_000)
        assert fit.rate == pytest.approx(rates.mean())
        assert (fit.unit, fit.n_sequences, fit.lag_range) == ("run", 5, (5, 99))
        np.testing.assert_allclose(fit.interval, expected, atol=1.5e-3)


def test_runs_of_different_length_are_compared_over_common_lags():
    fits = [fit_decay(range(n), 0.8 ** np.arange(n)) for n in (30, 60)]
    fit = combine_fits(fits)
    assert fit.lag_range == (5, 29)
    assert fit.rate == pytest.approx(np.log10(0.8))


def test_runs_below_the_range_of_floats_combine():
    fit = combine_fits([fit_decay(range(1200), 10.0 ** (-0.25 * np.arange(1200))) for _ in range(3)])
    assert fit.rate == pytest.approx(-0.25, abs=1e-6)


def test_nothing_to_combine_is_refused():
    with pytest.raises(SettingError, match="no fits"):
        combine_fits([])


# --- properties ------------------------------------------------------------------------------------------------------

tables = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 30)), elements=st.floats(1e-6, 1e6))


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(-20, 20))
def test_the_unit_of_the_loss_does_not_matter(norms, power):
    lags = np.arange(norms.shape[1])
    fit, scaled = fit_decay(lags, norms), fit_decay(lags, norms * 2.0**power)
    assert scaled.rate == pytest.approx(fit.rate, abs=1e-9, nan_ok=True)
    assert scaled.reach == pytest.approx(fit.reach, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_sequences_does_not_matter(norms, random):
    lags = np.arange(norms.shape[1])
    order = list(range(norms.shape[0]))
    random.shuffle(order)
    fit, shuffled = fit_decay(lags, norms), fit_decay(lags, norms[order])
    assert shuffled.rate == pytest.approx(fit.rate, abs=1e-9, nan_ok=True)
    assert shuffled.r2 == pytest.approx(fit.r2, abs=1e-6, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(0, 5), st.integers(0, 40)),
        elements=st.one_of(st.floats(min_value=0), st.just(0.0), st.just(np.nan)),
    )
)
@example(np.array([[1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1.0, 0, 0]]))
def test_any_table_of_norms_gets_a_verdict_and_a_reason(norms):
    fit = fit_decay(np.arange(norms.shape[1]), norms)
    assert fit.verdict in ("vanishing", "preserved", "exploding", "undetermined")
    assert fit.reason
    assert (fit.half_life is None) == bool(fit.half_life_reason)


@pytest.mark.parametrize("n", [4, 8, 32])
def test_the_interval_covers_the_true_rate_as_often_as_it_says(n):
    truth, trials = -0.15, 600
    covered = refused = 0
    for seed in range(trials):
        fit = fit_decay(LAGS, batch(truth, n=n, seed=seed), resamples=400, seed=seed)
        if fit.interval is None:  # random walks that happen to run together
            refused += 1
        else:
            covered += fit.interval[0] <= truth <= fit.interval[1]
    assert refused / trials <= 0.05
    assert 0.92 <= covered / (trials - refused) <= 0.985
