"""Which step a number belongs to, by where in its loop a script logs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training.recorder import Recorder

Log = Callable[[Recorder, int], None]
PLACES = ("top", "forward", "backward", "step")


def _loss(recorder: Recorder, step: int) -> None:
    recorder.log(loss=float(step))


def _held_out(recorder: Recorder, step: int) -> None:
    recorder.log(held_out=step + 0.5)


def _now_and_then(recorder: Recorder, step: int) -> None:
    if step % 3 == 0:
        recorder.log(epoch=step // 3)


def trained(run: Path, every: int, logs: dict[str, list[Log]], steps: int = 8) -> pd.DataFrame:
    """Train with ``logs`` called at the top of an iteration, and after its forward pass, backward pass and step."""
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.record(model, run, optimizer=optimizer, every=every) as recorder:

        def at(place: str, step: int) -> None:
            for log in logs.get(place, ()):
                log(recorder, step)

        for step in range(steps):
            at("top", step)
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3, 2))[0].sum()
            at("forward", step)
            loss.backward()
            at("backward", step)
            optimizer.step()
            at("step", step)
    return gradscope.open_run(run).steps().set_index("step")


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_loss_has_its_own_step_wherever_it_is_logged(tmp_path: Path, place: str, every: int) -> None:
    rows = trained(tmp_path / "run", every, {place: [_loss]})
    assert rows["loss"].to_dict() == {step: float(step) for step in range(8)}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("place", PLACES[:3])
def test_what_is_logged_after_the_step_is_that_steps_though_a_loss_was_before(
    tmp_path: Path, place: str, every: int
) -> None:
    rows = trained(tmp_path / "run", every, {place: [_loss], "step": [_held_out]})
    assert rows["loss"].to_dict() == {step: float(step) for step in range(8)}
    assert rows["held_out"].to_dict() == {step: step + 0.5 for step in range(8)}


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_logged_at_times_before_a_step_is_the_coming_ones(tmp_path: Path, every: int) -> None:
    rows = trained(tmp_path / "run", every, {"top": [_now_and_then], "step": [_loss]})
    assert rows["epoch"].dropna().to_dict() == {0: 0.0, 3: 1.0, 6: 2.0}
    assert rows["loss"].to_dict() == {step: float(step) for step in range(8)}
