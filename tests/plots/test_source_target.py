from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import source_target, style

FULL = np.arange(1.0, 10.0).reshape(3, 3)


def measured(hidden, cell=None, *, reverse=False):
    info = SimpleNamespace(site="x/l0", curve="hidden" if cell is None else "cell", reverse=reverse)
    return SimpleNamespace(info=info, hidden=hidden, cell=cell)


def pairs(data):
    return sorted(zip(data["target"], data["source"], strict=True))


LOWER = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
UPPER = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def test_a_forward_direction_keeps_the_lower_triangle():
    data = source_target.table(np.tril(FULL))
    assert pairs(data) == LOWER
    assert data.set_index(["target", "source"])["norm"].loc[(2, 1)] == 8.0
    assert "after their target" in source_target.caption(data)


def test_a_reverse_direction_keeps_the_upper_triangle():
    data = source_target.table(measured(np.triu(FULL), reverse=True))
    assert pairs(data) == UPPER
    assert data.set_index(["target", "source"])["norm"].loc[(0, 2)] == 3.0
    assert "before their target" in source_target.caption(data)


def test_a_matrix_without_a_zero_half_is_kept_whole():
    """Below a bidirectional layer every loss depends on every step."""
    data = source_target.table(FULL)
    assert len(data) == 9
    assert "blank" not in source_target.caption(data)


@pytest.mark.parametrize(("reverse", "kept"), [(False, LOWER), (True, UPPER)])
def test_a_model_that_remembers_nothing_leaves_out_the_half_that_causality_forbids(reverse, kept):
    data = source_target.table(measured(np.diag([1.0, 2.0, 3.0]), reverse=reverse))
    assert pairs(data) == kept


def test_fewer_targets_than_steps_are_drawn_as_they_are():
    matrix = np.array([[1.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.5, 1.0]])
    data = source_target.table(matrix)
    assert len(data) == 8
    with style.use("screen"):
        ax = source_target.draw(data)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 3.5), (1.5, -0.5))
    assert ax.get_ylabel() == "target $t$"


def test_an_lstm_shows_its_cell_state_unless_asked_otherwise():
    found = measured(np.tril(FULL), np.tril(10 * FULL))
    assert source_target.table(found)["norm"].iloc[0] == 10.0
    data = source_target.table(found, quantity="hidden")
    assert data["norm"].iloc[0] == 1.0
    assert "hidden state" in source_target.caption(data)


def test_what_there_is_not_is_refused():
    with pytest.raises(SettingError, match=r"\(3,\)"):
        source_target.table(np.ones(3))
    with pytest.raises(NotRecordedError, match="no cell state"):
        source_target.table(measured(FULL), quantity="cell")
    with pytest.raises(UnknownNameError, match="hidden"):
        source_target.table(FULL, quantity="hiden")
