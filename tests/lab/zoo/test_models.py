from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradscope.errors import SettingError, UnknownNameError
from gradscope.lab.zoo.models import CELLS, INITS, MODELS, assemble, build_model, count_parameters
from gradscope.lab.zoo.tasks import build_task


@pytest.fixture(scope="module")
def adding():
    return build_task("adding", 20)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task_name", ["adding", "copy"])
def test_every_model_answers_every_kind_of_task_and_all_its_weights_learn(name, task_name):
    task = build_task(task_name, 6)
    x, y = task.draw(torch.Generator().manual_seed(0), 3)
    model = build_model(name, task, 8)
    outputs = model(x)
    assert outputs.shape == ((3, task.length, task.output_size) if task.every_step else (3, task.output_size))
    task.loss(outputs, y).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_seed_fixes_the_weights_and_leaves_the_global_state(adding):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build_model("lstm-chrono", adding, 8, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again = build_model("lstm-chrono", adding, 8, seed=1).state_dict()
    other = build_model("lstm-chrono", adding, 8, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["recurrent.weight_hh_l0"], other["recurrent.weight_hh_l0"])


@pytest.mark.parametrize("names", [("lstm", "lstm-forget1"), ("gru", "gru-update1")])
def test_the_bias_of_the_retaining_gate_sums_to_one_and_nothing_else_changes(adding, names):
    default, opened = (build_model(name, adding, 8).recurrent for name in names)
    total = opened.bias_ih_l0 + opened.bias_hh_l0
    assert torch.equal(total[8:16], torch.ones(8))
    for part in (slice(0, 8), slice(16, None)):
        assert torch.equal(total[part], (default.bias_ih_l0 + default.bias_hh_l0)[part])
    assert torch.equal(opened.weight_hh_l0, default.weight_hh_l0)


def test_an_update_bias_of_one_lets_a_gru_keep_more_of_its_state(adding):
    # Without recurrent weights and candidate, h decays by z alone: sigmoid(1) a step.
    gru = build_model("gru-update1", adding, 8).recurrent
    with torch.no_grad():
        gru.weight_hh_l0.zero_()
        gru.bias_ih_l0[16:] = gru.bias_hh_l0[16:] = 0
        kept = gru(torch.zeros(1, 5, 2), torch.ones(1, 1, 8))[1]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.731059**5), rtol=1e-4, atol=0)


def test_chrono_spreads_timescales_up_to_the_length_and_ties_the_input_gate():
    lstm = build_model("lstm-chrono", build_task("adding", 100), 512).recurrent
    i, f, _, _ = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().chunk(4)
    assert torch.equal(i, -f)
    assert f.min() >= 0
    assert f.max() <= math.log(99)
    # exp(b_f) is uniform on [1, 99]: its mean is 50.
    assert f.exp().mean().item() == pytest.approx(50, abs=4)


def test_chrono_in_a_gru_is_on_the_gate_that_keeps_the_state():
    gru = build_model("gru-chrono", build_task("adding", 100), 64).recurrent
    with torch.no_grad():
        gru.weight_hh_l0.zero_()
        gru.bias_ih_l0[128:] = gru.bias_hh_l0[128:] = 0  # candidate 0: h decays by z alone
        kept = gru(torch.zeros(1, 30, 2), torch.ones(1, 1, 64))[1].flatten()
    timescale = gru.bias_ih_l0[64:128].detach().exp()
    assert timescale.min() >= 1
    assert timescale.max() <= 99
    torch.testing.assert_close(kept, (timescale / (1 + timescale)) ** 30, rtol=1e-4, atol=1e-7)


def test_orthogonal_and_identity_recurrent_matrices_are(adding):
    w = build_model("rnn-orthogonal", adding, 16).recurrent.weight_hh_l0
    torch.testing.assert_close(w @ w.T, torch.eye(16), rtol=0, atol=1e-5)
    irnn = build_model("irnn", adding, 16).recurrent
    assert irnn.nonlinearity == "relu"
    assert torch.equal(irnn.weight_hh_l0, torch.eye(16))


def test_a_bidirectional_model_reads_the_reverse_direction_where_it_ends(adding):
    model = build_model("rnn-bidirectional", adding, 4)
    x = torch.randn(2, 20, 2)
    _, h_n = model.recurrent(x)
    torch.testing.assert_close(model(x), model.readout(torch.cat([h_n[0], h_n[1]], -1)))


def test_the_window_baseline_is_linear_tanh_linear_tanh_linear(adding):
    kinds = [type(layer) for layer in build_model("window", adding, 4).layers if not isinstance(layer, nn.Flatten)]
    assert kinds == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


def test_parameter_counts_are_those_of_the_equations(adding):
    inputs, hidden, readout = 2, 8, 8 + 1
    assert count_parameters(build_model("rnn", adding, 8)) == hidden * (inputs + hidden + 2) + readout
    assert count_parameters(build_model("lstm", adding, 8)) == 4 * hidden * (inputs + hidden + 2) + readout
    assert count_parameters(build_model("gru", adding, 8)) == 3 * hidden * (inputs + hidden + 2) + readout
    assert count_parameters(build_model("coupled", adding, 8)) == 3 * hidden * (inputs + hidden + 1) + readout
    assert count_parameters(build_model("peephole", adding, 8)) == 4 * hidden * (inputs + hidden + 1) + 24 + readout


def test_unknown_names_and_meaningless_pairs_are_refused(adding):
    with pytest.raises(UnknownNameError, match="'lstm'"):
        build_model("lsmt", adding)
    with pytest.raises(UnknownNameError, match="cell"):
        assemble("elman", "default", adding)
    with pytest.raises(UnknownNameError, match="init"):
        assemble("rnn", "xavier", adding)
    with pytest.raises(SettingError, match="'forget1' is for lstm"):
        assemble("rnn", "forget1", adding)
    with pytest.raises(SettingError, match="hidden size 0"):
        build_model("rnn", adding, 0)


def test_registries_agree():
    assert all(cell in CELLS or cell == "window" for cell, _ in MODELS.values())
    assert all(init in INITS for _, init in MODELS.values())
