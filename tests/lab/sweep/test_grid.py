from __future__ import annotations

import pytest

from gradscope.lab.sweep.grid import grid_for


def test_thresholds_are_compared_under_sgd_and_nothing_else_is():
    assert grid_for("digits", clips=(None, 1.0)).settings.optimizer == "sgd"
    assert grid_for("digits", clips=(1.0,)).settings.optimizer == "adam"
    assert grid_for("digits", clips=(None, 1.0), optimizer="adam").settings.optimizer == "adam"


def test_temporal_order_is_trained_as_it_was_published():
    grid = grid_for("temporal_order", clips=(None, 1.0))
    assert (grid.hidden_size, grid.settings.learning_rate, grid.inits) == (50, 0.01, ("orthogonal",))
    assert {trial.length for trial in grid.trials()} == {50}


def test_what_is_asked_for_goes_before_the_tasks_own():
    asked = {"hidden_size": 8, "steps": 3, "learning_rate": 0.5, "inits": ("default",)}
    grid = grid_for("temporal_order", clips=(None, 1.0), **asked)
    assert (grid.hidden_size, grid.settings.steps, grid.settings.learning_rate) == (8, 3, 0.5)
    assert grid.inits == ("default",)


@pytest.mark.parametrize("cells", [("lstm",), ("rnn", "gru"), ("window",)])
def test_an_initialisation_that_does_not_fit_every_cell_is_not_chosen(cells):
    assert grid_for("temporal_order", cells=cells).inits == ("default",)
