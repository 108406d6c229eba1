"""What ``gradscope demo`` trains: cells and initialisations before and after training, and clipping thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gradscope.lab.jobs import check_jobs, each, new_directory
from gradscope.lab.zoo.models import MODELS, build_model
from gradscope.lab.zoo.tasks import build_task
from gradscope.lab.zoo.train import TrainResult, TrainSettings, train


@dataclass(frozen=True)
class Plan:
    """One recording of the demo: the run's name, the model of the zoo, and how it is trained.

    ``group`` is ``"initial"`` (a single step, for the gradient before it), ``"cells"`` or ``"clipping"``; the seed in
    ``settings`` counts from that of the demo.
    """

    name: str
    model: str
    settings: TrainSettings
    group: str


#: Before training: every cell as torch initialises it, and with its gates opened a little and a lot.
INITIAL = ("rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru", "gru-update1", "gru-chrono")
#: Trained.
CELLS = ("rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru", "gru-chrono")
#: One that slows learning down, one that lets the network learn, one that comes too late, and none.
THRESHOLDS = (0.05, 0.5, 5.0, None)
SEEDS = {"initial": 5, "cells": 1, "clipping": 3}

HIDDEN_SIZE = 64
EVERY = 10
SAMPLES = 16

# All alike, so that only cell and initialisation differ.
_CELLS = TrainSettings(steps=600, learning_rate=3e-3, clip=1.0)
# SGD with momentum at a rate where the network is unstable without clipping: Adam would hide most of the effect.
_CLIPPING = TrainSettings(steps=300, optimizer="sgd", learning_rate=0.1)


def plans(quick: bool = False) -> list[Plan]:
    """Everything the demo records; ``quick`` keeps a few steps of each."""
    found = [Plan(model, model, _CELLS, "cells") for model in CELLS]
    for seed in range(SEEDS["clipping"]):
        for clip in THRESHOLDS:
            name = f"rnn-sgd-clip-{'none' if clip is None else clip}{f'-seed-{seed}' if seed else ''}"
            found.append(Plan(name, "rnn", replace(_CLIPPING, clip=clip, seed=seed), "clipping"))
    for model in INITIAL:
        # A training's own first record shows its seed before training.
        for seed in range(SEEDS["cells"] if model in CELLS else 0, SEEDS["initial"]):
            found.append(Plan(f"{model}-initial-seed-{seed}", model, replace(_CELLS, steps=1, seed=seed), "initial"))
    if not quick:
        return found
    return [
        replace(plan, settings=replace(plan.settings, steps=min(plan.settings.steps, 12), batch_size=16))
        for plan in found
    ]


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
        The first of the seeds of weights and batches.
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
    settings = replace(plan.settings, seed=seed + plan.settings.seed)
    model = build_model(plan.model, task, HIDDEN_SIZE, seed=settings.seed)
    cell, init = MODELS[plan.model]
    labels = {"cell": cell, "init": init, "seed": settings.seed, "optimizer": settings.optimizer}
    chance = {"chance_loss": task.baseline_loss, "chance_accuracy": task.baseline_metric}
    result = train(
        model,
        task,
        settings,
        run_dir=runs / plan.name,
        progress=False,
        every=EVERY,
        samples=min(SAMPLES, settings.batch_size),
        quantities="all",
        labels=labels | chance,
    )
    return replace(result, labels=labels | {"group": plan.group})
