"""From the plain network to the GRU: what is trained, and what is told of it.

Every member of the zoo is trained on the monthly sunspot numbers, most of them on the digits, with several seeds; its
adjoints are measured exactly before and after. :mod:`gradscope.lab.lecture.textbook` holds what is asked of the
measurements, :mod:`gradscope.lab.lecture.chapters` what is shown.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from gradscope.lab.engines import Engine
from gradscope.lab.jobs import check_jobs, each, new_directory
from gradscope.lab.lecture.measuring import Experiment, Results, run_experiment
from gradscope.lab.zoo.train import TrainSettings

#: Members in the order they are told of.
SUNSPOTS = (
    "window", "rnn", "rnn-orthogonal", "irnn", "rnn-stacked", "rnn-bidirectional", "lstm", "lstm-forget1",
    "lstm-chrono", "peephole", "coupled", "gru", "mingru", "lru",
)  # fmt: skip
DIGITS = SUNSPOTS
#: Enough for an interval over seeds to decide most of the textbook's questions; five left half of them open.
SEEDS = 10
#: None first: what the others are compared with.
EXPLODING_CLIPS = (None, 10.0, 1.0, 0.1)
VANISHING_CLIPS = (None, 1.0, 0.1)
#: Runs that the report shows in full, of the first seed on the digits.
RECORDED = ("window", "rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru")

_SUNSPOTS = TrainSettings(steps=200, batch_size=32, learning_rate=3e-3, clip=1.0, evaluate_every=50)
_DIGITS = replace(_SUNSPOTS, steps=400)
# SGD with momentum: Adam divides a gradient by its own size, which undoes most of what clipping does.
_EXPLODING = replace(_SUNSPOTS, steps=300, optimizer="sgd", learning_rate=0.05, clip=None)
# A rate at which the network is stable without clipping: at 0.05 it saturates, and reaches back exactly nothing.
_VANISHING = replace(_EXPLODING, learning_rate=0.01)


def experiments(seed: int = 0, *, quick: bool = False) -> list[Experiment]:
    """Everything that is trained or measured, for ``SEEDS`` seeds from ``seed`` on (two when ``quick``)."""
    found = []
    for s in range(seed, seed + (2 if quick else SEEDS)):
        for task, models, settings in (("sunspots", SUNSPOTS, _SUNSPOTS), ("digits", DIGITS, _DIGITS)):
            found += [
                Experiment(task, model, replace(settings, seed=s),
                           recorded=s == seed and task == "digits" and model in RECORDED)
                for model in models
            ]  # fmt: skip
            for model in ("rnn-gain-1.5", "rnn-gain-2"):
                found.append(Experiment(task, model, replace(settings, seed=s), trained=False))
        for model in ("lstm-pinned", *(f"lstm-{gate}-plus-1" for gate in "ifgo")):
            found.append(Experiment("digits", model, replace(_DIGITS, seed=s), trained=False))
        found += [Experiment("sunspots", "rnn-gain-2", replace(_EXPLODING, seed=s, clip=c)) for c in EXPLODING_CLIPS]
        found += [Experiment("digits", "rnn", replace(_VANISHING, seed=s, clip=c)) for c in VANISHING_CLIPS]
    return [_shortened(one) for one in found] if quick else found


def _shortened(one: Experiment) -> Experiment:
    settings = replace(one.settings, steps=3, batch_size=4, evaluate_every=2)
    recorded = one.recorded and one.model in ("rnn", "lstm")
    return replace(one, settings=settings, length=10, hidden_size=6, recorded=recorded)


def run_lecture(
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    jobs: int = 1,
    progress: bool = True,
    engine: Engine | None = None,
) -> tuple[Results, list[Path]]:
    """Train and measure everything.

    Parameters
    ----------
    out : Path
        Made here; removed again if a training fails or is interrupted.
    seed : int
        The first of the seeds.
    quick : bool
        Two seeds, three steps, short sequences: to see it work, not to learn from it.
    jobs : int
        Trainings at once, each on one thread. The numbers do not depend on it.
    progress : bool
        Show a bar on stderr.
    engine : Engine, optional
        Where the trainings run instead.

    Returns
    -------
    Results, list of Path
        Measurements, and the runs that were kept.

    Raises
    ------
    RunExistsError
        If ``out`` exists.
    SettingError
        If ``jobs`` is below 1.
    """
    check_jobs(jobs)  # before anything is made
    todo = experiments(seed, quick=quick)
    with new_directory(out):
        work = partial(run_experiment, runs=out.resolve() / "runs")  # another machine's place is another
        measured = list(each(work, todo, jobs=jobs, progress=progress, engine=engine))
    return Results(measured), [out / "runs" / one.name for one in todo if one.recorded]
