"""A script that knows nothing of gradscope has its models and optimizers found."""

from __future__ import annotations

import copy
import gc
import os
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, Adam

import gradscope
from gradscope.capture.launcher import Launcher

B, T, D, H = 3, 6, 2, 4


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(D, H, batch_first=True)
        self.head = nn.Linear(H, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(D, H, batch_first=True)

    def forward(self, x):
        return self.gru(x)[1][0]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(D, H)
        self.out = nn.Linear(H, D)

    def forward(self, h):
        x, made = h.new_zeros(h.shape[0], D), []
        for _ in range(T):
            h = self.cell(x, h)
            x = self.out(h)
            made.append(x)
        return torch.stack(made, 1)


def train(model, optimizer, steps=3):
    for _ in range(steps):
        loss = model(torch.randn(B, T, D)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture
def launcher(tmp_path):
    launcher = Launcher(tmp_path / "run", every=1)
    launcher.install()
    yield launcher
    launcher.finish()


def ended(launcher, name="run"):
    launcher.finish()
    return gradscope.open_run(launcher._run_dir.with_name(name))


def record_steps(run, site):
    return run.records(site)["step"].tolist()


def test_it_records_what_gradscope_record_records_from_step_0_on(launcher, tmp_path):
    torch.manual_seed(1)
    model = Tagger()
    train(model, Adam(model.parameters()))
    found = ended(launcher)
    torch.manual_seed(1)
    model = Tagger()
    optimizer = Adam(model.parameters())
    with gradscope.record(model, tmp_path / "by_hand", optimizer=optimizer, every=1):
        train(model, optimizer)
    expected = gradscope.open_run(tmp_path / "by_hand")
    assert record_steps(found, "lstm/l0") == [0, 1, 2]
    np.testing.assert_array_equal(found.array("lstm/l0", "cell"), expected.array("lstm/l0", "cell"))
    assert found.steps()["grad_norm"].tolist() == expected.steps()["grad_norm"].tolist()
    assert found.steps()["lr"].tolist() == expected.steps()["lr"].tolist()


def test_weights_and_random_numbers_are_those_of_a_training_without_it(tmp_path):
    def whole():
        torch.manual_seed(2)
        encoder, decoder = Encoder(), Decoder()
        model = nn.Sequential(encoder, decoder)
        train(model, Adam(model.parameters()), 5)
        return [*model.state_dict().values(), torch.rand(3)]

    plain = whole()
    launcher = Launcher(tmp_path / "run", every=2)
    launcher.install()
    recorded = whole()
    launcher.finish()
    assert launcher.outcomes[0].records == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_evaluation_first_begins_no_run_and_counts_no_step(launcher):
    model = Tagger()
    optimizer = Adam(model.parameters())
    with torch.no_grad():
        model(torch.randn(B, T, D))
    assert not launcher._run_dir.exists()
    train(model, optimizer, 2)
    assert record_steps(ended(launcher), "lstm/l0") == [0, 1]


def test_a_bare_stack_with_dropout_is_recorded_from_its_very_first_call(launcher):
    layer = nn.LSTM(D, H, 2, dropout=0.5)  # its masks are only known when the generator was seen before the call
    optimizer = Adam(layer.parameters())
    layer(torch.randn(T, B, D))[0].sum().backward()
    optimizer.step()
    run = ended(launcher)
    assert record_steps(run, "model/l0") == [0]
    assert record_steps(run, "model/l1") == [0]


def test_a_method_other_than_forward_still_has_the_whole_model_found(launcher):
    model = Tagger()
    optimizer = Adam(model.parameters())
    model.head(model.lstm(torch.randn(B, T, D))[0]).sum().backward()
    optimizer.step()
    assert ended(launcher).model["class"] == "Tagger"


def test_a_copied_model_is_found_though_no_constructor_ran(launcher):
    model = copy.deepcopy(Tagger())
    train(model, Adam(model.parameters()))
    assert ended(launcher).sites == ("lstm/l0",)


def test_models_in_one_optimizer_share_a_run_under_their_class_names(launcher):
    encoder, decoder = Encoder(), Decoder()
    optimizer = Adam([*encoder.parameters(), *decoder.parameters()])
    train(lambda x: decoder(encoder(x)), optimizer)
    assert set(ended(launcher).sites) == {"Encoder.gru/l0", "Decoder.cell"}


def test_models_with_an_optimizer_each_share_a_run_and_its_steps_under_their_variables(launcher, monkeypatch):
    encoder, decoder = Encoder(), Decoder()
    monkeypatch.setattr(sys.modules["__main__"], "encoder", encoder, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "decoder", decoder, raising=False)
    both = [Adam(encoder.parameters(), lr=0.01), SGD(decoder.parameters(), lr=0.1)]
    totals = []
    for _ in range(4):
        decoder(encoder(torch.randn(B, T, D))).pow(2).mean().backward()
        grads = [p.grad for m in (encoder, decoder) for p in m.parameters()]
        totals.append(float(torch.stack([g.double().norm() for g in grads]).norm()))
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    run = ended(launcher)
    assert set(run.sites) == {"encoder.gru/l0", "decoder.cell"}
    assert record_steps(run, "encoder.gru/l0") == record_steps(run, "decoder.cell") == [0, 1, 2, 3]
    np.testing.assert_allclose(run.steps()["grad_norm"], totals, rtol=1e-6)
    assert run.array("decoder.cell", "hidden").shape[-1] == T


def test_optimizers_that_take_turns_make_a_step_each(launcher):
    one, other = Tagger(), Encoder()
    turns = [(one, Adam(one.parameters())), (other, Adam(other.parameters()))]
    for model, optimizer in [turns[0], turns[0], turns[1], turns[0]]:
        train(model, optimizer, 1)
    run = ended(launcher)
    assert launcher.outcomes[0].steps == 4
    assert record_steps(run, "Tagger.lstm/l0") == [0, 1, 3]
    assert record_steps(run, "Encoder.gru/l0") == [2]


def test_every_fold_has_a_run_and_no_model_outlives_its_fold(launcher):
    held = []
    for _ in range(3):
        model = Tagger()
        held.append(weakref.ref(model))
        train(model, Adam(model.parameters()), 2)
        gc.collect()
        assert sum(ref() is not None for ref in held) == 1
    del model
    launcher.finish()
    assert [outcome.run_dir.name for outcome in launcher.outcomes] == ["run", "run-2", "run-3"]
    assert all(record_steps(gradscope.open_run(o.run_dir), "lstm/l0") == [0, 1] for o in launcher.outcomes)


def test_models_of_one_class_made_beforehand_have_a_run_each(launcher):
    pairs = [(model, Adam(model.parameters())) for model in (Tagger(), Tagger())]
    for model, optimizer in pairs:
        train(model, optimizer, 2)
    assert record_steps(ended(launcher), "lstm/l0") == [0, 1]
    assert record_steps(ended(launcher, "run-2"), "lstm/l0") == [0, 1]


def test_a_new_optimizer_for_the_same_model_goes_on_in_its_run(launcher):
    model = Tagger()
    optimizer = Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 2)
    optimizer = SGD(model.parameters(), lr=0.5)
    train(model, optimizer, 2)
    run = ended(launcher)
    assert record_steps(run, "lstm/l0") == [0, 1, 2, 3]
    assert len(launcher.outcomes) == 1


def test_steps_after_a_later_training_has_begun_are_counted_and_said(launcher):
    first = Tagger()
    optimizer = Adam(first.parameters())
    train(first, optimizer, 1)
    second = Tagger()
    train(second, Adam(second.parameters()), 1)
    train(first, optimizer, 2)
    said = launcher.finish()
    assert any("2 later steps of Tagger were not recorded" in line for line in said)


def test_clipping_functions_imported_by_name_are_seen(launcher):
    model = Tagger()
    optimizer = Adam(model.parameters())
    model(torch.randn(B, T, D)).sum().backward()
    clip_grad_norm_(model.parameters(), 0.25)
    clip_grad.clip_grad_value_(model.parameters(), 0.01)
    optimizer.step()
    clips = ended(launcher).clips()
    assert clips[["kind", "threshold"]].to_numpy().tolist() == [["norm", 0.25], ["value", 0.01]]


def test_a_script_that_records_itself_is_left_alone(launcher, tmp_path):
    model = Tagger()
    optimizer = Adam(model.parameters())
    with gradscope.record(model, tmp_path / "own", optimizer=optimizer, every=1):
        train(model, optimizer)
    assert launcher.finish() == ["the script records itself with gradscope.record: left to it"]
    assert not launcher._run_dir.exists()
    assert record_steps(gradscope.open_run(tmp_path / "own"), "lstm/l0") == [0, 1, 2]


def test_a_forked_worker_does_not_write_into_the_run(launcher):
    model = Tagger()
    optimizer = Adam(model.parameters())
    train(model, optimizer, 1)
    if (child := os.fork()) == 0:
        train(model, optimizer, 3)
        other = Tagger()
        train(other, Adam(other.parameters()), 1)
        os._exit(0 if launcher.finish() == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    train(model, optimizer, 1)
    assert record_steps(ended(launcher), "lstm/l0") == [0, 1]
    assert not launcher._run_dir.with_name("run-2").exists()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("nothing", "made no optimizer of torch.optim"),
        ("no recurrence", "Linear: nothing recurs in the graph of the loss"),
        ("no training", "no forward pass with gradients"),
    ],
)
def test_when_nothing_was_recorded_it_says_what_was_looked_for(launcher, what, expected):
    if what == "no recurrence":
        model = nn.Linear(D, 1)
        train(model, SGD(model.parameters(), lr=0.1))
    elif what == "no training":
        model = Tagger()
        optimizer = SGD(model.parameters(), lr=0.1)
        with torch.no_grad():
            model(torch.randn(B, T, D))
        optimizer.zero_grad()
    (said,) = launcher.finish()
    assert said.startswith("nothing was recorded: ")
    assert expected in said
    assert not launcher._run_dir.exists()


def test_an_unknown_site_is_said_at_the_end_and_never_raised_into_the_script(tmp_path):
    launcher = Launcher(tmp_path / "run", every=1, sites=["lsmt"])
    launcher.install()
    model = Tagger()
    train(model, Adam(model.parameters()))
    said = launcher.finish()
    assert "Tagger was not recorded: unknown site 'lsmt'" in said[0]
    assert not (tmp_path / "run").exists()


def test_a_site_that_is_no_recurrent_layer_is_recorded_by_its_input(tmp_path):
    launcher = Launcher(tmp_path / "run", every=1, sites=["0"])
    launcher.install()
    model = nn.Sequential(nn.Linear(D, H), nn.Linear(H, 1))
    train(model, SGD(model.parameters(), lr=0.1), 2)
    launcher.finish()
    assert record_steps(gradscope.open_run(tmp_path / "run"), "0") == [0, 1]


def test_the_end_of_it_leaves_torch_as_it_was(tmp_path):
    def state():
        hooks = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
        return (
            torch.optim.Optimizer._patch_step_function,
            clip_grad.clip_grad_value_,
            torch.nn.utils.clip_grad_value_,
            clip_grad.__dict__.get("_clip_grads_with_norm_"),
            *(len(table) for table in hooks),
        )

    before = state()
    launcher = Launcher(tmp_path / "run", every=1)
    launcher.install()
    model = Tagger()
    train(model, Adam(model.parameters()))
    launcher.finish()
    assert state() == before
    assert clip_grad_value_ is before[1]


def test_a_script_that_updates_its_parameters_by_hand_is_recorded_from_step_0_on(launcher):
    model = Tagger()
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(B, T, D)).pow(2).mean().backward()
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-0.1)
    run = ended(launcher)
    assert record_steps(run, "lstm/l0") == [0, 1, 2, 3]
    assert [outcome.steps for outcome in launcher.outcomes] == [4]


def test_a_model_that_is_only_tried_leaves_no_run_and_takes_no_name(launcher, tmp_path):
    Encoder()(torch.randn(B, T, D))
    model = Tagger()
    train(model, Adam(model.parameters()))
    assert record_steps(ended(launcher), "lstm/l0") == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_that_is_tried_before_its_optimizer_is_made_is_recorded_once(launcher, tmp_path):
    model = Tagger()
    model(torch.randn(B, T, D))
    train(model, Adam(model.parameters()))
    assert record_steps(ended(launcher), "lstm/l0") == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_script_without_any_update_is_told_what_to_add(launcher, tmp_path):
    Tagger()(torch.randn(B, T, D))
    (said,) = launcher.finish()
    assert "no update was seen" in said
    assert "recorder.step()" in said
    assert list(tmp_path.iterdir()) == []
