"""What ``gradscope demo`` trains: five networks on the digits, and one network at several clipping thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gradscope.lab.jobs import check_jobs, each, new_directory
from gradscope.lab.zoo.models import build_model
from gradscope.lab.zoo.tasks import build_task
from gradscope.lab.zoo.train import TrainResult, TrainSettings, train


@dataclass(frozen=True)
class Plan:
    """One training of the demo: the run's name, the model of the zoo, and how it is trained."""

    name: str
    model: str
    settings: TrainSettings
    group: str


# All five alike, so that only cell and initialisation differ.
_CELLS = TrainSettings(steps=600, learning_rate=3e-3, clip=1.0)
# SGD with momentum at a rate where the network is unstable without clipping: Adam would hide most of the effect.
_CLIPPING = TrainSettings(steps=300, optimizer="sgd", learning_rate=0.1)

MODELS = ("rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru")
#: One that slows learning down, one that lets the network learn, one that comes too late, and none.
THRESHOLDS = (0.05, 0.5, 5.0, None)

HIDDEN_SIZE = 64
EVERY = 10
SAMPLES = 16


def plans(quick: bool = False) -> list[Plan]:
    """All trainings of the demo; ``quick`` keeps a few steps of each."""
    cells = [Plan(model, model, _CELLS, "cells") for model in MODELS]
    clipping = [
        Plan(f"rnn-sgd-clip-{'none' if clip is None else clip}", "rnn", replace(_CLIPPING, clip=clip), "clipping")
        for clip in THRESHOLDS
    ]
    chosen = cells + clipping
    if not quick:
        return chosen
    return [replace(plan, settings=replace(plan.settings, steps=12, batch_size=16)) for plan in chosen]


def run_demo(
    out: Path, *, quick: bool = False, seed: int = 0, jobs: int = 1, progress: bool = True
) -> dict[str, TrainResult]:
    """Train everything, recorded under ``out/runs``.

    Parameters
    ----------
    out : Path
        Made here; removed again if a training fails or is interrupted.
    quick : bool
        A few steps of each, for tests.
    seed : int
        Of weights and batches.
    jobs : int
        Trainings at once, each on one thread. The numbers do not depend on it.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    dict of str to TrainResult
        By run name, in the order trained. The recording of ``name`` is ``out/runs/name``.

    Raises
    ------
    RunExistsError
        If ``out`` exists.
    SettingError
        If ``jobs`` is below 1.
    """
    check_jobs(jobs)  # before anything is made
    todo = plans(quick)
    with new_directory(out):
        found = each(partial(run_plan, runs=out / "runs", seed=seed), todo, jobs=jobs, progress=progress)
        return {plan.name: result for plan, result in zip(todo, found, strict=True)}


def run_plan(plan: Plan, runs: Path, seed: int) -> TrainResult:
    """Train, recorded as ``runs / plan.name``."""
    task = build_task("digits")
    model = build_model(plan.model, task, HIDDEN_SIZE, seed=seed)
    settings = replace(plan.settings, seed=seed)
    result = train(
        model,
        task,
        settings,
        run_dir=runs / plan.name,
        progress=False,
        every=EVERY,
        samples=min(SAMPLES, settings.batch_size),
        quantities="all",
    )
    return replace(result, labels={"model": plan.model, "group": plan.group})
