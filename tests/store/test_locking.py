from __future__ import annotations

import pytest
import torch

import gradscope
from gradscope.errors import RunError
from gradscope.store import locking, repair
from tests.made_runs import make_run


def test_a_system_without_locks_refuses_to_record_before_anything_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "fcntl", None)  # as on Windows
    with pytest.raises(RunError, match="Linux, macOS and WSL"):
        gradscope.record(torch.nn.LSTM(2, 3), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_system_without_locks_reads_runs_and_repairs_none(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    monkeypatch.setattr(locking, "fcntl", None)
    assert gradscope.open_run(tmp_path / "run").sites
    with pytest.raises(RunError, match="is not written"):
        repair(tmp_path / "run")
