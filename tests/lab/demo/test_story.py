from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gradscope.lab.demo import trainings
from gradscope.lab.demo.story import line_of, reaching, tell_demo
from gradscope.lab.zoo.train import Evaluation, TrainResult
from tests.made_runs import entering_last, make_run, site_info

# log10 per step before training and after it, as measured of the real networks.
RATES = {"rnn": (-0.2, -0.01), "lstm": (-0.19, -0.01), "lstm-forget1": (-0.06, 0.0), "lstm-chrono": (-0.01, 0.01)}


def lines_and_runs(root, change=()):
    lines, runs = [], {}
    for plan in trainings.plans():
        rates = {**RATES, **dict(change)}.get(plan.name, (-0.2, -0.03))
        cell = {"rnn": "rnn_tanh", "gru": "gru"}.get(plan.model, "lstm")
        runs[plan.name] = make_run(
            root / plan.name, rates, cell=cell, lags=64, threshold=plan.settings.clip, extra=extra_of(cell)
        )
        result = TrainResult("digits", "accuracy", 4938, plan.settings, [2.3], [Evaluation(600, 1.0, 0.5)], None, 1.0)
        lines.append(line_of(plan.name, runs[plan.name], result))
    return lines, runs


def extra_of(cell):
    gates = site_info("x/l0", cell).gates
    direct = {"direct": entering_last(lags=64)}
    if not gates:
        return direct
    mean = np.full((len(gates), 8), 0.5)
    flat = np.zeros(len(gates))
    activations = {"gate_mean": mean, "gate_log_mean": np.log(mean), "gate_low": flat, "gate_high": flat}
    return {"gates": np.ones((6, len(gates), 64)), **activations, **direct}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    lines, runs = lines_and_runs(tmp_path_factory.mktemp("demo"))
    return lines, tell_demo(lines, runs)


def test_it_opens_with_all_cells_vanishing_at_their_default(told):
    _, story = told
    assert "the gradient vanishes in all three cells" in story.opening[1]


def test_a_default_that_did_not_vanish_is_not_said_to(tmp_path):
    lines, runs = lines_and_runs(tmp_path, {"gru": (0.0, 0.0)})
    opening = tell_demo(lines, runs).opening[1]
    assert "vanishes in all" not in opening
    assert "GRU: preserved" in opening


def test_every_network_stands_beside_the_others_before_and_after(told):
    _, story = told
    pictures = {picture.name: picture for chapter in story.chapters for picture in chapter.pictures}
    for name in ("cells_decay_start", "cells_decay_end", "cells_training"):
        assert pictures[name].data["run"].nunique() == 5
    assert set(pictures["cells_decay_start"].data["step"]) == {0}
    assert set(pictures["clipping_sweep_loss"].data["threshold"]) == {0.05, 0.5, 5.0, float("inf")}


def test_the_table_holds_what_reaches_the_first_timestep(told):
    lines, story = told
    (_, table), *_ = story.chapters[1].tables
    rnn = next(line for line in lines if line.name == "rnn")
    assert reaching(rnn.first) == pytest.approx(10 ** (-0.2 * 63), rel=0.1)
    shown = float(table.set_index("training").loc["RNN (tanh)", "before"])
    assert shown == pytest.approx(10 ** (-0.2 * 63), rel=0.25)  # one digit is shown


def test_a_diverged_training_is_named_so(told):
    lines, _ = told
    assert replace(lines[0], result=replace(lines[0].result, diverged=7)).accuracy == "diverged"


def test_a_curve_that_ends_in_zeros_reaches_nothing(told):
    lines, _ = told
    assert reaching(replace(lines[0].late, lost_from=1)) == 0.0
