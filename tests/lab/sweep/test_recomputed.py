"""What a sweep says of its thresholds, from the files of its runs by h5py and numpy alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gradscope.cli.sweep import _shown
from gradscope.lab.sweep.grid import Grid
from gradscope.lab.sweep.story import tell_sweep
from gradscope.lab.sweep.trials import run_sweep, summary_table
from gradscope.lab.zoo.data import load_sunspots
from gradscope.lab.zoo.train import TrainSettings
from gradscope.reading.answers import answers
from gradscope.store import open_run
from gradscope.words import number

LENGTH = 12


def grid(task: str, cell: str, init: str, clips: tuple[float | None, ...], rate: float, steps: int) -> Grid:
    return Grid(
        task=task, lengths=(LENGTH,), cells=(cell,), inits=(init,), clips=clips, seeds=(0, 1, 2, 3), hidden_size=8,
        every=4, samples=8,
        settings=TrainSettings(steps=steps, batch_size=8, optimizer="sgd", learning_rate=rate),
    )  # fmt: skip


GRIDS = {
    "some diverge": grid("adding", "rnn", "orthogonal", (None, 1.0, 0.003), 0.2, 12),
    "one is worse": grid("adding", "rnn", "orthogonal", (None, 1.0, 0.003), 0.05, 24),
    "accuracy": grid("digits", "lstm", "forget1", (None, 0.05), 0.3, 20),
}


#: First paragraph of each page, and the runs behind it.
OPENINGS: dict[str, tuple[tuple[str, ...], list[Trained]]] = {}
#: What the command prints, the runs behind it, and the lags over which their rates are.
PRINTED: dict[str, tuple[str, list[Trained], list[tuple[tuple[int, int], tuple[int, int]]]]] = {}


@dataclass
class Trained:
    """One run, as its file has it."""

    threshold: float
    diverged: bool
    value: float
    loss: float
    early: float
    late: float
    steps: int
    curves: tuple[np.ndarray, np.ndarray]  # log10 against lag, in the first and in the last tenth


def read(path, chance: float, metric: str, quantity: str) -> Trained:
    with h5py.File(path / "attempt-1" / "rank-0" / "segment-00001.h5") as file:
        scalars = [name.decode() for name in file["steps/scalar"][:]]
        values = dict(zip(scalars, file["steps/value"][:].T, strict=True))
        site = file["sites/recurrent/l0"]
        norms, steps = site[quantity][:], site["step"][:]
        threshold = np.unique(file["clips/threshold"][:]) if "clips" in file else np.array([])
    losses, ended = values["loss"], values[f"held_out_{metric}"]
    gone = not np.isfinite(losses).all() or losses[-1] > 10 * max(losses[0], chance)

    def reach(wanted: np.ndarray) -> float:
        chosen = norms[np.isin(steps, wanted)].reshape(-1, norms.shape[2])
        return float(10 ** np.mean(np.log10(chosen[:, -1]) - np.log10(chosen[:, 0])))

    def curve(wanted: np.ndarray) -> np.ndarray:
        return np.log10(norms[np.isin(steps, wanted)].reshape(-1, norms.shape[2])).mean(0)

    usable = np.unique(steps[(np.isfinite(norms) & (norms > 0)).any((1, 2))])
    share = max(1, round(len(usable) / 10))
    return Trained(
        float(threshold[0]) if threshold.size else np.inf, gone, float(ended[~np.isnan(ended)][-1]),
        float(losses[-max(1, len(losses) // 10) :].mean()), reach(usable[:share]), reach(usable[-share:]), len(losses),
        (curve(usable[:share]), curve(usable[-share:])),
    )  # fmt: skip


@pytest.fixture(scope="module", params=GRIDS)
def swept(request, tmp_path_factory):
    swept, out = GRIDS[request.param], tmp_path_factory.mktemp("sweep") / "out"
    table = run_sweep(swept, out, progress=False)
    runs = {name: open_run(out / "runs" / name) for name in table["name"]}
    story = tell_sweep(table, runs)
    (chapter,) = story.chapters
    chance, metric = (1 / 6, "mse") if swept.task == "adding" else (np.log(10), "accuracy")
    quantity = "cell" if swept.cells == ("lstm",) else "hidden"
    own = [read(out / "runs" / name, chance, metric, quantity) for name in table["name"]]
    groups = {threshold: [one for one in own if one.threshold == threshold] for threshold in {o.threshold for o in own}}
    OPENINGS[request.param] = story.opening, own
    ranges = [(one.early.lag_range, one.late.lag_range) for run in runs.values() for one in answers(run)]
    PRINTED[request.param] = _shown(summary_table(table), None), own, ranges
    return request.param, metric, chapter, groups


def said_of(text: str, groups: dict[float, list[Trained]]) -> list[Trained]:
    name = re.search(r"threshold ([\d.]+)", text, re.IGNORECASE)
    return groups[float(name[1]) if name else np.inf]


def test_the_opening_counts_trainings_steps_and_seeds_and_says_what_guessing_gets(swept) -> None:
    kind, metric, *_ = swept
    (said,), own = OPENINGS[kind]
    trainings, steps, seeds = re.match(
        r"(\d+) trainings of up to (\d+) steps on the task .*, (\d+) seeds at each point\.", said
    ).groups()
    assert [int(trainings), int(seeds)] == [len(own), len(own) // len({one.threshold for one in own})]
    assert int(steps) == max(one.steps for one in own)
    # Guessing 1 errs by the variance of a sum of two uniform numbers; ten digits are as likely as each other.
    assert ("an error of 0.167" if metric == "mse" else "an accuracy of 0.1") in said


def test_the_printed_table_holds_means_and_deviations_over_seeds(swept) -> None:
    said, own, ranges = PRINTED[swept[0]]
    head, *rows, _ = said.splitlines()
    assert head.split("  ")[-1] == "rate end"
    by_threshold = {re.split(r"  +", row)[3]: re.split(r"  +", row)[4:] for row in rows}
    assert len(by_threshold) == len({one.threshold for one in own})
    for clip, (seeds, diverged, value, start, end) in by_threshold.items():
        threshold = np.inf if clip == "none" else float(clip)
        mine = [(one, lags) for one, lags in zip(own, ranges, strict=True) if one.threshold == threshold]
        kept = np.array([one.value for one, _ in mine if not one.diverged])
        assert [int(seeds), int(diverged)] == [len(mine), len(mine) - len(kept)]
        mean, spread = kept.mean() if kept.size else None, kept.std(ddof=1) if kept.size > 1 else None
        expected = "-" if mean is None else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
        assert value == expected
        for at, shown in enumerate((start, end)):
            slopes = [slope(one.curves[at], lags[at]) for one, lags in mine if lags[at] is not None]
            assert shown == (f"{np.mean(slopes):+.4f}".replace("-", "−") if slopes else "-")


def slope(curve: np.ndarray, lags: tuple[int, int]) -> float:
    at = np.arange(lags[0], lags[1] + 1)
    return float(stats.linregress(at, curve[at]).slope)


def error_of_the_mean(length: int) -> float:
    """Of the first four fifths of the sunspots, on the months behind with ``length`` such months before them."""
    numbers = load_sunspots().numbers
    trained, behind = np.split(numbers, [4 * len(numbers) // 5])
    return float((((behind[length:] - trained.mean()) / trained.std()) ** 2).mean())


@pytest.mark.parametrize(
    ("task", "lengths", "words"),
    [
        ("copy", (7, 9), "repeat ten symbols after 7 timesteps, or repeat ten symbols after 9 timesteps"),
        ("copy", (7,), "(repeat ten symbols after 7 timesteps), 2 seeds"),
        ("sunspots", (24,), f"gets an error of {error_of_the_mean(24):.3g} on the held-out data"),
        ("temporal_order", (20,), "an accuracy of 0.25"),
    ],
)
def test_the_opening_is_of_the_lengths_and_the_data_of_the_sweep(task, lengths, words) -> None:
    rows = [{"name": f"{n}-{seed}", "task": task, "length": n, "cell": "rnn", "init": "default", "clip": np.nan,
             "seed": seed, "steps": 5, "metric": "accuracy", "value": 0.5, "diverged": np.nan, "loss": 1.0,
             "reach_early": 0.1, "reach_late": 0.2} for n in lengths for seed in (0, 1)]  # fmt: skip
    story = tell_sweep(pd.DataFrame(rows), {})
    assert words in story.opening[0]
    # Around the symbols to be repeated stand the symbols themselves and ten blanks.
    for length, chapter in zip(lengths, story.chapters, strict=True):
        assert f"reaches {length + (20 if task == 'copy' else 0) - 1} steps back" in chapter.text[-1]


def test_the_tasks_own_length_is_what_it_is_without_a_sweep() -> None:
    for task, length in (("copy", 50), ("adding", 100), ("digits", 64)):
        assert {trial.length for trial in Grid(task=task).trials()} == {length}


def test_what_each_threshold_came_to_is_what_its_runs_logged(swept) -> None:
    kind, metric, chapter, groups = swept
    told = [text for text in chapter.text if text.startswith(("With threshold", "Without clipping"))]
    assert len(told) == len(groups)
    for text in told:
        mine = said_of(text, groups)
        kept = [one.value for one in mine if not one.diverged]
        gone = len(mine) - len(kept)
        if gone:
            assert f"{gone} of {len(mine)} runs diverged" in text or f"all {gone} runs diverged" in text
        else:
            assert "diverged" not in text
        if kept:
            found = re.search(rf"held-out {metric} ended at ([\d.e-]+)(?:–([\d.e-]+) \(mean ([\d.e-]+)\))? over", text)
            shown = [float(value or found[1]) for value in found.groups()]
            assert shown == pytest.approx([min(kept), max(kept), np.mean(kept)], abs=0.0051 if min(kept) > 0.005 else 0)
            assert f"over {len(kept)} runs" in text or f"over the {len(kept)} that did not" in text
    assert any("diverged" in text for text in told) == (kind == "some diverge")


def test_thresholds_are_told_from_none_where_welchs_interval_excludes_no_difference(swept) -> None:
    kind, metric, chapter, groups = swept
    kept = {threshold: [one.value for one in mine if not one.diverged] for threshold, mine in groups.items()}
    free, others = kept.pop(np.inf), sorted(kept)
    level = 1 - 0.05 / len(others)
    first, *_ = chapter.text
    differences = next((text for text in chapter.text if text.startswith("Difference of the means")), "")
    for threshold in others:
        shown = f"{threshold:g}"
        (clause,) = [one for one in first.removesuffix(".").split("; ") if re.search(rf"\b{re.escape(shown)}\b", one)]
        if min(len(free), len(kept[threshold])) < 2:
            assert "cannot be compared with no clipping" in clause
            continue
        found = stats.ttest_ind(kept[threshold], free, equal_var=False).confidence_interval(level)
        better = found.high < 0 if metric == "mse" else found.low > 0
        worse = found.low > 0 if metric == "mse" else found.high < 0
        words = "ended better" if better else "ended worse" if worse else "cannot be told from no clipping"
        assert words in clause
        part = re.search(rf"{re.escape(shown)}: ([+−][\d.e-]+) \(([+−][\d.e-]+) to ([+−][\d.e-]+)\)", differences)
        values = [float(one.replace("−", "-")) for one in part.groups()]
        expected = [np.mean(kept[threshold]) - np.mean(free), found.low, found.high]
        assert values == pytest.approx(expected, rel=0.06, abs=0.0051)
    assert ("ended worse" in first) == (kind == "one is worse")


def test_what_of_the_gradient_arrives_is_the_geometric_mean_of_the_stored_norms(swept) -> None:
    _, _, chapter, groups = swept
    (said,) = [text for text in chapter.text if text.startswith("Of the gradient")]
    every = [one for mine in groups.values() for one in mine]
    early = re.search(rf"timestep, (\S+)(?: to (\S+))? reaches {LENGTH - 1} steps back in the first", said)
    assert early is not None, said
    assert early[1] == number(min(one.early for one in every))
    assert (early[2] or early[1]) == number(max(one.early for one in every))
    late = said.partition("in the last tenth, ")[2].removesuffix(".")
    parts = late.split("; ")
    assert len(parts) == sum(not all(one.diverged for one in mine) for mine in groups.values())
    for part in parts:
        reached = [one.late for one in said_of(part, groups) if not one.diverged]
        low, high = number(min(reached)), number(max(reached))
        assert part.startswith((low if low == high else f"{low} to {high}") + " ")


def test_the_table_holds_the_ranges_of_the_runs_that_did_not_diverge(swept) -> None:
    _, metric, chapter, groups = swept
    ((_, table),) = chapter.tables
    for _, row in table.iterrows():
        mine = groups[np.inf if row["threshold"] == "none" else float(row["threshold"])]
        kept = [one for one in mine if not one.diverged]
        assert (int(row["runs"]), int(row["diverged"])) == (len(mine), len(mine) - len(kept))
        reaching = "gradient reaching the first timestep"
        for column, name in ((f"held-out {metric}", "value"), ("training loss", "loss"), (reaching, "late")):
            ends = [number(pick(getattr(one, name) for one in kept)) for pick in (min, max)] if kept else ["–"]
            assert row[column] == (ends[0] if len(set(ends)) == 1 else " to ".join(ends)), column
