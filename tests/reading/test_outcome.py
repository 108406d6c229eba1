from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import stats

from gradscope.diagnostics import compare_means
from gradscope.errors import SettingError
from gradscope.reading.outcome import findings, outcomes_by_threshold

INF = math.inf
CLIPPED, FREE = [0.66, 0.73, 0.69, 0.70], [0.08, 0.14, 0.10, 0.09]


def grouped(groups, diverged=(), **options):
    runs = [(t, value) for t, values in groups.items() for value in values]
    gone = [i in diverged for i in range(len(runs))]
    return outcomes_by_threshold([t for t, _ in runs], [v for _, v in runs], gone, **options)


def said(groups, diverged=(), better=True):
    return findings(grouped(groups, diverged), "held-out accuracy", higher_is_better=better)


def test_each_threshold_is_told_with_the_range_over_its_runs():
    _, first, last, *_ = said({INF: FREE, 0.5: CLIPPED})
    assert first == "With threshold 0.5, held-out accuracy ended at 0.66–0.73 (mean 0.70) over 4 runs."
    assert last.startswith("Without clipping, held-out accuracy ended at 0.08–0.14")


def welch(a, b, ends):
    """How probable differences beyond each end of an interval are by Welch's test."""
    return [stats.ttest_ind(np.subtract(a, end), b, equal_var=False).pvalue for end in ends]


def test_the_interval_is_welchs_at_a_level_shared_by_all_differences():
    outcomes = grouped({INF: FREE, 0.5: CLIPPED, 5.0: FREE[::-1]})
    low, high = outcomes[0].versus.interval
    assert welch(CLIPPED, FREE, (low, high)) == pytest.approx([0.025, 0.025])
    assert low < np.mean(CLIPPED) - np.mean(FREE) < high
    assert [outcome.versus is None for outcome in outcomes] == [False, False, True]


def test_a_difference_beyond_the_spread_is_better_or_worse_by_the_metric():
    groups = {INF: FREE, 0.5: CLIPPED}
    assert "Threshold 0.5 ended better than no clipping" in " ".join(said(groups))
    assert "Threshold 0.5 ended worse than no clipping" in " ".join(said(groups, better=False))


def test_runs_that_overlap_are_not_told_apart():
    words = " ".join(said({INF: [0.5, 0.7, 0.6], 1.0: [0.52, 0.74, 0.62]}))
    assert "Threshold 1 cannot be told from no clipping with these runs" in words
    assert "+0.03 (" in words


def test_a_small_difference_has_one_sign():
    words = said({INF: [0.100, 0.101], 1.0: [0.099, 0.100]})[-1]
    assert re.search(r"1: −0\.0010 \(−0\.0\d+ to \+0\.0\d+\)\.", words), words


def test_diverged_runs_are_counted_and_left_out_of_the_means():
    outcomes = grouped({0.5: CLIPPED, INF: FREE}, diverged={4, 5, 6})
    assert outcomes[1].values == (0.09,)
    words = " ".join(findings(outcomes, "accuracy", higher_is_better=True))
    assert "Without clipping, 3 of 4 runs diverged; accuracy ended at 0.09 over the 1 that did not." in words
    assert "cannot be compared with no clipping (at least two runs on each side are needed)" in words
    assert "flatter" in words


def test_where_all_diverge_it_says_so():
    words = said({0.5: CLIPPED, INF: FREE}, diverged={4, 5, 6, 7})
    assert words[2] == "Without clipping, all 4 runs diverged."
    assert "no run with a number on one side" in words[0]


def test_one_run_each_gives_no_comparison():
    assert "cannot be compared" in said({INF: [0.1], 0.5: [0.7]})[0]


def test_without_unclipped_runs_nothing_is_compared():
    assert len(said({0.5: CLIPPED, 1.0: FREE})) == 2


@pytest.mark.parametrize("seed", range(3))
def test_means_are_compared_as_rates_are(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 6))
    low, high = compare_means(a, [*b, math.nan]).interval
    assert welch(a, b, (low, high)) == pytest.approx([0.05, 0.05])
    assert low < a.mean() - b.mean() < high


def test_bad_arguments_are_refused():
    with pytest.raises(SettingError, match="one of each per run"):
        outcomes_by_threshold([1.0], [1.0, 2.0], [False])
    with pytest.raises(SettingError, match="confidence"):
        outcomes_by_threshold([1.0], [1.0], [False], confidence=1)
