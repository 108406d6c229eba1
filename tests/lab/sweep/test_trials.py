from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from gradscope.errors import RunDamagedError, RunExistsError, RunNotFoundError, SettingError, UnknownNameError
from gradscope.lab.sweep import trials
from gradscope.lab.sweep.grid import Grid
from gradscope.lab.sweep.trials import cells_of, done_table, result_table, run_cell, run_sweep, summary_table
from gradscope.lab.zoo.train import TrainSettings
from gradscope.reading.answers import pooled_fit
from gradscope.store import open_run
from gradscope.store.locking import lock_directory, share_directory

GRID = Grid(
    task="adding",
    lengths=(8,),
    cells=("rnn", "lstm"),
    inits=("default", "forget1"),
    clips=(None, 0.1),
    seeds=(0, 1),
    hidden_size=4,
    settings=TrainSettings(steps=4, batch_size=8),
    every=2,
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    return out, run_sweep(GRID, out, progress=False)


def test_the_grid_is_the_product_of_its_axes_without_meaningless_pairs():
    names = [trial.name for trial in GRID.trials()]
    assert len(names) == len(set(names)) == 3 * 2 * 2
    assert GRID.left_out() == [("rnn", "forget1")]
    assert "adding_T8_lstm_forget1_clip-0.1_seed-1" in names


def test_every_trial_leaves_a_recording_and_a_row(swept):
    out, table = swept
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted(table["name"])
    assert table[["loss", "value", "rate_early", "reach_late"]].notna().all(axis=None)
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), result_table(out), check_dtype=False)


def test_rates_are_those_of_the_quantity_asked_for_without_training_again(swept, monkeypatch):
    out, table = swept
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: pytest.fail("trained again"))
    found = run_sweep(replace(GRID, quantity="input"), out, progress=False)
    for _, row in found.iterrows():
        with open_run(out / "runs" / row["name"]) as run:
            assert row["rate_late"] == pooled_fit(run, run.sites[0], "input", "late").rate
    assert (found["rate_late"] != table["rate_late"]).all()


def test_a_quantity_that_is_not_usual_is_recorded(tmp_path):
    grid = replace(GRID, cells=("lstm",), inits=("default",), clips=(None,), seeds=(0,), quantity="cell_carry")
    table = run_sweep(grid, tmp_path / "out", progress=False)
    assert table["rate_late"].notna().all()
    with open_run(tmp_path / "out" / "runs" / table["name"][0]) as run:
        assert set(run.quantities("recurrent/l0")) >= {"cell_carry", "cell", "hidden", "input"}


def test_a_run_carries_what_tells_it_from_the_others(swept):
    out, _ = swept
    with open_run(out / "runs" / "adding_T8_lstm_forget1_clip-0.1_seed-1") as run:
        labels = run.settings["labels"]
    assert labels.items() >= {"cell": "lstm", "init": "forget1", "seed": 1, "length": 8, "chance_mse": 1 / 6}.items()


def test_a_result_of_a_version_with_fewer_settings_is_done(swept, tmp_path):
    out, _ = swept
    shutil.copytree(out, tmp_path / "older")
    for path in (tmp_path / "older" / "results").iterdir():
        found = json.loads(path.read_text())
        del found["trial"]["quantity"]
        path.write_text(json.dumps(found))
    assert len(run_sweep(GRID, tmp_path / "older", progress=False)) == 12


def test_the_summary_counts_seeds_and_averages_them(swept):
    _, table = swept
    summary = summary_table(table)
    assert summary["seeds"].tolist() == [2] * 6
    one = table[(table["cell"] == "rnn") & table["clip"].isna()]
    row = summary[(summary["cell"] == "rnn") & summary["clip"].isna()].iloc[0]
    assert row["value"] == pytest.approx(one["value"].mean())
    assert row["spread"] == pytest.approx(one["value"].std())


def test_a_finished_sweep_trains_nothing_again(swept, monkeypatch):
    out, table = swept
    monkeypatch.setattr(trials, "run_trial", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(run_sweep(GRID, out, progress=False), table)


def test_a_cut_off_sweep_goes_on_where_it_stopped_with_the_same_numbers(swept, tmp_path, monkeypatch):
    _, table = swept
    run_trial, done = trials.run_trial, []

    def until_the_third(trial, out):
        if len(done) == 2:
            (out / "runs" / trial.name).mkdir()  # what a kill leaves: a run without a result
            raise KeyboardInterrupt
        done.append(run_trial(trial, out))
        return done[-1]

    monkeypatch.setattr(trials, "run_trial", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(GRID, tmp_path / "out", progress=False)
    monkeypatch.setattr(trials, "run_trial", lambda trial, out: done.append(run_trial(trial, out)) or done[-1])
    resumed = run_sweep(GRID, tmp_path / "out", progress=False)
    assert len(done) == len(set(done)) == 12
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), table.drop(columns="seconds"))


def test_more_seeds_add_to_what_is_there(swept, tmp_path, monkeypatch):
    grid = replace(GRID, cells=("rnn",), clips=(None,), seeds=(0,))
    run_sweep(grid, tmp_path / "out", progress=False)
    run_trial, done = trials.run_trial, []
    monkeypatch.setattr(trials, "run_trial", lambda trial, out: done.append(run_trial(trial, out)) or done[-1])
    run_sweep(replace(grid, seeds=(0, 1)), tmp_path / "out", progress=False)
    assert done == ["adding_T8_rnn_default_clip-none_seed-1"]


@pytest.mark.slow
def test_two_jobs_give_the_numbers_of_one(swept, tmp_path):
    _, table = swept
    parallel = run_sweep(GRID, tmp_path / "out", jobs=2, progress=False)
    pd.testing.assert_frame_equal(parallel.drop(columns="seconds"), table.drop(columns="seconds"))


def test_other_settings_in_the_same_place_are_refused(swept):
    out, _ = swept
    with pytest.raises(RunExistsError, match="steps 4, not 9"):
        run_sweep(replace(GRID, settings=TrainSettings(steps=9, batch_size=8)), out, progress=False)


def test_a_directory_that_is_no_sweep_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunExistsError, match="no sweep"):
        run_sweep(GRID, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_second_sweep_in_the_same_place_is_refused(swept):
    out, _ = swept
    lock = lock_directory(out)
    try:
        with pytest.raises(RunExistsError, match="another sweep"):
            run_sweep(GRID, out, progress=False)
    finally:
        lock.close()


def test_diverged_trials_are_rows_without_a_final_loss(tmp_path):
    settings = TrainSettings(steps=30, batch_size=8, optimizer="sgd", learning_rate=1e6)
    grid = replace(GRID, cells=("rnn-relu",), inits=("identity",), clips=(None,), seeds=(0,), settings=settings)
    table = run_sweep(grid, tmp_path / "out", progress=False)
    assert table["diverged"].notna().all()
    assert math.isnan(table["loss"][0])
    assert summary_table(table)["diverged"][0] == 1


def test_the_window_baseline_is_trained_without_a_recording(tmp_path):
    grid = replace(GRID, cells=("window",), inits=("default",), clips=(None,), seeds=(0,))
    table = run_sweep(grid, tmp_path / "out", progress=False)
    assert table["value"].notna().all()
    assert table["rate_early"].isna().all()


def test_damaged_and_missing_results_say_which(tmp_path):
    with pytest.raises(RunNotFoundError, match="no sweep"):
        result_table(tmp_path)
    (tmp_path / "results").mkdir()
    broken = tmp_path / "results" / "a.json"
    for text in ("{", "[]", json.dumps({"name": "a"})):
        broken.write_text(text)
        with pytest.raises(RunDamagedError, match="a"):
            result_table(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"cells": ("elman",)}, UnknownNameError),
        ({"inits": ("xavier",)}, UnknownNameError),
        ({"task": "subtracting"}, UnknownNameError),
        ({"lengths": (1,)}, SettingError),
        ({"seeds": ()}, SettingError),
        ({"cells": ("gru",), "inits": ("orthogonal",)}, SettingError),
        ({"quantity": "gates"}, UnknownNameError),
        ({"quantity": "cell", "cells": ("rnn",)}, SettingError),
    ],
)
def test_a_bad_grid_is_refused_before_anything_is_made(tmp_path, change, error):
    with pytest.raises(error):
        run_sweep(replace(GRID, **change), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


# --- cells of a job array --------------------------------------------------------------------------------------------

ARRAY = replace(GRID, cells=("rnn",), seeds=(0, 1))


def test_cells_trained_one_by_one_in_any_order_have_the_rows_of_the_sweep(swept, tmp_path):
    _, table = swept
    for index in (3, 0, 1, 2):
        name = run_cell(ARRAY, tmp_path / "out", index)
        assert name == ARRAY.trials()[index].name
    found = done_table(ARRAY, tmp_path / "out").drop(columns="seconds")
    expected = table[table["name"].isin(found["name"])].drop(columns="seconds").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)
    assert len(found) == 4


def test_a_cell_that_is_done_is_not_trained_again_and_the_page_takes_what_is_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_cell(ARRAY, out, 2)
    monkeypatch.setattr(trials, "run_trial", lambda *_, **__: pytest.fail("trained again"))
    run_cell(ARRAY, out, 2)
    assert [done for _, done in cells_of(ARRAY, out)] == [False, False, True, False]
    assert done_table(ARRAY, out)["name"].tolist() == [ARRAY.trials()[2].name]
    with pytest.raises(RunNotFoundError, match="no cell of this sweep is done yet"):
        done_table(replace(ARRAY, seeds=(7,)), out)


def test_cells_share_a_directory_with_each_other_but_not_with_a_sweep(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_cell(ARRAY, out, 0)

    def beside(trial, out):
        share_directory(out).close()  # as another cell would: not refused
        with pytest.raises(RunExistsError, match="is being written by another sweep"):
            run_sweep(ARRAY, out, progress=False)
        return trial.name

    monkeypatch.setattr(trials, "run_trial", beside)
    run_cell(ARRAY, out, 1)
    lock = lock_directory(out)
    with pytest.raises(RunExistsError, match="is being written by another sweep"):
        run_cell(ARRAY, out, 1)
    lock.close()


def test_a_cell_that_another_process_trains_is_left_alone_and_an_index_beyond_the_grid_is_refused(tmp_path):
    out = tmp_path / "out"
    rank = out / "runs" / ARRAY.trials()[0].name / "attempt-1" / "rank-0"
    (out / "results").mkdir(parents=True)
    rank.mkdir(parents=True)
    lock = lock_directory(rank)
    with pytest.raises(RunExistsError, match="is being written by another process"):
        run_cell(ARRAY, out, 0)
    lock.close()
    with pytest.raises(SettingError, match="--index 4 is out of range: the sweep has 4 cells, 0 to 3"):
        run_cell(ARRAY, out, 4)
