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


class Training:
    """Steps of known lengths on a clock of its own."""

    def __init__(self, recorded: float, plain: float, budget: float = 0.02, between: float = 0.0) -> None:
        self.recorded, self.plain, self.between, self.now = recorded, plain, between, 0.0
        self.pace, self.steps, self.true_cost = Pace(None, budget, 0, lambda: self.now), 0, 0.0
        self.chosen: list[int] = []

    def go(self, steps: int, warm_up: float = 0.0) -> Training:
        for _ in range(steps):
            records = self.pace.records(self.steps)
            extra = self.between + (self.recorded - self.plain if records else 0.0)
            self.now += self.plain + extra + (warm_up if self.steps == 0 else 0.0)
            self.true_cost += extra
            self.pace.spend(self.between)
            self.steps += 1
            if self.pace.ended():
                assert self.pace.every is not None
                self.chosen.append(self.pace.every)
        return self

    @property
    def share(self) -> float:
        return self.true_cost / (self.now - self.true_cost)


@pytest.mark.parametrize(("recorded", "budget"), [(1.5, 0.02), (1.09, 0.02), (3.0, 0.1), (2.5, 0.02), (1.05, 0.5)])
def test_recording_takes_at_most_its_share_with_all_that_it_cost(recorded: float, budget: float) -> None:
    training = Training(recorded, 1.0, budget).go(400)
    for _ in range(20):
        training.go(100)
        alone = training.now - training.true_cost
        assert training.true_cost <= budget * alone + (recorded - 1.0), "to within one recorded step"
    if recorded - 1 > budget:
        assert training.share > budget / 2, "what is allowed is used"


def test_the_first_two_recorded_steps_are_made_up_for() -> None:
    early, late = Training(1.5, 1.0).go(5).chosen[-1], Training(1.5, 1.0).go(3000).chosen[-1]
    assert early > 1.5 * 25
    assert 25 <= late <= 25 * 1.25


def test_a_training_that_gets_slower_or_faster_keeps_to_its_budget() -> None:
    training = Training(1.5, 1.0).go(500)
    training.recorded, training.plain = 0.7, 0.2
    training.go(3000)
    assert training.share <= 0.021
    assert training.chosen[-1] >= 0.5 / 0.2 / 0.02 / 1.25


def test_a_first_measurement_that_something_else_disturbed_is_corrected_soon() -> None:
    training = Training(20.0, 1.0).go(5)
    training.recorded = 1.5
    assert training.chosen[0] <= 100
    assert training.go(6_000).chosen[-1] <= 40


def test_an_interval_is_changed_seldom() -> None:
    assert len(Training(1.5, 1.0).go(5000).chosen) <= 4


def test_the_warm_up_of_the_first_step_is_not_taken_for_recording() -> None:
    assert 25 <= Training(1.5, 1.0).go(5, warm_up=60.0).chosen[0] <= 50


def test_what_is_spent_between_recorded_steps_comes_off_the_budget() -> None:
    training = Training(1.5, 1.0, between=0.01).go(3000)
    assert training.share <= 0.021
    assert training.pace.every is not None
    assert training.pace.every >= 50, "half of a budget of .02 is gone"


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


def test_what_was_chosen_is_written_into_the_run(tmp_path: Path) -> None:
    run = _train(tmp_path / "run", 40, budget=0.4)
    chosen, steps = run.settings["chosen_every"], run.records("rnn/l0").step.tolist()
    assert run.settings["every"] == "auto"
    assert chosen >= 1
    assert steps[:2] == [0, 4]
    assert steps[-1] == max(step for step in range(40) if step % chosen == 0) or steps[-1] > 40 - 2 * chosen


def test_a_training_that_ends_before_the_choice_says_so(tmp_path: Path) -> None:
    run = _train(tmp_path / "run", 3)
    assert run.settings["chosen_every"] is None
    assert run.records("rnn/l0").step.tolist() == [0]


@pytest.mark.parametrize("given", [{"every": "often"}, {"every": "auto", "budget": 0.0}, {"budget": 2}, {"every": 0}])
def test_a_budget_that_makes_no_sense_is_refused_at_once(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingError):
        gradscope.record(Slow(), tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
