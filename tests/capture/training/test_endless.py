"""Loops in which no step ever ends: what is kept of them is bounded, and coverage says where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradscope
from gradscope.capture.training import account, clips
from gradscope.capture.training.coverage import FORGOTTEN
from tests.capture.training.loops import Table


def _zeroed_each_time(table: Table, times: int, clip: bool = False) -> tuple[list[float], int]:
    """Make passes whose gradients are zeroed; return their gradients at the last state, and how many were held."""
    passed, held = [], 0
    for _ in range(times):
        passed.append(table.backward())
        if clip:
            torch.nn.utils.clip_grad_norm_(table.model.parameters(), 0.1)
        table.model.zero_grad()
        held = max(held, len(table.recorder._account.passes), len(table.recorder._account.clips))
    return passed, held


def test_of_passes_that_no_update_uses_the_last_are_kept_and_the_update_that_comes_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account, "KEPT_DROPPED", 8)
    table = Table(tmp_path / "run")
    optimizer = table.sgd()
    with table.recorded(optimizer):
        dropped, held = _zeroed_each_time(table, 30)
        last = table.backward()
        optimizer.step()
    run = gradscope.open_run(tmp_path / "run")
    assert held == 8
    assert run.array("rnn/l0", "hidden")[:, 0, 0].tolist() == pytest.approx([last])
    assert run.apart.array("rnn/l0", "hidden")[:, 0, 0].tolist() == pytest.approx(dropped[-7:])
    assert [(line.site, line.reason) for line in run.coverage if line.reason] == [("passes", FORGOTTEN)]


def test_every_clipping_call_of_a_step_without_end_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "KEPT_DROPPED", 8)
    monkeypatch.setattr(clips, "WAITING", 8)
    table = Table(tmp_path / "run")
    with table.recorded() as recorder:
        _, held = _zeroed_each_time(table, 40, clip=True)
        assert held <= 9
        recorder.flush()
        assert len(gradscope.open_run(tmp_path / "run").clips()) >= 30
    assert gradscope.open_run(tmp_path / "run").clips().place.tolist() == ["dropped"] * 40


def test_a_short_loop_is_kept_whole(tmp_path: Path) -> None:
    table = Table(tmp_path / "run")
    with table.recorded():
        dropped, _ = _zeroed_each_time(table, 20)
    run = gradscope.open_run(tmp_path / "run")
    assert run.apart.n_records == len(dropped)
    assert FORGOTTEN not in {line.reason for line in run.coverage}
