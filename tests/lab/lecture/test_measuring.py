from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradscope.lab.lecture.measuring import CLIP_FRACTIONS, Experiment, Measured, Results, run_experiment
from gradscope.lab.zoo.tasks import build_task
from gradscope.lab.zoo.train import TrainSettings


def experiment(model, task="sunspots", length=12, hidden_size=6, trained=False, **settings):
    chosen = TrainSettings(steps=3, batch_size=4, evaluate_every=2, **settings)
    return Experiment(task, model, chosen, length=length, hidden_size=hidden_size, trained=trained)


def measure(*arguments, **options):
    return run_experiment(experiment(*arguments, **options), None)


def unrolled(one):
    """∂L/∂h_t of a tanh RNN from autograd over a written-out loop, as log10 of the geometric mean by lag."""
    task = build_task(one.task, one.length)
    model = one.build(task).double()
    x, y = task.draw(torch.Generator().manual_seed(2**31 + 7), 32)
    core, h, states = model.recurrent, torch.zeros(32, 6, dtype=torch.float64), []
    for x_t in x.double().unbind(1):
        pre = x_t @ core.weight_ih_l0.T + core.bias_ih_l0 + h @ core.weight_hh_l0.T + core.bias_hh_l0
        h = torch.tanh(pre)
        h.retain_grad()
        states.append(h)
    ((model.readout(h).squeeze(-1) - y.double()) ** 2).mean().backward()
    return np.array([s.grad.norm(dim=1).log10().mean().item() for s in reversed(states)])


def test_the_curve_of_an_rnn_is_that_of_an_unrolled_network():
    found = measure("rnn")
    np.testing.assert_allclose(found.curve("start"), unrolled(experiment("rnn")), rtol=1e-9)
    assert found.main == ("recurrent/l0", "hidden")
    assert math.log10(found.reach("start")) == pytest.approx(found.curve("start")[-1] - found.curve("start")[0])


def test_an_lstm_with_pinned_gates_keeps_its_cell_state_and_hides_it_from_h():
    found = measure("lstm-pinned")
    assert found.rate("start") == pytest.approx(math.log10(0.98), abs=2e-3)
    assert found.forget["start"] == pytest.approx(math.log10(0.98), abs=1e-6)
    assert found.reach("start", quantity="hidden") == 0.0
    np.testing.assert_allclose(found.curve("start", quantity="cell_path"), found.curve("start"), rtol=1e-9)


def test_a_window_has_the_gradient_of_its_input_only():
    found = measure("window")
    assert set(found.curves) == {("start", "", "input")}
    assert found.core_parameters == 0
    assert found.parameters == 12 * 6 + 6 + 6 * 6 + 6 + 6 + 1


def test_the_reverse_direction_is_measured_from_its_own_last_step():
    found = measure("rnn-bidirectional")
    reverse = found.curve("start", "recurrent/l0_reverse", "hidden")
    assert reverse[0] > reverse[-1] + 0.5
    inputs = found.curve("start", "", "input")
    assert min(inputs[0], inputs[-1]) > inputs[6]


def test_a_clip_at_every_timestep_bounds_an_exploding_adjoint_and_leaves_a_vanishing_one_behind():
    exploding, vanishing = (measure(m, length=60, hidden_size=32) for m in ("rnn-gain-2", "rnn"))
    np.testing.assert_allclose(exploding.clipped[math.inf], exploding.curve("start"), rtol=1e-9)
    assert exploding.reach("start") > 30
    assert all(exploding.clipped[f][-1] < exploding.clipped[math.inf][-1] for f in CLIP_FRACTIONS)
    assert all(vanishing.clipped[f][-1] <= vanishing.clipped[math.inf][-1] for f in CLIP_FRACTIONS)


def test_training_is_measured_at_both_ends_and_the_same_experiment_gives_the_same_numbers():
    first, again = measure("gru", trained=True), measure("gru", trained=True)
    assert first.losses == again.losses
    assert len(first.losses) == 3
    assert [e.step for e in first.evaluations] == [2, 3]
    np.testing.assert_array_equal(first.curve("end"), again.curve("end"))
    assert not np.array_equal(first.curve("start"), first.curve("end"))
    assert math.isfinite(first.held_out)
    assert math.isfinite(first.train_loss)


def test_a_recorded_experiment_leaves_a_run(tmp_path):
    one = experiment("window", trained=True)
    run_experiment(Experiment(**{**one.__dict__, "recorded": True}), tmp_path)
    assert (tmp_path / one.name).is_dir()


def test_a_diverged_training_has_no_held_out_loss():
    found = Measured(experiment("rnn"), 1, 1, losses=[1.0, 2.0], diverged=1)
    assert math.isnan(found.held_out)
    assert found.last_losses == math.inf


def test_results_are_found_by_task_model_and_threshold_in_the_order_of_seeds():
    made = [
        Measured(experiment("rnn", trained=True, seed=seed, optimizer=optimizer, clip=clip), seed, 0)
        for seed in (1, 0)
        for optimizer, clip in (("adam", 1.0), ("sgd", None), ("sgd", 1.0))
    ]
    results = Results(made)
    for clip in ("adam", None, 1.0):
        assert results.values("sunspots", "rnn", lambda m: m.parameters, clip) == [0, 1]
    assert results.of("sunspots", "rnn", 0.5) == []
