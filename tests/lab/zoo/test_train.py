from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import gradscope
from gradscope.errors import SettingError
from gradscope.lab.zoo.models import build_model
from gradscope.lab.zoo.tasks import build_task
from gradscope.lab.zoo.train import TrainSettings, evaluate, train

SETTINGS = TrainSettings(steps=6, batch_size=8, evaluate_every=4)


@pytest.fixture(scope="module")
def task():
    return build_task("adding", 8)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_recording_changes_neither_weights_nor_losses(task, tmp_path):
    plain, recorded = build_model("lstm", task, 8), build_model("lstm", task, 8)
    bare = train(plain, task, SETTINGS, progress=False)
    seen = train(recorded, task, SETTINGS, run_dir=tmp_path / "run", progress=False, every=2)
    assert torch.equal(weights(plain), weights(recorded))
    assert bare.losses == seen.losses


def test_the_run_holds_losses_clips_and_step_0(task, tmp_path):
    settings = replace(SETTINGS, clip=0.05)
    result = train(build_model("rnn", task, 8), task, settings, run_dir=tmp_path / "run", progress=False, every=4)
    with gradscope.open_run(tmp_path / "run") as run:
        assert run.records("recurrent/l0")["step"].tolist() == [0, 4]
        assert run.steps()["loss"].tolist() == result.losses
        assert run.steps()["held_out_mse"].dropna().tolist() == [found.metric for found in result.evaluations]
        assert set(run.clips()["threshold"]) == {0.05}
        assert len(run.clips()) == settings.steps


def test_evaluations_fall_where_asked_and_at_the_end(task):
    result = train(build_model("rnn", task, 4), task, SETTINGS, progress=False)
    assert [found.step for found in result.evaluations] == [4, 6]
    assert result.final.step == 6


def test_clipping_limits_an_sgd_step(task):
    settings = replace(SETTINGS, steps=1, optimizer="sgd", learning_rate=1.0, clip=1e-3)
    model = build_model("rnn", task, 8)
    before = weights(model)
    train(model, task, settings, progress=False)
    # Momentum starts empty: the first step is the clipped gradient itself.
    assert float((weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_training_learns(task):
    easy = build_task("temporal_order", 10)
    settings = TrainSettings(steps=150, batch_size=32, learning_rate=1e-2, clip=1.0)
    result = train(build_model("gru", easy, 16), easy, settings, progress=False)
    assert result.final.metric > 0.9
    assert result.diverged is None


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_divergence_stops_training_and_is_reported(task, clip):
    settings = TrainSettings(steps=50, batch_size=8, optimizer="sgd", learning_rate=1e6, clip=clip)
    result = train(build_model("irnn", task, 8), task, settings, progress=False)
    assert result.diverged is not None
    assert len(result.losses) == result.diverged + 1 < 50
    json.dumps(result.to_json(), allow_nan=False)


def test_evaluation_leaves_the_mode_as_it_was(task):
    model = build_model("rnn", task, 4).eval()
    found = evaluate(model, task, 3)
    assert not model.training
    assert found.step == 3
    assert math.isfinite(found.loss)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 0}, {"optimizer": "lbfgs"}, {"learning_rate": -1.0}, {"clip": float("nan")}]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_progress_goes_to_stderr_only(task, capfd):
    train(build_model("rnn", task, 4), task, SETTINGS, label="named", progress=True)
    assert capfd.readouterr().out == ""
