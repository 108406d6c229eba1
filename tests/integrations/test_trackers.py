"""Curves, verdicts and figures arrive in the trackers, read back with the trackers' own readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gradscope
from gradscope.errors import SettingError
from gradscope.integrations.trackers import MLflow, TensorBoard, WandB, tell
from tests.made_runs import make_run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path: Path) -> gradscope.Run:
    return make_run(tmp_path / "run", (-0.2, -0.15, -0.1))


def _curve(run: gradscope.Run) -> dict[int, float]:
    norms = run.norms("lstm/l0", "cell")
    return norms[norms.step == 20].groupby("lag").norm.median().to_dict()


def test_what_is_told_are_the_runs_own_numbers(run: gradscope.Run) -> None:
    told = tell(run)
    scalars = dict(told.scalars)
    assert set(scalars) == set(range(21))
    assert scalars[7]["loss"] == run.steps().set_index("step").loss[7]
    assert {step for step, found in scalars.items() if "lstm/l0/rate" in found} == {0, 10, 20}
    assert scalars[20]["lstm/l0/rate"] == pytest.approx(-0.1, abs=0.01)
    assert dict(told.curves["lstm/l0"]) == _curve(run)
    assert told.verdicts == {"lstm/l0": "vanishing"}
    assert set(told.figures) >= {"decay", "training"}
    assert all(png.startswith(b"\x89PNG") for png in told.figures.values())


def test_tensorboard(run: gradscope.Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TensorBoard(tmp_path / "logs").log(run)
    found = EventAccumulator(str(tmp_path / "logs"))
    found.Reload()
    rates = {event.step: event.value for event in found.Scalars("gradscope/lstm/l0/rate")}
    assert rates[20] == pytest.approx(-0.1, abs=0.01)
    curve = {event.step: event.value for event in found.Scalars("gradscope/lstm/l0/norm against lag")}
    assert curve == pytest.approx(_curve(run), rel=1e-6)
    assert "gradscope/decay" in found.Tags()["images"]
    text = found.Tensors("gradscope/answers/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "**lstm/l0**: vanishing" in text


def test_weights_and_biases_offline(run: gradscope.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(SettingError, match=r"wandb\.init"):
        WandB().log(run)
    with wandb.init(mode="offline", project="gradscope", dir=str(tmp_path)) as target:
        WandB().log(run.path)
        summary = dict(target.summary)
    assert summary["gradscope/lstm/l0/verdict"] == "vanishing"
    assert summary["gradscope/lstm/l0/rate"] == pytest.approx(-0.1, abs=0.01)
    assert summary["gradscope/step"] == 20
    tables = list(Path(tmp_path).rglob("*.table.json"))
    assert len(tables) == 1
    assert dict(map(tuple, json.loads(tables[0].read_text())["data"])) == pytest.approx(_curve(run))
    assert len(list(Path(tmp_path).rglob("*.png"))) >= 2


def test_mlflow_in_local_files(run: gradscope.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        with pytest.raises(SettingError, match="start_run"):
            MLflow().log(run)
        with mlflow.start_run() as target:
            MLflow().log(run)
        client, run_id = mlflow.MlflowClient(), target.info.run_id
        rates = {m.step: m.value for m in client.get_metric_history(run_id, "gradscope/lstm/l0/rate")}
        assert rates[20] == pytest.approx(-0.1, abs=0.01)
        curve = {m.step: m.value for m in client.get_metric_history(run_id, "gradscope/lstm/l0/norm against lag")}
        assert curve == pytest.approx(_curve(run))
        assert client.get_run(run_id).data.tags["gradscope/lstm/l0/verdict"] == "vanishing"
        assert {"gradscope/decay.png", "gradscope/training.png"} <= {
            artifact.path for artifact in client.list_artifacts(run_id, "gradscope")
        }
    finally:
        mlflow.set_tracking_uri(before)


def test_a_run_that_grows_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    import torch
    from torch import nn

    model = nn.GRU(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1) as recorder:
        model(torch.randn(9, 3, 2))[0][-1].sum().backward()
        optimizer.step()
        recorder.flush()
        told = tell(tmp_path / "run", figures=False)
    assert [step for step, _ in told.scalars] == [0]
    assert np.isfinite(list(told.scalars[0][1].values())).all()
