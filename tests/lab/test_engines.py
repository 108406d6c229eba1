"""Trainings on engines of other machines; their machines are processes of this one."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from gradscope.errors import RunError, SettingError
from gradscope.lab.engines import engine_of, on_dask, on_submitit
from gradscope.lab.jobs import each
from gradscope.lab.sweep import trials
from gradscope.lab.sweep.grid import Grid
from gradscope.lab.zoo.train import TrainSettings
from gradscope.store import open_run, validate

GRID = Grid(
    "adding", lengths=(8,), seeds=(0, 1, 2), hidden_size=4, settings=TrainSettings(steps=6, batch_size=8), every=2
)


class AtOnce:
    """An engine of this process that starts everything before anything is asked for."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []

    def start(self, work, todo):
        return [Done(self, work, job) for job in todo]


class Done:
    def __init__(self, engine, work, job):
        self.engine, self.work, self.job = engine, work, job

    def result(self):
        return self.work(self.job)

    def cancel(self):
        self.engine.cancelled.append(self.job)


def facts(job):
    if job < 0:
        raise ValueError(f"job {job}")
    return job, os.getpid(), torch.get_num_threads()


def overlap(job, inside=[]):  # noqa: B006  # shared by the threads of a worker
    inside.append(job)
    time.sleep(0.01)
    return [inside.remove(job), list(inside)][1]


def test_an_engine_does_every_job_on_one_thread_and_answers_in_order():
    found = list(each(facts, [3, 1, 2], engine=AtOnce(), progress=False))
    assert [job for job, _, _ in found] == [3, 1, 2]
    assert {threads for _, _, threads in found} == {1}


def test_a_job_that_fails_calls_the_others_off():
    engine = AtOnce()
    with pytest.raises(ValueError, match="job -1"):
        list(each(facts, [3, -1, 2], engine=engine, progress=False))
    assert engine.cancelled == [3, -1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dask": "tcp://x:1", "slurm": True}, "either --dask or --slurm"),
        ({"options": ["mem_gb=4"]}, "goes with --slurm"),
        ({"slurm": True, "options": ["mem_gb"]}, "takes KEY=VALUE"),
    ],
)
def test_a_wrong_choice_of_engine_is_refused(tmp_path, given, said):
    with pytest.raises(SettingError, match=said):
        engine_of(tmp_path / "out", **given)


# --- Dask ------------------------------------------------------------------------------------------------------------


def train_watched(trial, out: Path, log: Path, killed: str) -> str:
    """Train one trial and note it; the worker that first has ``killed`` dies in the middle of its training."""
    train = trials.train

    def watched(*args, run_dir, **options):
        seen = log / trial.name
        first = not seen.exists()
        with seen.open("a") as file:
            file.write("begun\n")
        if first and trial.name == killed:
            threading.Thread(target=die_during, args=(run_dir,), daemon=True).start()
            options["every"] = 1
            args = (*args[:2], TrainSettings(steps=10**6, batch_size=8))
        return train(*args, run_dir=run_dir, **options)

    trials.train = watched
    try:
        return trials.run_trial(trial, out)
    finally:
        trials.train = train


def die_during(run_dir: Path) -> None:
    while not list(run_dir.glob("attempt-1/rank-0/journal.sqlite")):
        time.sleep(0.005)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


def test_what_a_killed_worker_trained_is_trained_again_and_nothing_else(cluster, tmp_path, monkeypatch):
    expected = trials.run_sweep(GRID, tmp_path / "here", progress=False)
    log = tmp_path / "log"
    log.mkdir()
    names = [trial.name for trial in GRID.trials()]
    monkeypatch.setattr(trials, "run_trial", partial(train_watched, log=log, killed=names[1]))
    monkeypatch.setattr(trials, "_unless_done", partial(unless_done, train=trials.run_trial))
    with on_dask(cluster.scheduler_address) as engine:
        found = trials.run_sweep(GRID, tmp_path / "there", engine=engine, progress=False)
    begun = {path.name: len(path.read_text().splitlines()) for path in log.iterdir()}
    assert begun == {names[0]: 1, names[1]: 2, names[2]: 1}
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert sorted(path.name for path in (tmp_path / "there" / "runs").iterdir()) == sorted(names)
    for name in names:
        path = tmp_path / "there" / "runs" / name
        with open_run(path) as run:
            assert (run.sealed, run.records("recurrent/l0")["step"].tolist()[-1]) == (True, 4)
        assert validate(path) == []


def unless_done(trial, out, train):
    return trial.name if trials._is_done(trial, out) else train(trial, out)


def test_trainings_of_a_worker_with_two_threads_wait_for_each_other(cluster):
    with on_dask(cluster.scheduler_address) as engine:
        assert list(each(overlap, [1, 2, 3, 4], engine=engine, progress=False)) == [[], [], [], []]


def test_where_no_scheduler_answers_the_address_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("gradscope.lab.engines._ANSWER", 0.2)
    with (
        pytest.raises(SettingError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"),
        on_dask("tcp://127.0.0.1:9"),
    ):
        pass


# --- submitit --------------------------------------------------------------------------------------------------------


def test_jobs_of_submitit_answer_in_order_and_the_log_of_one_that_failed_is_named(tmp_path):
    """Builtins, whose processes need not wait for torch."""
    pytest.importorskip("submitit")
    with on_submitit(tmp_path / "logs", "local") as engine:
        assert [one.result() for one in engine.start(int, ["3", "1"])] == [3, 1]
    said = r"a job failed \(ValueError: invalid literal .*'x'\); its log is in '.*logs'"
    with pytest.raises(RunError, match=said), on_submitit(tmp_path / "logs", "local") as engine:
        [one.result() for one in engine.start(int, ["x"])]


@pytest.mark.slow
def test_a_sweep_on_submitit_has_the_numbers_of_one_here(tmp_path):
    pytest.importorskip("submitit")
    with on_submitit(tmp_path / "logs", "local") as engine:
        found = trials.run_sweep(GRID, tmp_path / "there", engine=engine, progress=False)
    expected = trials.run_sweep(GRID, tmp_path / "here", progress=False)
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"))


def test_slurm_is_missed_where_there_is_none_and_a_wrong_option_is_named(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(SettingError, match="no cluster 'slurm'"), engine_of(tmp_path / "out", slurm=True):
        pass
    with pytest.raises(SettingError, match="partiton"), on_submitit(tmp_path / "logs", "local", partiton="short"):
        pass
