"""What a sweep found, as chapters: sentences over seeds, a table and figures by clipping threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.diagnostics import decay_curve
from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.lab.zoo.tasks import build_task
from gradscope.plots import decay, norm_distribution, sweep_loss, sweep_metric
from gradscope.reading import curves, select
from gradscope.reading.outcome import Outcome, findings, outcomes_by_threshold
from gradscope.reading.sweeps import at_threshold, name_of
from gradscope.report.telling import Chapter, Picture, Story
from gradscope.words import counted, counted_span, number

POINT = ["task", "length", "cell", "init"]
#: The figure of decay ends here: a saturated network's gradient falls by a hundred decades and would hide the others.
LOWEST = 1e-30
_START = "before training"


def tell_sweep(table: pd.DataFrame, runs: Mapping[str, Any], quantity: str | None = None) -> Story:
    """Tell what a sweep found.

    Parameters
    ----------
    table : DataFrame
        From :func:`gradscope.lab.sweep.trials.run_sweep`.
    runs : mapping of str to Run
        By the name of the trial; trials without a recording (``window``) are absent.
    quantity : str, optional
        Whose decay the table holds and the figure shows.

    Returns
    -------
    Story
        One chapter per task, length, cell and initialisation.
    """
    groups = list(table.groupby(POINT, sort=False))
    several = len(groups) > 1
    chapters = []
    for point, rows in groups:
        where = dict(zip(POINT, point, strict=True))
        names = [name for name in rows["name"] if name in runs]
        prefix = f"{where['cell']}_{where['init']}_T{where['length']}_".replace("-", "_") if several else ""
        chapters.append(_chapter(where, rows, [runs[name] for name in names], prefix, quantity))
    return Story(_opening(table), tuple(chapters))


def outcomes_of(rows: pd.DataFrame) -> tuple[Outcome, ...]:
    """Outcomes by threshold of trials that differ in threshold and seed only."""
    return outcomes_by_threshold(rows["clip"].fillna(np.inf), rows["value"], rows["diverged"].notna())


def _opening(table: pd.DataFrame) -> tuple[str, ...]:
    tasks = [build_task(str(table["task"].iloc[0]), int(length)) for length in dict.fromkeys(table["length"])]
    task, described = tasks[0], ", or ".join(dict.fromkeys(task.description for task in tasks))
    seeds, steps = table["seed"].nunique(), int(table["steps"].max())
    per = table.groupby([*POINT, "clip"], dropna=False)["seed"].nunique()
    accuracy = task.metric == "accuracy"
    guess = f"an accuracy of {task.baseline_metric:g}" if accuracy else f"an error of {task.baseline_metric:.3g}"
    said = (
        f"{counted(len(table), 'training')} of up to {counted(steps, 'step')} on the task {task.name} ({described}), "
        f"{counted_span(int(per.min()), int(per.max()), 'seed')} at each point. Whoever remembers nothing of a "
        f"sequence gets {guess} on the held-out data. A seed fixes weights and batches, so trainings that differ in "
        "their threshold only begin with the same network."
    )
    if seeds > 1:
        return (said,)
    return (
        said,
        "One seed says nothing about the spread of trainings: nothing here is told apart. Add --seed 0,1,2,3,4.",
    )


def _chapter(
    where: Mapping[str, Any], rows: pd.DataFrame, runs: Sequence[Any], prefix: str, quantity: str | None
) -> Chapter:
    outcomes = outcomes_of(rows)
    metric = str(rows["metric"].iloc[0])
    text = [
        *findings(outcomes, f"held-out {metric}", higher_is_better=metric == "accuracy"),
        *_gradients(rows, quantity),
    ]
    question = "What the threshold did: " if len(outcomes) > 1 else ""
    title = f"{question}{where['cell']}, {where['init']} initialisation, {where['length']} timesteps"
    pictures = tuple(_pictures(rows, runs, metric, prefix, quantity)) if runs else ()
    return Chapter(title, tuple(text), ((_CAPTION, _table(rows, outcomes)),), (), pictures)


_CAPTION = (
    "By threshold of norm clipping: lowest to highest run; of the gradient at the last timestep, what reaches the "
    "first one at the end of training. Values of runs that did not diverge."
)


def _table(rows: pd.DataFrame, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    metric = str(rows["metric"].iloc[0])
    lines = []
    for outcome in outcomes:
        mine = rows[rows["clip"].fillna(np.inf) == outcome.threshold]
        kept = mine[mine["diverged"].isna()]
        lines.append(
            {
                "threshold": name_of(outcome.threshold),
                "runs": str(outcome.runs),
                "diverged": str(outcome.diverged),
                f"held-out {metric}": _range(kept["value"]),
                "training loss": _range(kept["loss"]),
                "gradient reaching the first timestep": _range(kept["reach_late"]),
            }
        )
    return pd.DataFrame(lines)


def _gradients(rows: pd.DataFrame, quantity: str | None) -> list[str]:
    """What became of the gradient itself, at the start and at the end."""
    early = rows["reach_early"].dropna()
    if early.empty:
        return []
    lag = build_task(str(rows["task"].iloc[0]), int(rows["length"].iloc[0])).length - 1
    ends = []
    for threshold, mine in rows.assign(clip=rows["clip"].fillna(np.inf)).groupby("clip"):
        reach = mine["reach_late"][mine["diverged"].isna()].dropna()
        if len(reach):
            ends.append(f"{_range(reach)} {at_threshold(float(threshold))}")
    whose = f"the gradient with respect to the {quantity.replace('_', ' ')}" if quantity else "the gradient"
    said = f"Of {whose} at the last timestep, {_range(early)} reaches {lag} steps back in the first tenth of training"
    return [f"{said}; in the last tenth, {'; '.join(ends)}." if ends else f"{said}."]


def _range(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return "–"
    low, high = number(float(known.min())), number(float(known.max()))
    return low if low == high else f"{low} to {high}"


def _pictures(rows: pd.DataFrame, runs: Sequence[Any], metric: str, prefix: str, quantity: str | None) -> list[Picture]:
    gone = rows.set_index("name")["diverged"].dropna()
    shown: tuple[tuple[str, Any, dict[str, str]], ...] = (
        ("sweep_loss", sweep_loss, {"metric": "loss"}),
        ("sweep_metric", sweep_metric, {"metric": f"held_out_{metric}"}),
        ("norm_distribution", norm_distribution, {}),
    )
    found = []
    for name, module, options in shown:
        try:
            data = _marked(module.table(runs, **options), gone)
        except NotRecordedError:  # every run diverged before anything was logged
            continue
        data = data.replace({"metric": {f"held_out_{metric}": f"held-out {metric}"}}) if "metric" in data else data
        found.append(Picture(f"{prefix}{name}", name, module.TITLE, module.caption(data), data))
    curves = decay_by_threshold(runs, quantity)
    if not curves.empty:
        found.append(
            Picture(f"{prefix}sweep_decay", "decay", "Decay of the gradient by threshold", DECAY_CAPTION, curves,
                    {"lowest": LOWEST})
        )  # fmt: skip
    return found


def _marked(data: pd.DataFrame, gone: pd.Series) -> pd.DataFrame:
    """Training also stops at a finite loss that is far beyond guessing; a run's own numbers cannot show that."""
    if "diverged" not in data:
        return data
    since = data["run"].map(gone).fillna(np.inf).astype(float)
    diverged = data["diverged"] | (data["step"] >= since if "step" in data else np.isfinite(since))
    return data.assign(diverged=diverged, value=data["value"].where(~diverged))


DECAY_CAPTION = (
    "Norm of the adjoint against lag, relative to lag 0, in the last tenth of the records, a line per threshold of "
    "norm clipping, and of all runs before training: geometric mean over runs; band: lowest to highest "
    f"run. The axis ends at {LOWEST:g} at the latest; triangles: exactly zero in most runs."
)


def decay_by_threshold(runs: Sequence[Any], wanted: str | None = None) -> pd.DataFrame:
    """Rows as of :func:`gradscope.plots.decay.table`: a line per threshold over its runs, one before training."""
    from gradscope.reading.sweeps import threshold_of

    late: dict[float, list[np.ndarray]] = {}
    early = []
    site, quantity = "", ""
    for run in runs:
        try:
            _, _, site, quantity = select.sites_with([run], wanted)[0]
        except (NotRecordedError, EmptyRunError):
            continue
        found = curves.norms(run, site, quantity)
        early.append(_level(found, "first"))
        late.setdefault(threshold_of(run), []).append(_level(found, "late"))
    frames = [_line(name_of(threshold), late[threshold], site, quantity) for threshold in sorted(late)]
    if early:
        frames.append(_line(_START, early, site, quantity))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _level(found: curves.Norms, part: str) -> np.ndarray:
    """Geometric mean over the sequences of a part of the run, zero where they are."""
    curve = found.curve(found.at(part))
    lost = np.isnan(curve.log10) & (curve.n_zero + curve.n_below_normal > 0)
    with np.errstate(over="ignore", under="ignore"):
        return np.where(lost, 0.0, 10.0**curve.log10)


def _line(name: str, levels: Sequence[np.ndarray], site: str, quantity: str) -> pd.DataFrame:
    longest = max(map(len, levels))
    norms = np.array([np.pad(level, (0, longest - len(level)), constant_values=np.nan) for level in levels])
    curve = decay_curve(np.arange(longest), norms)
    # The smallest and largest of the runs, not quantiles between them: they are few.
    return decay.curve_frame(curve, {"run": name, "site": site, "quantity": quantity, "step": 0}, 0.999)
