"""Train every trial of a grid, recorded; a sweep that was cut off goes on where it stopped.

``DIR/runs/NAME`` is the recording of a trial, ``DIR/results/NAME.json`` what it came to. The result is renamed into
place after the recording is sealed, so a trial with a result is done and one without is trained again from its start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gradscope.errors import RunDamagedError, RunError, RunExistsError, RunNotFoundError, SettingError
from gradscope.lab.engines import Engine
from gradscope.lab.jobs import check_jobs, each, make_way
from gradscope.lab.sweep.grid import Grid, Trial
from gradscope.lab.zoo.models import assemble
from gradscope.lab.zoo.tasks import Task, build_task
from gradscope.lab.zoo.train import train
from gradscope.schema import DEFAULT_QUANTITIES
from gradscope.store.locking import is_being_written, lock_directory, share_directory

if TYPE_CHECKING:
    from gradscope.diagnostics import DecayFit

# One row per trial; the axes first.
AXES = ("task", "length", "cell", "init", "clip")
_LATE_SHARE = 0.1


def run_sweep(
    grid: Grid, out: Path, *, jobs: int = 1, progress: bool = True, engine: Engine | None = None
) -> pd.DataFrame:
    """Train what is not done yet and return the table of all trials of the grid.

    Parameters
    ----------
    grid : Grid
    out : Path
        Made when missing; trials found done there are not trained again.
    jobs : int
        Trials trained at once, each on one thread. The numbers do not depend on it.
    progress : bool
        Show a bar on stderr.
    engine : Engine, optional
        Where the trials are trained instead, on the same file system.

    Raises
    ------
    RunExistsError
        ``out`` holds something else than a sweep, a trial of the same name with other settings, or is being written by
        another sweep.
    """
    check_jobs(jobs)  # before anything is made
    trials = grid.trials()
    with _owned(out):
        todo = [trial for trial in trials if not _is_done(trial, out)]
        # An engine gives out anew what a lost machine had, finished or not.
        work = partial(run_trial, out=out) if engine is None else partial(_unless_done, out=out.resolve())
        options: dict[str, Any] = {"jobs": jobs, "done": len(trials) - len(todo), "progress": progress}
        for _ in each(work, todo, engine=engine, **options):
            pass
        table = result_table(out, [trial.name for trial in trials], grid.quantity)
        _write(out / "results.csv", result_table(out).to_csv(index=False))
    return table


def run_trial(trial: Trial, out: Path) -> str:
    """Train one trial and write its result; return its name."""
    found = _train(trial, out / "runs" / trial.name)
    _write(out / "results" / f"{trial.name}.json", json.dumps(found, indent=1))
    return trial.name


def _unless_done(trial: Trial, out: Path) -> str:
    return trial.name if _is_done(trial, out) else run_trial(trial, out)


def run_cell(grid: Grid, out: Path, index: int) -> str:
    """Train one trial of a grid, for a job array whose tasks share ``out``; one that is done is left as it is.

    Parameters
    ----------
    grid : Grid
    out : Path
    index : int
        Of the trial in ``grid.trials()``, from 0.

    Returns
    -------
    str
        Its name.

    Raises
    ------
    SettingError
        No trial has that index.
    RunExistsError
        As :func:`run_sweep`, or another process trains it.
    """
    trials = grid.trials()
    if not 0 <= index < len(trials):
        raise SettingError(
            f"--index {index} is out of range: the sweep has {len(trials)} cells, 0 to {len(trials) - 1}."
        )
    _make(out)
    lock = share_directory(out)  # with the other cells, not with a sweep
    if lock is None:
        raise _written(out)
    try:
        return _unless_done(trials[index], out)
    finally:
        lock.close()


def cells_of(grid: Grid, out: Path) -> list[tuple[str, bool]]:
    """Name of every trial of the grid, in the order of their index, and whether it is done in ``out``."""
    return [(trial.name, _is_done(trial, out)) for trial in grid.trials()]


def done_table(grid: Grid, out: Path) -> pd.DataFrame:
    """The table of those trials of the grid that are done, whoever trained them; written to ``results.csv`` as well.

    Raises
    ------
    RunNotFoundError
        None is.
    """
    names = [name for name, done in cells_of(grid, out) if done]
    if not names:
        raise RunNotFoundError(f"{out}: no cell of this sweep is done yet.")
    _write(out / "results.csv", result_table(out).to_csv(index=False))
    return result_table(out, names, grid.quantity)


def _train(trial: Trial, run_dir: Path) -> dict[str, Any]:
    make_way(run_dir)  # without a result it was cut off in the middle
    task = build_task(trial.task, trial.length)
    model = assemble(trial.cell, trial.init, task, trial.hidden_size, seed=trial.settings.seed)
    if trial.cell == "window":  # the fully connected baseline has no recurrence to record
        found = train(model, task, trial.settings, progress=False).to_json() | {"decay": {}}
    else:
        samples = min(trial.samples, trial.settings.batch_size)
        recording: dict[str, Any] = {"every": trial.every, "samples": samples, "labels": _labels(trial, task)}
        if trial.quantity is not None:
            recording["quantities"] = (*DEFAULT_QUANTITIES, trial.quantity)
        found = train(model, task, trial.settings, run_dir=run_dir, progress=False, **recording).to_json()
        found |= {"decay": _decay(run_dir), "run_dir": f"runs/{trial.name}"}
    return found | {"trial": trial.to_json(), "name": trial.name}


def _labels(trial: Trial, task: Task) -> dict[str, Any]:
    chance = {"chance_loss": task.baseline_loss, f"chance_{task.metric}": task.baseline_metric}
    settings = {"seed": trial.settings.seed, "optimizer": trial.settings.optimizer}
    return {"task": trial.task, "length": trial.length, "cell": trial.cell, "init": trial.init, **settings, **chance}


def result_table(out: Path, names: Sequence[str] | None = None, quantity: str | None = None) -> pd.DataFrame:
    """Results found under ``out``, one row per trial; rate and reach are those of ``quantity``, where it was recorded.

    Columns: ``name, task, length, cell, init, clip`` (NaN without), ``seed, parameters, steps, diverged`` (the step,
    NaN if not), ``loss`` (training loss, mean of the last tenth of the steps), ``held_out_loss, metric, value`` (the
    metric held out), ``rate_early, rate_late`` (log10 per step), ``reach_early, reach_late`` (gradient at the furthest
    lag as a fraction of lag 0), ``seconds``. What a diverged run has no number for is NaN.

    Raises
    ------
    RunNotFoundError
        No sweep there.
    RunDamagedError
        A result cannot be read.
    """
    if not (out / "results").is_dir():
        raise RunNotFoundError(f"{out} holds no sweep: there is no directory 'results' in it.")
    paths = sorted((out / "results").glob("*.json")) if names is None else [_result(out, name) for name in names]
    return pd.DataFrame([_row(_of_quantity(_read(path), out, quantity)) for path in paths])


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds of the held-out value, per point of the grid, and how many seeds diverged.

    A seed that diverged counts for neither mean nor spread.
    """
    kept = table.assign(value=table["value"].where(table["diverged"].isna()))
    groups = kept.groupby([*AXES, "metric"], dropna=False, sort=False)
    summary = groups.agg(
        seeds=("seed", "size"),
        diverged=("diverged", "count"),
        value=("value", "mean"),
        spread=("value", "std"),
        loss=("loss", "mean"),
        rate_early=("rate_early", "mean"),
        rate_late=("rate_late", "mean"),
    )
    return summary.reset_index()


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """Make or reopen a sweep's directory, and keep a second sweep out of it."""
    _make(out)
    if is_being_written(out):
        raise _written(out)
    lock = lock_directory(out)
    try:
        yield
    finally:
        lock.close()


def _make(out: Path) -> None:
    if out.exists() and not (out / "results").is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise RunExistsError(f"{out} exists and is no sweep; nothing is overwritten. Choose another directory with -o.")
    for folder in ("results", "runs"):
        (out / folder).mkdir(parents=True, exist_ok=True)


def _written(out: Path) -> RunExistsError:
    return RunExistsError(f"{out} is being written by another sweep: wait for it, or choose another with -o.")


def _is_done(trial: Trial, out: Path) -> bool:
    path = _result(out, trial.name)
    if not path.exists():
        return False
    # Through JSON, as it was written: tuples become lists.
    wanted, found = json.loads(json.dumps(trial.to_json())), _read(path).get("trial", {})
    if found == wanted:
        return True
    flat = {**wanted.pop("settings"), **wanted}
    there = {**found.pop("settings", {}), **found}
    changed = ", ".join(f"{key} {there.get(key)!r}, not {flat[key]!r}" for key in flat if there.get(key) != flat[key])
    if not changed:  # by a version that had fewer settings
        return True
    raise RunExistsError(f"{path} was made with other settings ({changed}); choose another directory with -o.")


def _result(out: Path, name: str) -> Path:
    return out / "results" / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDamagedError(f"{path} cannot be read ({error}); remove it to train that trial again.") from error
    if not isinstance(found, dict):
        raise RunDamagedError(f"{path} is not the result of a trial; remove it to train that trial again.")
    return found


def _of_quantity(found: dict[str, Any], out: Path, quantity: str | None) -> dict[str, Any]:
    """A result with the decay of the quantity in place of that of the state that describes the cell."""
    if quantity is None or "run_dir" not in found:
        return found
    return {**found, "decay": _decay(out / found["run_dir"], quantity)}


def _decay(run_dir: Path, quantity: str | None = None) -> dict[str, Any]:
    from gradscope.reading.answers import answer, answers
    from gradscope.store import open_run

    with open_run(run_dir) as run:
        try:
            found = answers(run) if quantity is None else [
                answer(run, site, quantity) for site in run.sites if quantity in run.quantities(site)
            ]  # fmt: skip
        except RunError:  # diverged before there was a curve
            return {}
        return {
            said.site: {
                "quantity": said.quantity,
                "rate_early": _number(said.early.rate),
                "rate_late": _number(said.late.rate),
                "reach_early": _reach(said.early),
                "reach_late": _reach(said.late),
                "verdict_late": said.late.verdict,
            }
            for said in found
        }


def _reach(fit: DecayFit) -> float | None:
    # A curve that ends in zeros has its last usable lag before them; what reaches the furthest lag is nothing.
    return 0.0 if fit.lost_from is not None else _number(fit.reach)


def _number(value: float | None) -> float | None:
    return None if value is None or value != value or value in (float("inf"), float("-inf")) else float(value)


def _row(found: dict[str, Any]) -> dict[str, Any]:
    try:
        trial, last = found["trial"], found["evaluations"][-1]
        losses = found["losses"]
        late = losses[-max(1, int(len(losses) * _LATE_SHARE)) :]
        decay: dict[str, Any] = next(iter(found["decay"].values()), {})
        diverged = found["diverged"]
        row = {"name": found["name"], **{axis: trial[axis] for axis in AXES[:-1]}, "clip": trial["settings"]["clip"]}
        row |= {"seed": trial["settings"]["seed"], "parameters": found["parameters"], "steps": len(losses)}
        row |= {"diverged": diverged, "loss": None if diverged is not None or None in late else sum(late) / len(late)}
        row |= {"held_out_loss": last["loss"], "metric": found["metric_name"], "value": last["metric"]}
        row |= {key: decay.get(key) for key in ("rate_early", "rate_late", "reach_early", "reach_late")}
        row["seconds"] = found["seconds"]
    except (KeyError, IndexError, TypeError) as error:
        raise RunDamagedError(f"the result {found.get('name')!r} is incomplete ({error!r}); remove it.") from error
    axes = ("name", "task", "cell", "init", "metric")
    return {key: value if key in axes else float("nan") if value is None else value for key, value in row.items()}


def _write(path: Path, text: str) -> None:
    building = path.with_name(f".{path.name}.{os.getpid()}")
    with building.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    building.replace(path)
