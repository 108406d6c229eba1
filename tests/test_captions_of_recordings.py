"""Twenty recordings: captions of gates, weights, timescales, decay through training and a story, from the arrays."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

import gradscope
from gradscope import plots
from gradscope.words import number, percent
from tests.recordings import RECORDINGS, Raw

Runs = dict[str, gradscope.Run]
TINY = float(np.finfo(np.float64).tiny)  # below it norms are no numbers: they are recorded in float64


def caption(kind: str, runs: list[gradscope.Run], **options: object) -> str:
    module = plots.load(kind)
    return module.caption(module.table(runs, **options))


def laid(norms: np.ndarray, after: int) -> Raw:
    """Norms (sequence, lag) of one recorded step, from the lag on at which the site ends."""
    logs = np.full(norms.shape, np.nan)
    usable = np.isfinite(norms) & (norms >= TINY)
    logs[usable] = np.log10(norms[usable])
    return Raw(after + np.arange(norms.shape[1]), logs, norms, np.zeros(len(norms)), None, None)


def steps_of(run: gradscope.Run, site: str) -> np.ndarray:
    return run.records(site)["step"].to_numpy()


def last_usable(run: gradscope.Run, site: str, dataset: str) -> int:
    """Position of the last record with a finite value."""
    values = run.array(site, dataset)
    return int(np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).any(1))[-1])


def names_of(sites: list[str], name: str) -> list[str]:
    """As captions call them: the run where it has one site, else the sites."""
    return [name] if len(sites) == 1 else sites


def with_array(run: gradscope.Run, quantity: str) -> list[str]:
    return [site for site in run.sites if quantity in run.quantities(site)]


def test_the_caption_of_gates_names_the_largest_adjoint_at_both_ends(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for name, run in recorded.items():
        sites = with_array(run, "gates")
        if not sites:
            assert name == "loop"
            continue
        said, lags, most, steps, white = caption("gates", [run]), [], 0, [], False
        for site in sites:
            at = last_usable(run, site, "gates")
            steps.append(steps_of(run, site)[at])
            after = int(run.records(site)["after"].to_numpy()[at])
            gates = [laid(norms, after) for norms in run.array(site, "gates")[at].transpose(1, 0, 2)]
            lags += [after, after + gates[0].lags.size - 1]
            most = max(most, *(int(np.isfinite(gate.rows).sum(0).max()) for gate in gates))
            for gate in gates:
                nothing = ~(np.isfinite(gate.rows) | (gate.norms == 0)).any(0)
                white |= bool((nothing & ((gate.norms > 0) & (gate.norms < TINY)).any(0)).any())
        found = re.search(r"lag \((\d+) to (\d+)\), .* up to (\d+) sequences, step (\d+)\.", said)
        assert [int(one) for one in found.groups()] == [min(lags), max(lags), most, max(steps)]
        assert ("white: below the smallest normal number" in said) == white, name
        for lag, gate, shown in re.findall(r"at lag (\d+) (\w+) \(([^)]*)\)", said.partition("Largest:")[2]):
            told["largest"] += 1
            here = {one: curve.value(int(lag)) for one, curve in zip(run.site(sites[0]).gates, gates, strict=True)}
            assert here[gate] == np.nanmax(list(here.values()))
            assert shown == number(10 ** here[gate])
        for lag in re.findall(r"at lag (\d+) all are zero", said):
            told["zero"] += 1
            assert all((one.norms[:, one.lags == int(lag)] == 0).all() for one in gates)
        told["several sites"] += len(sites) > 1
        assert ("Largest" in said) == (len(sites) == 1)
    assert {"largest", "zero", "several sites"} <= set(told), told


def test_the_caption_of_weights_names_the_timestep_that_contributes_most(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        sites = with_array(run, "weight")
        if not sites:
            continue
        said, each, times = caption("weight", [run]), [], []
        for site, name in zip(sites, names_of(sites, run.name), strict=True):
            at = last_usable(run, site, "weight")
            carried = int(run.records(site)["carried"].clip(lower=0).to_numpy()[at])
            norms = run.array(site, "weight")[at]
            known = np.flatnonzero(~np.isnan(norms))
            times += [carried + known.min(), carried + known.max()]
            assert f"step {steps_of(run, site)[at]}." in said
            top = int(np.nanargmax(norms))
            told["none" if norms[top] == 0 else "some"] += 1
            each.append(f"{name} {number(norms[top])} at {carried + top}" if norms[top] else f"{name} 0 throughout")
        assert f"timesteps {min(times)} to {max(times)}" in said
        assert f"Largest: {', '.join(each)}. Triangles on the edge: " in said, said
    assert {"some", "none"} <= set(told), told


def test_the_caption_of_timescales_is_that_of_the_stored_gates(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for name, run in recorded.items():
        sites = [site for site in with_array(run, "activations") if {"f", "z"} & set(run.site(site).gates)]
        if not sites:
            continue
        said, every, medians = caption("timescales", [run]), [], []
        for site, called in zip(sites, names_of(sites, run.name), strict=True):
            at, gates = last_usable(run, site, "gate_log_mean"), run.site(site).gates
            retaining = gates.index("f") if "f" in gates else gates.index("z")
            own = -1 / run.array(site, "gate_log_mean")[at][retaining]
            every += [own > run.lengths(site)[at].max()]
            medians.append(f"{called} {number(float(np.median(own)))}")
            assert f"step {steps_of(run, site)[at]};" in said
        longer = float(np.mean(every))
        told["some longer" if 0 < longer < 1 else "all" if longer else "none"] += 1
        assert f"{percent(longer)} of the units retain longer" in said
        assert f"Median timescale: {', '.join(medians)}." in said, (name, said)
    assert {"some longer", "all", "none"} <= set(told), told


def test_the_caption_of_training_names_what_is_left_at_both_ends_of_it(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for run in recorded.values():
        said, most, lags, every = caption("training", [run]), 0, [], []
        for site, name in zip(run.sites, names_of(list(run.sites), run.name), strict=True):
            quantity, steps = run.site(site).curve, steps_of(run, site)
            after = int(run.records(site)["after"].max())
            curves = {int(step): laid(run.array(site, quantity)[i], after) for i, step in enumerate(steps)}
            drawn = [curve for step, curve in curves.items() if f"{step}" in said or len(steps) <= 8]
            most = max(most, *(int(np.isfinite(curve.rows).sum(0).max()) for curve in drawn))
            lags += [after, after + run.array(site, quantity).shape[2] - 1]
            known = {step: curve for step, curve in curves.items() if np.isfinite(curve.curve).any()}
            each = []
            for step in (min(known), max(known)):
                curve = known[step].curve
                ends = np.flatnonzero(np.isfinite(curve))
                left = number(10 ** (curve[ends[-1]] - curve[ends[0]]))
                each.append(f"{left} at lag {known[step].lags[ends[-1]]} (step {step})")
            every.append(f"{name} {', '.join(dict.fromkeys(each))}")
            told["one end" if len(set(each)) == 1 else "two ends"] += 1
            told["other lag"] += len({one.split(" at ")[1].split(" (")[0] for one in each}) > 1
        assert f"lags {min(lags)} to {max(lags)}" in said
        if len(steps) == 1:
            assert f"at step {steps[0]};" in said
        else:
            count, first, last = re.search(
                r"at (\d+) recorded steps from (\d+) \(light\) to (\d+) \(dark\)", said
            ).groups()
            assert (int(count), int(first), int(last)) == (min(8, len(steps)), steps[0], steps[-1])
        if len(run.sites) <= 3:
            assert f"What is left: {'; '.join(every)}." in said, said
    assert {"one end", "two ends", "other lag"} <= set(told), told


def test_the_caption_of_a_story_of_one_run_holds_its_input_gradients_and_its_loss(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for name, run in recorded.items():
        sites = with_array(run, "input")
        if not sites:
            continue
        said, records = caption("story", [run]), run.records(sites[0])
        after, values = int(records["after"].max()), run.array(sites[0], "input")
        first = laid(values[0], after).curve
        entry = np.flatnonzero(np.isfinite(first))[0]
        found = re.search(r"At the first input: (\S+): (\S+)\. Shaded", said)
        assert found[1] == run.name
        lost = np.isnan(first[-1]) and (values[0][:, -1] < TINY).any()
        assert found[2] == ("0" if lost else number(10 ** (first[-1] - first[entry]))), (name, said)
        told["lost"] += lost
        told["in the middle"] += entry > 0
        assert ("at the last input that it reaches:" in said) == (entry > 0)
        if len(records) == 1:
            told["one record"] += 1
            assert "No run was recorded at two steps or more." in said
            assert "No run logged a loss at two steps or more" in said
            continue
        last = laid(values[-1], after)
        shown = re.search(
            rf"at the end {re.escape(run.name)}: (.*?)\. Loss of the same run|one run: at the end \S+: (.*?)\. Loss",
            said,
        )
        assert shown is not None, said
        ended = shown[1] or shown[2]
        if np.isfinite(last.curve).any():
            curve = last.curve
            assert ended == number(10 ** (curve[-1] - curve[np.isfinite(curve)][0]))
        else:
            told["not finite"] += 1
            assert ended == "not finite"
        losses = run.steps().sort_values("step")["loss"].to_numpy()
        loss = re.search(r"Loss of one run, at the end \(with nothing held out\): \S+: (.*)\. Triangles", said)
        assert loss[1] == (number(losses[-1]) if np.isfinite(losses[-1]) else "diverged")
    assert {"lost", "in the middle", "one record", "not finite"} <= set(told), told


def test_the_captions_of_losses_count_the_trainings_that_diverged_and_hold_their_ends(recorded: Runs) -> None:
    told: Counter[str] = Counter()
    for name, run in recorded.items():
        of, losses = RECORDINGS[name], run.steps().sort_values("step")["loss"].to_numpy()
        gone = not np.isfinite(losses[-1])
        told["diverged" if gone else "went on"] += 1
        said = caption("learning", [run])
        assert ("Crosses: 1 of 1 trainings diverged there" in said) == gone
        assert ("running median" in said) == (len(losses) >= 60)
        threshold = f"{of.clip[1]:g}" if of.clip and of.clip[0] == "norm" else "none"
        ended = losses[-max(1, len(losses) // 20) :].mean()
        said = caption("sweep_loss", [run])
        assert f"At the end: {threshold} {'diverged' if gone else number(ended)}." in said, said
        assert ("running median" in said) == (len(losses) >= 60)
        assert ("Crosses: 1 of 1 run diverged" if gone else "No run diverged.") in said
        said = caption("sweep_metric", [run])
        assert f"did not diverge: {'none.' if gone else f'{threshold} {number(ended)}.'}" in said
        assert ("Crosses: runs that diverged (1)." if gone else "No run diverged.") in said
        calls, logged = run.clips(), run.steps()["grad_norm"]
        n = calls["step"].nunique() if len(calls) else int(logged.notna().sum())
        assert f"({n} norm{'s' * (n > 1)})" in caption("norm_distribution", [run])
    assert set(told) == {"diverged", "went on"}


def test_the_captions_of_all_together_count_runs_and_sites(recorded: Runs) -> None:
    runs = list(recorded.values())
    losses = [run.steps().sort_values("step")["loss"].to_numpy() for run in runs]
    gone = sum(not np.isfinite(one[-1]) for one in losses)
    assert f"Crosses: {gone} of {len(runs)} trainings diverged" in caption("learning", runs)
    thresholds = [
        run.clips()["threshold"].mode().iloc[0] if (run.clips()["kind"] == "norm").any() else np.inf for run in runs
    ]
    said, per = caption("sweep_loss", runs), pd.Series(thresholds).value_counts()
    assert f"for {len(per)} thresholds" in said
    assert f"{per.min()} to {per.max()} runs each" in said
    assert f"Crosses: {gone} of {len(runs)} runs" in said
    for threshold in per.index:
        ends = [
            one[-max(1, len(one) // 20) :].mean()
            for one, own in zip(losses, thresholds, strict=True)
            if own == threshold and np.isfinite(one[-1])
        ]
        shown = "none" if np.isinf(threshold) else f"{threshold:g}"
        assert re.search(rf"[ :]{re.escape(shown)} {re.escape(number(float(np.median(ends))))}[,.]", said), (
            shown,
            said,
        )
    said = caption("weight", runs)
    sites = sum(len(with_array(run, "weight")) for run in runs)
    assert f" and {sites - 6} more." in said
    said = caption("gates", runs)
    assert f"at most 12 of {sites} runs and sites" in said
    assert "Left out: " + recorded["loop"].name in said
