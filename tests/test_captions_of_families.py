"""Twenty labelled trainings: what captions say over seeds, thresholds and lengths, recomputed from their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pytest
from scipy import stats

import gradscope
from gradscope import plots
from gradscope.words import number
from tests.families import Training, curves, reaching, scalars

Trained = list[tuple[Training, gradscope.Run]]


def caption(kind: str, trained: Trained, **options: object) -> str:
    module = plots.load(kind)
    return module.caption(module.table([run for _, run in trained], **options))


def grouped(trained: Trained, key: Callable[[Training], object]) -> dict[object, Trained]:
    ordered = sorted(trained, key=lambda one: str(key(one[0])))
    return {name: list(group) for name, group in groupby(ordered, key=lambda one: key(one[0]))}


def model_of(of: Training) -> str:
    init = {"forget1": "forget bias 1"}.get(of.init, of.init)
    return f"{of.cell}, {init}, length {of.length}"


def middle(logs: Sequence[float]) -> float:
    return 10 ** float(np.median(logs))


def last(run: gradscope.Run, name: str) -> float:
    values = scalars(run)[name].to_numpy()
    return float(values[~np.isnan(values)][-1])


def ended(run: gradscope.Run, name: str) -> float:
    values = scalars(run)[name].to_numpy()
    values = values[~np.isnan(values)]
    return float(values[-max(1, len(values) // 20) :].mean())


def listed(said: str, names: Sequence[str]) -> dict[str, str]:
    """The value behind each name: ``a: 1, b: 2`` or ``a 1, b 2``."""
    found = {name: re.search(rf"(?:^|[ :]){re.escape(name)}:? (\S+?)(?=[,.;](?: |$)| \()", said) for name in names}
    assert all(found.values()), (said, found)
    return {name: one[1] for name, one in found.items()}


def test_a_story_holds_medians_over_seeds_before_and_through_training(trained: Trained) -> None:
    said = caption("story", trained)
    start, _, course = said.partition("At the first input through training")
    models = grouped(trained, model_of)
    # A seed starts from the same weights whatever the threshold, so one of them counts.
    first = {
        name: middle(list({of.seed: reaching(curves(run, "input")[0]) for of, run in reversed(group)}.values()))
        for name, group in models.items()
    }
    shown = listed(start.partition("At the first input: ")[2], list(models))
    assert shown == {name: number(value) for name, value in first.items()}
    positions = [start.index(f"{name}: ") for name in sorted(models, key=lambda name: -first[name])]
    assert positions == sorted(positions), "the most first"
    assert "median over up to 3 seeds" in start

    by_threshold = grouped([one for one in trained if one[0].cell == "RNN" and one[0].length == 12], lambda of: of.clip)
    assert ", the 9 runs of RNN: at the end" in course
    gradients, _, losses = course.partition("Loss of the same runs, at the end (with held-out accuracy): ")
    names = {clip: "no clip" if np.isinf(clip) else f"c = {clip:g}" for clip in by_threshold}
    kept = {clip: [run for of, run in group if not of.gone] for clip, group in by_threshold.items()}
    ends = {clip: middle([reaching(curves(run, "input")[10]) for run in runs]) for clip, runs in kept.items()}
    assert listed(gradients, list(names.values())) == {names[clip]: number(value) for clip, value in ends.items()}
    for clip, runs in kept.items():
        loss, accuracy = (float(np.median([last(run, key) for run in runs])) for key in ("loss", "held_out_accuracy"))
        assert f"{names[clip]}: {number(loss)} ({100 * accuracy:.0f} %)" in losses
    assert "median over the runs that did not diverge" in losses


def test_without_two_thresholds_a_story_follows_every_model(trained: Trained) -> None:
    chosen = [one for one in trained if one[0].threshold == 1.0 and one[0].length == 12 and one[0].steps > 1]
    said = caption("story", chosen)
    _, _, course = said.partition("At the first input through training")
    gradients, _, losses = course.partition("Loss of the same runs")
    assert f", the {len(chosen)} runs" in gradients
    models = grouped(chosen, lambda of: model_of(of).removesuffix(", length 12"))
    for name, group in models.items():
        kept = [run for of, run in group if not of.gone] or [run for _, run in group]
        reached = [reaching(curves(run, "input")[10]) for run in kept]
        value = "not finite" if np.isinf(reached).all() else number(middle(reached))
        assert f"{name}: {value}" in gradients
        if all(of.gone for of, _ in group):
            assert f"{name}: diverged" in losses
        else:
            assert f"{name}: {number(float(np.median([last(run, 'loss') for run in kept])))}" in losses


def test_losses_over_seeds_are_geometric_means_of_the_trainings_that_went_on(trained: Trained) -> None:
    said, logged = caption("learning", trained), [one for one in trained if one[0].logged]

    def line(of: Training) -> str:
        return f"{model_of(of)}, {'no clip' if of.threshold is None else f'c = {of.threshold:g}'}"

    groups = grouped(logged, line)
    seeds = [len(group) for group in groups.values()]
    assert f"geometric mean over {min(seeds)} to {max(seeds)} seeds" in said
    gone = sum(of.gone for of, _ in logged)
    assert f"Crosses: {gone} of {len(logged)} trainings diverged" in said
    (silent,) = [run.name for of, run in trained if not of.logged]
    assert f"Left out: {silent} (no loss was logged)." in said
    told = [name for name in groups if f"{name} " in said]
    assert len(told) == len([name for name, group in groups.items() if group[0][0].steps > 3]) == 8
    for name in told:
        values = [last(run, "held_out_loss") for of, run in groups[name] if not of.gone]
        shown = number(float(np.exp(np.mean(np.log(values))))) if values else "diverged"
        assert listed(said, [name]) == {name: shown}


@pytest.mark.parametrize("metric", ["loss", "held_out_accuracy", "held_out_loss"])
def test_what_thresholds_ended_at_leaves_out_every_training_whose_loss_diverged(trained: Trained, metric: str) -> None:
    logged = [one for one in trained if metric in scalars(one[1])]
    groups = grouped(logged, lambda of: of.clip)
    gone = sum(of.gone for of, _ in logged)
    assert gone == 2
    by_loss, by_metric = caption("sweep_loss", trained, metric=metric), caption("sweep_metric", trained, metric=metric)
    assert f"Crosses: {gone} of {len(logged)} runs diverged" in by_loss
    assert f"one point per run ({len(logged)} runs)" in by_metric
    assert f"Crosses: runs that diverged ({gone})." in by_metric
    sizes = [len(group) for group in groups.values()]
    assert f"{len(groups)} thresholds" in by_loss
    assert f"{min(sizes)} to {max(sizes)} runs each" in by_loss
    for said in (by_loss, by_metric):
        assert said.startswith({"loss": "Loss", "held_out_accuracy": "Held-out accuracy"}.get(metric, "Held-out loss"))
        for silent in {run.name for _, run in trained} - {run.name for _, run in logged}:
            assert silent in said.partition("Left out: ")[2]
    for clip, group in groups.items():
        name = "none" if np.isinf(clip) else f"{clip:g}"
        values = np.array([ended(run, metric) for of, run in group if not of.gone])
        assert re.search(rf"[ :]{re.escape(name)} {re.escape(number(float(np.median(values))))}[,.]", by_loss)
        found = re.search(rf"[ :]{re.escape(name)} (\S+) \((\S+?)–(\S+?)\)", by_metric)
        shown = [float(one.replace("−", "-")) for one in found.groups()]
        around = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        around = np.clip(around, 0, 1) if metric == "held_out_accuracy" else around
        assert shown == pytest.approx([values.mean(), *around], rel=0.06, abs=1e-9)


def test_norms_are_counted_by_threshold(trained: Trained) -> None:
    said, counts = caption("norm_distribution", trained), []
    for clip, group in grouped(trained, lambda of: of.clip).items():
        if np.isinf(clip):  # without clipping calls the norm is logged at the recorded steps where it is finite
            counts.append(sum(int(scalars(run)["grad_norm"].notna().sum()) for _, run in group))
        else:
            counts.append(sum(of.steps for of, _ in group))
    assert f"({min(counts)} to {max(counts)} norms each)" in said


@pytest.mark.parametrize("metric", ["held_out_accuracy", "loss", "reach"])
@pytest.mark.parametrize("rows", ["length", "cell"])
def test_a_map_names_the_cells_with_the_highest_and_the_lowest_mean(trained: Trained, metric: str, rows: str) -> None:
    said = caption("map", trained, rows=rows, metric=metric)
    assert said.startswith("Reach" if metric == "reach" else "Loss" if metric == "loss" else "Held-out accuracy")
    assert ("geometric mean" in said) == (metric == "reach")
    cells, kept = grouped(trained, lambda of: (getattr(of, rows), of.clip)), {}
    for (row, clip), group in cells.items():
        if metric == "reach":
            found = [reaching(list(curves(run, "input").values())[-1]) for _, run in group]
            values = [value for value in found if np.isfinite(value)]
        else:
            values = [ended(run, metric) for of, run in group if metric in scalars(run) and not of.gone]
        kept[row, clip] = values
    fewest, most = min(map(len, kept.values())), max(map(len, kept.values()))
    assert f"({f'{fewest} to ' * (fewest < most)}{most} a cell)" in said
    means = {at: np.mean(values) for at, values in kept.items() if values}
    for word, pick in (("Highest", max), ("Lowest", min)):
        value, row, clip = re.search(rf"{word}: (\S+) \({rows} (\w+), threshold (\S+)\)\.", said).groups()
        at = pick(means, key=means.get)
        assert (row, clip) == (str(at[0]), "none" if np.isinf(at[1]) else f"{at[1]:g}")
        assert value == number(float(10 ** means[at] if metric == "reach" else means[at]))


def test_a_restarted_training_counts_as_it_went_on(trained: Trained) -> None:
    ((of, run),) = [one for one in trained if one[0].restarted]
    every, kept = run.steps(), scalars(run)
    assert len(every) == 14
    assert kept["step"].tolist() == list(range(12))
    replaced = every[(every["attempt"] == 1) & (every["step"] == 6)]["loss"].item()
    assert replaced != kept[kept["step"] == 6]["loss"].item()
    said = caption("story", [(of, run)])
    assert f"at the end LSTM, forget bias 1: {number(10 ** reaching(curves(run, 'input')[10]))}." in said
    assert f"LSTM, forget bias 1: {number(last(run, 'loss'))}" in said
    assert f"Held out, at the end: {run.name} {number(last(run, 'held_out_loss'))}." in caption("learning", [(of, run)])
    norms = run.clips()
    of_steps = norms[(norms["attempt"] == 2) | (norms["step"] < 6)]["norm_before"]
    assert f"Median {number(of_steps.median())}, largest {number(of_steps.max())}." in caption("norms", [(of, run)])
    assert f"({len(of_steps)} norms)" in caption("norm_distribution", [(of, run)])
    curve = curves(run, "cell")
    ends = [10 ** reaching(curve[step]) for step in (0, 10)]
    shown = f"{number(ends[0])} at lag 11 (step 0), {number(ends[1])} at lag 11 (step 10)"
    assert f"What is left: {run.name} {shown}." in caption("training", [(of, run)])
