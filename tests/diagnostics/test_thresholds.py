from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.diagnostics import adaptive_table, suggest_threshold, threshold_table
from gradscope.diagnostics.thresholds import round_thresholds
from gradscope.errors import SettingError


def test_the_table_counts_steps_that_a_threshold_would_have_clipped():
    low, high = threshold_table([0.5, 1.0, 2.0, 4.0, np.nan], [1.5, np.inf])
    assert (low.clipped, low.n) == (0.5, 4)
    assert low.norm_max == pytest.approx(1.5, rel=1e-5)
    assert low.scale_p50 == pytest.approx((1 + 0.75) / 2, rel=1e-5)
    assert (high.clipped, high.scale_mean, high.norm_max) == (0.0, 1.0, pytest.approx(4.0))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_a_larger_threshold_clips_less(norms):
    rows = threshold_table(norms)
    for smaller, larger in pairwise(rows):
        assert smaller.clipped >= larger.clipped
        assert smaller.scale_mean <= larger.scale_mean
    assert rows[-1].threshold == np.inf


def test_default_thresholds_are_round_and_span_the_norms():
    grid = round_thresholds(np.geomspace(0.1, 10, 200))
    assert grid[0] == 0.1
    assert grid[-2:] == (10.0, np.inf)
    assert 0.2 in grid
    assert round_thresholds([0.0, np.nan]) == (np.inf,)


def test_a_wide_range_of_norms_keeps_the_table_short():
    assert len(round_thresholds(np.geomspace(1e-6, 1e6, 200))) < 20


def test_an_empty_record_gives_a_table_without_numbers():
    (row,) = threshold_table([])
    assert row.n == 0
    assert np.isnan(row.clipped)


def test_the_suggestion_runs_from_the_median_to_the_99th_percentile():
    norms = np.random.default_rng(0).lognormal(0, 0.5, 500)
    suggestion = suggest_threshold(norms)
    assert suggestion.low == pytest.approx(np.median(norms))
    assert suggestion.high == pytest.approx(np.percentile(norms, 99))
    assert suggestion.autoclip == pytest.approx(np.percentile(norms, 10))
    assert suggestion.pascanu == pytest.approx((0.5 * norms.mean(), 10 * norms.mean()))
    assert "clipped 50% down to 1% of this run's 500 norms" in suggestion.words
    assert "not a setting" in suggestion.words


def test_pascanus_range_narrows_the_suggestion_where_the_two_overlap():
    norms = np.r_[np.ones(90), np.full(10, 1000.0)]  # mean 100.9: quantiles 1 to 1000
    suggestion = suggest_threshold(norms)
    assert suggestion.low == pytest.approx(50.45)
    assert suggestion.high == 1000
    assert "Pascanu" in suggestion.reason


@pytest.mark.parametrize(
    ("norms", "reason"), [(np.ones(19), "only 19 finite norms"), (np.zeros(50), "every recorded norm is zero")]
)
def test_too_little_to_go_by_gives_no_range(norms, reason):
    suggestion = suggest_threshold(norms)
    assert (suggestion.low, suggestion.high, suggestion.words) == (None, None, "")
    assert reason in suggestion.reason


def test_norms_that_are_not_finite_are_named():
    assert "3 norms that are not finite" in suggest_threshold(np.r_[np.ones(50), [np.inf, np.nan, np.inf]]).reason


def test_adaptive_clipping_agrees_with_clipping_the_rows_themselves():
    rng = np.random.default_rng(0)
    gradient, weight = rng.normal(size=(6, 5)) * np.geomspace(1e-4, 1, 6)[:, None], rng.normal(size=(6, 5))
    weight[0] = 0.0  # a fresh row counts as 1e-3
    g, w = np.linalg.norm(gradient, axis=1), np.linalg.norm(weight, axis=1)
    (effect,) = adaptive_table(g, w, [0.01])
    clipped = gradient.copy()
    for i in range(6):
        limit = 0.01 * max(w[i], 1e-3)
        if g[i] > limit:
            clipped[i] *= limit / g[i]
    raw, cut = gradient.ravel(), clipped.ravel()
    assert effect.clipped == np.mean([not np.array_equal(a, b) for a, b in zip(gradient, clipped, strict=True)])
    assert effect.scale == pytest.approx(np.linalg.norm(cut) / np.linalg.norm(raw))
    assert effect.cosine == pytest.approx(raw @ cut / np.linalg.norm(raw) / np.linalg.norm(cut))


def test_adaptive_clipping_wants_a_weight_per_row():
    with pytest.raises(SettingError, match="one weight norm"):
        adaptive_table([1.0, 2.0], [1.0])


def test_adaptive_clipping_of_a_zero_gradient_has_no_angle():
    (effect,) = adaptive_table([0.0, 0.0], [1.0, 1.0], [0.1])
    assert effect.clipped == 0.0
    assert np.isnan(effect.cosine)


@pytest.mark.parametrize(("norms", "said"), [([1.5], "only 1 finite norm;"), ([1.5, 2.0], "only 2 finite norms;")])
def test_too_few_norms_are_counted_in_the_refusal(norms, said):
    assert said in str(suggest_threshold(norms).reason)
