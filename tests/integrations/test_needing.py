"""Where a library is not installed, its integration says which one to install."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from gradscope.integrations import trackers
from gradscope.integrations.needing import needing


@pytest.mark.parametrize(
    ("module", "missing", "library"),
    [
        ("lightning", ("lightning", "lightning.pytorch", "pytorch_lightning"), "lightning"),
        ("transformers", ("transformers",), "transformers"),
    ],
)
def test_a_callback_names_the_trainers_own_library(module, missing, library, monkeypatch):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"gradscope.integrations.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=f"^{library} is not installed: python -m pip install {library}$"):
        importlib.import_module(f"gradscope.integrations.{module}")


@pytest.mark.parametrize(("tracker", "library"), [("WandB", "wandb"), ("MLflow", "mlflow")])
def test_a_tracker_names_its_library(tracker, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"^{library} is not installed: python -m pip install {library}$"):
        getattr(trackers, tracker)().log("run")


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"^tensorboard is not installed: python -m pip install tensorboard$"):
        trackers.TensorBoard(tmp_path)


def test_what_a_library_needs_itself_is_named_too():
    with pytest.raises(ModuleNotFoundError, match=r"^wandb \(no_such_part\) is not installed"), needing("wandb"):
        importlib.import_module("no_such_part")
