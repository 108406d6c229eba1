"""Process-wide patches of torch, beside those of other tools."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad

import gradscope
from gradscope.capture.calls import passes
from gradscope.capture.training import updates


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    kept = [(GradScaler, name, getattr(GradScaler, name)) for name in ("scale", "unscale_", "step")]
    kept += [(clip_grad, name, getattr(clip_grad, name)) for name in ("_clip_grads_with_norm_", "clip_grad_value_")]
    yield
    for owner, name, value in kept:
        setattr(owner, name, value)


def _wrap(owner: Any, name: str) -> Any:
    """What another tool does: call whatever is there."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def tool(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    setattr(owner, name, tool)
    return tool


def test_a_recorder_that_goes_while_it_is_told_of_a_step_harms_no_other(tmp_path: Path) -> None:
    gone = gradscope.record(nn.LSTM(2, 4), tmp_path / "gone", every=1)
    account = gone._account
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was dropped before it has seen anything
        del gone
    # As another thread has them in its hands.
    updates._watching.add(account._updates)
    passes.observe(account)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _clipped(tmp_path / "kept") == 1
    updates._watching.discard(account._updates)
    passes.ignore(account)
    run = gradscope.open_run(tmp_path / "kept")
    assert (run.n_records, run.lost) == (1, {})


def _clipped(run: Path, between: Any = None) -> int:
    """Record one clipped step; how many clipping calls the run has."""
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.record(model, run, optimizer=optimizer, every=1):
        if between is not None:
            between()
        model(torch.randn(5, 3, 2))[0].sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    return len(gradscope.open_run(run).clips())


def test_a_tool_that_patches_clipping_meanwhile_doubles_no_later_call(tmp_path: Path) -> None:
    patch = functools.partial(_wrap, clip_grad, "_clip_grads_with_norm_")
    assert _clipped(tmp_path / "first", patch) == 1
    assert _clipped(tmp_path / "second") == 1
    assert _clipped(tmp_path / "third", patch) == 1
    assert _clipped(tmp_path / "fourth") == 1


@pytest.mark.parametrize("name", ["scale", "unscale_", "step"])
def test_a_tool_that_patches_the_scaler_meanwhile_keeps_its_patch(tmp_path: Path, name: str) -> None:
    original = getattr(GradScaler, name)
    model = nn.LSTM(2, 4)
    recorder = gradscope.record(model, tmp_path / "run")
    assert getattr(GradScaler, name) is not original
    tool = _wrap(GradScaler, name)
    recorder.close()
    assert getattr(GradScaler, name) is tool


def test_the_scalers_steps_are_counted_once_under_an_old_patch(tmp_path: Path) -> None:
    for turn in range(2):
        model = nn.LSTM(2, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler("cpu", init_scale=64.0)
        with gradscope.record(model, tmp_path / str(turn), optimizer=optimizer, every=1) as recorder:
            if turn == 0:
                _wrap(GradScaler, "step")
            for _ in range(3):
                optimizer.zero_grad()
                scaler.scale(model(torch.randn(5, 3, 2))[0].sum()).backward()
                scaler.step(optimizer)
                scaler.update()
            assert recorder.step_number == 3
        run = gradscope.open_run(tmp_path / str(turn))
        assert run.records("model/l0")["step"].tolist() == [0, 1, 2]
        assert set(run.records("model/l0")["loss_scale"]) == {64.0}
