from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from gradscope.lab.sweep.story import decay_by_threshold, outcomes_of, tell_sweep
from tests.made_runs import make_run

RATES = {None: (-0.2, -0.4), 0.5: (-0.2, -0.05)}


def row(name, clip, seed, value, diverged=math.nan, cell="rnn"):
    point = {
        "task": "digits",
        "length": 40,
        "cell": cell,
        "init": "default",
        "clip": math.nan if clip is None else clip,
    }
    numbers = {
        "reach_early": 1e-8,
        "reach_late": 0.01 if clip else 1e-15,
        "loss": 1.0,
        "steps": 11,
        "metric": "accuracy",
    }
    return {"name": name, **point, "seed": seed, "value": value, "diverged": diverged, **numbers}


@pytest.fixture
def swept(tmp_path):
    rows, runs = [], {}
    for clip, rates in RATES.items():
        for seed in range(3):
            name = f"clip-{clip}-{seed}"
            runs[name] = make_run(tmp_path / name, rates, cell="rnn_tanh", threshold=clip, seed=seed)
            diverged = 7.0 if clip is None and seed == 2 else math.nan
            rows.append(row(name, clip, seed, (0.7 if clip else 0.1) + 0.01 * seed, diverged))
    return pd.DataFrame(rows), runs


def test_findings_come_with_their_spread_and_diverged_runs_apart(swept):
    table, runs = swept
    (chapter,) = tell_sweep(table, runs).chapters
    words = " ".join(chapter.text)
    assert "Threshold 0.5 ended better than no clipping" in words
    assert "With threshold 0.5, held-out accuracy ended at 0.70–0.72 (mean 0.71) over 3 runs." in words
    assert "Without clipping, 1 of 3 runs diverged" in words
    assert "in the last tenth, 0.010 at threshold 0.5; 1e-15 without clipping" in words


def test_a_run_stopped_at_a_finite_loss_is_shown_as_diverged(swept):
    table, runs = swept
    pictures = {picture.name: picture for picture in tell_sweep(table, runs).chapters[0].pictures}
    data = pictures["sweep_loss"].data
    assert data[data["diverged"]].groupby("run")["step"].min().to_dict() == {"clip-None-2": 7}
    assert "1 of 6 runs diverged" in pictures["sweep_loss"].caption
    assert set(pictures) == {"sweep_loss", "norm_distribution", "sweep_decay"}  # no accuracy was logged in these runs


def test_the_decay_of_a_threshold_is_that_of_its_runs(swept):
    _, runs = swept
    data = decay_by_threshold(list(runs.values()))
    assert list(dict.fromkeys(data["run"])) == ["0.5", "none", "before training"]
    assert data["n_sequences"].max() == 6
    for name, rate in (("0.5", -0.05), ("none", -0.4), ("before training", -0.2)):
        line = data[data["run"] == name]
        slope = np.polyfit(line["lag"], np.log10(line["norm"]), 1)[0]
        assert slope == pytest.approx(rate, abs=2e-3)


def test_curves_can_be_of_another_quantity(tmp_path):
    run = make_run(tmp_path / "run", (-0.2,), inputs=True)
    of = {quantity: decay_by_threshold([run], quantity) for quantity in ("cell", "input")}
    assert {quantity: set(data["quantity"]) for quantity, data in of.items()} == {"cell": {"cell"}, "input": {"input"}}
    np.testing.assert_allclose(of["input"]["norm"], of["cell"]["norm"] / 10, rtol=1e-12)


def test_every_cell_has_its_chapter_and_figures_of_its_own(swept):
    table, runs = swept
    other = table.assign(cell="lstm", name=[f"lstm-{name}" for name in table["name"]])
    again = {f"lstm-{name}": run for name, run in runs.items()}
    story = tell_sweep(pd.concat([table, other]), runs | again)
    names = [picture.name for chapter in story.chapters for picture in chapter.pictures]
    assert len(story.chapters) == 2
    assert len(names) == len(set(names))


def test_one_seed_is_said_to_be_one(swept):
    table, runs = swept
    story = tell_sweep(table[table["seed"] == 0], runs)
    assert "One seed says nothing" in story.opening[1]
    assert "cannot be compared with no clipping" in story.chapters[0].text[0]


def test_a_diverged_value_counts_for_nothing(swept):
    table, _ = swept
    assert [outcome.values for outcome in outcomes_of(table)] == [(0.7, 0.71, 0.72), (0.1, 0.11)]
