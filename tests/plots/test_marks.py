from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.plots import marks, style


@settings(max_examples=12, deadline=None)
@given(st.floats(-300, 300), st.floats(0, 300))
def test_a_log_axis_has_two_to_nine_labels_inside_its_limits(low, span):
    values = 10.0 ** np.array([low, min(low + span, 300)])
    with style.use("screen"):
        _, ax = style.figure("screen")
        marks.log_y(ax, [values])
    low_limit, high_limit = ax.get_ylim()
    inside = [t for t in ax.get_yticks() if low_limit <= t <= high_limit]
    assert 2 <= len(inside) <= 9
    assert low_limit <= values.min()
    assert high_limit >= values.max()
    assert np.isfinite([low_limit, high_limit]).all()


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [np.nan, np.inf], [1e-310, 1e308]])
def test_a_log_axis_survives_values_it_cannot_show(values):
    with style.use("screen"):
        figure, ax = style.figure("screen")
        ax.plot(values)
        marks.log_y(ax, [values])
        figure.draw_without_rendering()
    assert ax.get_yscale() == "log"


def test_labels_of_an_axis_are_digits_or_powers_never_both():
    assert marks.tick_labels([0.01, 0.1, 1]) == ["0.01", "0.1", "1"]
    assert marks.tick_labels([1e-4, 1e-2, 1]) == ["$10^{-4}$", "$10^{-2}$", "1"]


def test_a_single_whole_number_gets_its_own_tick():
    with style.use("screen"):
        _, ax = style.figure("screen")
        marks.whole_x(ax, [7])
    low, high = ax.get_xlim()
    assert [t for t in ax.get_xticks() if low <= t <= high] == [7]


@settings(max_examples=12, deadline=None)
@given(st.floats(-1e5, 1e3), st.floats(0, 1e5))
def test_an_axis_of_powers_has_two_to_nine_labels_however_far_it_reaches(low, span):
    with style.use("screen"):
        _, ax = style.figure("screen")
        marks.powers_y(ax, [np.clip([low, low + span, -np.inf, np.nan], None, 300)])
    low_limit, high_limit = ax.get_ylim()
    assert low_limit <= min(low, 300) <= high_limit
    assert 2 <= sum(low_limit <= t <= high_limit for t in ax.get_yticks()) <= 9
