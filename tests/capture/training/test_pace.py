"""``every="auto"`` takes as many steps as its budget allows, says which, and keeps to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training.pace import Pace
from gradscope.errors import SettingError


def _chosen(recorded: float, plain: float, budget: float = 0.02, warm_up: float = 0.0) -> int:
    """The interval chosen where a recorded step takes ``recorded`` seconds and another one ``plain``."""
    now = [0.0]
    pace = Pace(None, budget, 0, lambda: now[0])
    for step in range(5):
        assert pace.every is None
        now[0] += (recorded if pace.records(step) else plain) + (warm_up if step == 0 else 0)
        assert pace.ended() == (step == 4)
    assert pace.every is not None
    return pace.every


@pytest.mark.parametrize(
    ("recorded", "plain", "budget", "every"),
    [(1.5, 1.0, 0.02, 25), (1.09, 1.0, 0.02, 5), (3.0, 1.0, 0.1, 20), (1.0, 1.0, 0.02, 3), (1.05, 1.0, 0.5, 1)],
)
def test_recording_takes_at_most_its_share(recorded: float, plain: float, budget: float, every: int) -> None:
    assert _chosen(recorded, plain, budget) == every
    assert (recorded - plain) / every <= budget * plain * (1 + 1e-9)


def test_the_warm_up_of_the_first_step_is_not_taken_for_recording() -> None:
    assert _chosen(1.5, 1.0, warm_up=60.0) == 25


def test_what_is_spent_between_recorded_steps_comes_off_the_budget() -> None:
    now = [0.0]
    pace = Pace(None, 0.02, 0, lambda: now[0])
    for step in range(5):
        now[0] += 1.5 if pace.records(step) else 1.0
        pace.spend(0.01)
        pace.ended()
    assert pace.every == 50, "half of a budget of .02 is gone"


def test_a_fixed_interval_is_not_reconsidered() -> None:
    pace = Pace(7, 0.02, 0, lambda: 0.0)
    assert [step for step in range(30) if pace.records(step)] == [0, 7, 14, 21, 28]
    assert not pace.ended()


class Slow(nn.Module):
    """A step of a steady length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return self.rnn(x)[0][-1].sum()


def _train(run: Path, steps: int, **settings: Any) -> gradscope.Run:
    model = Slow()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradscope.record(model, run, optimizer=optimizer, every="auto", **settings):
        for _ in range(steps):
            model(torch.randn(5, 3, 2)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return gradscope.open_run(run)


def test_what_was_chosen_is_written_into_the_run_and_kept_to(tmp_path: Path) -> None:
    run = _train(tmp_path / "run", 40, budget=0.4)
    chosen = run.settings["chosen_every"]
    assert run.settings["every"] == "auto"
    assert chosen >= 1
    expected = [0, 4] + [step for step in range(5, 40) if step % chosen == 0]
    assert run.records("rnn/l0").step.tolist() == expected


def test_a_training_that_ends_before_the_choice_says_so(tmp_path: Path) -> None:
    run = _train(tmp_path / "run", 3)
    assert run.settings["chosen_every"] is None
    assert run.records("rnn/l0").step.tolist() == [0]


@pytest.mark.parametrize("given", [{"every": "often"}, {"every": "auto", "budget": 0.0}, {"budget": 2}, {"every": 0}])
def test_a_budget_that_makes_no_sense_is_refused_at_once(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        gradscope.record(Slow(), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
