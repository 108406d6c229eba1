"""A wrong call of ``record`` fails at once, says what to do, and leaves nothing on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

import gradscope
from gradscope.errors import (
    GradscopeError,
    NothingToRecordError,
    RunExistsError,
    SettingError,
    UnknownNameError,
)


class Model(nn.Module):
    def __init__(self, layer: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm": layer(3, 4, num_layers=2, bidirectional=True)})
        self.readout = nn.Linear(8, 1)


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD(Model().parameters(), lr=0.1)


CASES: dict[str, tuple[Any, dict[str, Any], type[GradscopeError], list[str]]] = {
    "unknown site": (
        Model(),
        {"sites": "encoder.lstn/l0"},
        UnknownNameError,
        ["encoder.lstn/l0", "Did you mean", "'encoder.lstm/l0'"],
    ),
    "unknown layer of a site": (
        Model(),
        {"sites": ["encoder.lstm/l2"]},
        UnknownNameError,
        ["encoder.lstm/l2", "encoder.lstm/l1"],
    ),
    "one of several sites unknown": (
        Model(),
        {"sites": ["encoder.lstm", "decoder"]},
        UnknownNameError,
        ["'decoder'", "Known:"],
    ),
    "unknown quantity": (Model(), {"quantities": ["hiden"]}, UnknownNameError, ["'hiden'", "Did you mean 'hidden'"]),
    "one of several quantities unknown": (
        Model(),
        {"quantities": ["cell", "cell_cary"]},
        UnknownNameError,
        ["'cell_cary'", "'cell_carry'"],
    ),
    "labels that are none": (Model(), {"labels": ["chrono"]}, SettingError, ["labels", "mapping"]),
    "a label that is no word or number": (Model(), {"labels": {"init": [1]}}, SettingError, ["'init'", "[1]"]),
    "no quantity": (Model(), {"quantities": []}, SettingError, ["quantities", "empty"]),
    "no site": (Model(), {"sites": []}, SettingError, ["sites", "empty"]),
    "cell of a GRU": (Model(nn.GRU), {"quantities": ["cell"]}, SettingError, ["cell", "LSTM", "'hidden'"]),
    "cell path of an RNN": (
        Model(nn.RNN),
        {"quantities": "cell_path"},
        SettingError,
        ["cell_path", "LSTM", "'hidden'"],
    ),
    "every=0": (Model(), {"every": 0}, SettingError, ["every", "at least 1", "0"]),
    "every=-1": (Model(), {"every": -1}, SettingError, ["every", "at least 1", "-1"]),
    "every=2.5": (Model(), {"every": 2.5}, SettingError, ["every", "whole number", "2.5"]),
    "every=True": (Model(), {"every": True}, SettingError, ["every", "whole number"]),
    "every=None": (Model(), {"every": None}, SettingError, ["every", "None"]),
    "samples=0": (Model(), {"samples": 0}, SettingError, ["samples", "at least 1", "None for the whole batch"]),
    "samples='all'": (Model(), {"samples": "all"}, SettingError, ["samples", "'all'", "None"]),
    "a class": (Model, {}, SettingError, ["model", "instance", "class"]),
    "not a module": (lambda x: x, {}, SettingError, ["model", "torch.nn.Module", "function"]),
    "an optimizer class": (
        Model(),
        {"optimizer": torch.optim.SGD},
        SettingError,
        ["optimizer", "torch.optim.Optimizer"],
    ),
    "a scheduler": (
        Model(),
        {"optimizer": torch.optim.lr_scheduler.StepLR(_optimizer(), 1)},
        SettingError,
        ["optimizer", "torch.optim.Optimizer", "StepLR"],
    ),
    "unknown durability": (Model(), {"durability": "fsync"}, SettingError, ["durability", "'full'", "'fsync'"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_argument_fails_at_once_and_writes_nothing(case: str, tmp_path: Path) -> None:
    model, arguments, kind, words = CASES[case]
    with pytest.raises(kind) as raised:
        gradscope.record(model, tmp_path / "run", **arguments)
    for word in words:
        assert word in str(raised.value)
    assert raised.value.exit_code == 2
    assert isinstance(raised.value, ValueError)
    assert not list(tmp_path.iterdir())
    assert not hooks._global_forward_hooks


def test_a_run_that_exists_is_not_touched(tmp_path: Path) -> None:
    with gradscope.record(Model(), tmp_path / "run"):
        pass
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunExistsError, match="restart") as raised:
        gradscope.record(Model(), tmp_path / "run")
    assert str(tmp_path / "run") in str(raised.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_in_the_place_of_the_run_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunExistsError, match="run"):
        gradscope.record(Model(), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_refused_call_leaves_torch_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    norm, value = torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_
    scale = torch.amp.GradScaler.scale
    with pytest.raises(RunExistsError):
        gradscope.record(Model(), tmp_path / "run")
    assert (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_) == (norm, value)
    assert torch.amp.GradScaler.scale is scale
    assert not hooks._global_forward_hooks


def test_a_snapshot_of_an_unknown_site_or_without_a_loss_says_so() -> None:
    model = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.raises(UnknownNameError, match="Did you mean 'model/l0'"):
        gradscope.snapshot(model, lambda: model(x)[0].sum(), sites="model/l")
    with pytest.raises(SettingError, match="closure must return the loss"):
        gradscope.snapshot(model, lambda: model(x)[0])
    with pytest.raises(SettingError, match="closure must return the loss"):
        gradscope.snapshot(model, lambda: None)  # type: ignore[arg-type,return-value]
    line = nn.Linear(3, 2)
    with pytest.raises(NothingToRecordError, match="Linear"):
        gradscope.snapshot(line, lambda: line(x).sum())
    assert not hooks._global_forward_hooks
    taken = gradscope.snapshot(model, lambda: model(x)[0].sum())
    with pytest.raises(UnknownNameError, match="Known: model/l0"):
        taken["model/l1"]


def test_labels_are_kept_with_the_run(tmp_path: Path) -> None:
    given = {"init": "chrono", "seed": 3, "dropout": 0.1, "tied": True}
    gradscope.record(Model(), tmp_path / "run", labels=given).close()
    assert gradscope.open_run(tmp_path / "run").settings["labels"] == given
    gradscope.record(Model(), tmp_path / "plain").close()
    assert "labels" not in gradscope.open_run(tmp_path / "plain").settings
