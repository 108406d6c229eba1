"""A map: which runs share a cell, with which mean and interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import figures, map, style
from tests.made_runs import make_run

REACHED = {(20, 0.5): (0.8, 0.9, 0.7), (20, None): (0.3, 0.4), (80, 0.5): (0.6,), (80, None): ()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("map")
    made = []
    for (length, threshold), values in REACHED.items():
        for seed, value in enumerate(values):
            made.append(_run(root / f"{length}-{threshold}-{seed}", length, threshold, seed, value))
    return [*made, _run(root / "80-None-0", 80, None, 0, 0.1, diverges_at=5)]


def _run(path, length, threshold, seed, value, **options):
    labels = {"length": length, "seed": seed, "init": "default"}
    scalars = {"held_out_accuracy": value}
    return make_run(
        path, (-0.1, -0.1), labels=labels, threshold=threshold, scalars=scalars, inputs=True, seed=seed, **options
    )


def test_cells_hold_the_mean_over_their_seeds_with_students_interval(runs):
    data = map.table(runs).set_index(["row", "column"])
    assert set(data["rows"]) == {"length"}
    assert set(data["columns"]) == {"threshold"}
    values = np.array(REACHED[20, 0.5])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    cell = data.loc[(20, 0.5)]
    # No accuracy lies above 1.
    np.testing.assert_allclose([cell["value"], cell["low"], cell["high"]], [values.mean(), low, min(high, 1.0)])
    assert np.isnan(data.loc[(80, 0.5), "low"])  # one run has no interval


def test_runs_that_diverged_are_counted_and_kept_out_of_the_mean(runs):
    cell = map.table(runs).set_index(["row", "column"]).loc[(80, np.inf)]
    assert (cell["n"], cell["diverged"]) == (1, 1)
    assert np.isnan(cell["value"])
    with style.use("neurips"):
        ax = figures.figure_of(map, map.table(runs), "neurips").axes[0]
    assert "diverged" in {text.get_text() for text in ax.texts}


def test_what_arrives_at_the_first_input_can_be_mapped(runs):
    data = map.table(runs[:5], metric="reach")
    assert (data["value"] < 1e-2).all()
    assert (data["value"] > 1e-6).all()


def test_settings_can_be_chosen_and_unknown_ones_are_refused(runs):
    data = map.table(runs, rows="threshold", columns="length")
    assert set(data["column"]) == {20, 80}
    with pytest.raises(UnknownNameError, match="length"):
        map.table(runs, rows="lenght")
    with pytest.raises(SettingError, match="labels"):
        map.table(runs[:1])
    with pytest.raises(NotRecordedError, match="'bleu'"):
        map.table(runs, metric="bleu")


def test_the_caption_names_the_best_and_the_worst(runs):
    words = map.caption(map.table(runs))
    assert "Highest: 0.80 (length 20, threshold 0.5)" in words
    assert "Lowest: 0.35 (length 20, threshold none)" in words
