"""What Accelerate prepared is recorded as it is, by the one line of any loop, with the numbers of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import gradscope
from gradscope.capture.training.telling import GradscopeWarning
from tests.integrations.running import launched, on_two_ranks

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("transformers")
from tests.integrations.test_transformers import NORM, VALUE, Data, Model, _compare, _plain  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Training:
    """An ordinary training under Accelerate."""

    def __init__(self, **options: Any) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        made = Model()
        optimizer = torch.optim.AdamW(made.parameters(), 1e-2, weight_decay=0.0)
        data = DataLoader(Data(), batch_size=4)
        self.model, self.optimizer, self.data = self.accelerator.prepare(made, optimizer, data)

    def epoch(self, data: Any = None, clip: str = "norm") -> None:
        for batch in data or self.data:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(**batch)["loss"])
                if self.accelerator.sync_gradients and clip == "norm":
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                elif self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_value_(self.model.parameters(), 0.05)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def recorded(self, run: Path, **settings: Any) -> gradscope.Recorder:
        return gradscope.record(self.model, run, optimizer=self.optimizer, every=1, **settings)


@pytest.fixture(autouse=True)
def _anew() -> None:
    _reset()


def _reset() -> None:
    """Forget what Accelerate keeps for the process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.mark.parametrize(
    ("options", "plainly"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 3}, {"parts": 3}),
        ({}, {"clip": VALUE, "limit": 0.05}),
        ({"mixed_precision": "bf16"}, {"bf16": True}),
    ],
    ids=["clipped by norm", "accumulated", "clipped by value", "in bfloat16"],
)
def test_what_accelerate_prepared_is_recorded_as_it_is(
    options: dict[str, Any], plainly: dict[str, Any], tmp_path: Path
) -> None:
    training = Training(**options)
    with training.recorded(tmp_path / "run"):
        training.epoch(clip="norm" if plainly.get("clip", NORM) is NORM else "value")
    _plain(tmp_path / "plain", **plainly)
    _compare(*(gradscope.open_run(tmp_path / name) for name in ("run", "plain")))


def test_an_optimizer_that_is_left_out_is_found_behind_its_wrapper(tmp_path: Path) -> None:
    training = Training()
    with (
        pytest.warns(GradscopeWarning, match="steps are counted from"),
        gradscope.record(training.model, tmp_path / "run", every=1),
    ):
        training.epoch()
    _plain(tmp_path / "plain")
    _compare(*(gradscope.open_run(tmp_path / name) for name in ("run", "plain")))


def test_a_training_that_goes_on_from_a_saved_state_is_a_new_attempt_with_the_steps_that_follow(tmp_path: Path) -> None:
    first = Training()
    with first.recorded(tmp_path / "run"):
        first.epoch()
    first.accelerator.save_state(str(tmp_path / "state"))
    _reset()
    later = Training()
    later.accelerator.load_state(str(tmp_path / "state"))
    with later.recorded(tmp_path / "run", restart=True, first_step=6):
        later.epoch()
    _plain(tmp_path / "plain", epochs=2)
    run = gradscope.open_run(tmp_path / "run")
    records = run.records("rnn/l0")
    expected = [(1, k) for k in range(6)] + [(2, k) for k in range(6, 12)]
    assert list(zip(records.attempt, records.step, strict=True)) == expected
    _compare(run, gradscope.open_run(tmp_path / "plain"))


def test_two_ranks_write_beside_each_other_and_agree_on_steps_and_norms(tmp_path: Path) -> None:
    run = on_two_ranks("accelerate", tmp_path)
    records = run.records("rnn/l0")
    assert sorted(zip(records["rank"], records.step, strict=True)) == [(r, k) for r in (0, 1) for k in range(3)]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import warnings
warnings.simplefilter("ignore")
from tests.integrations.test_accelerate import Training
Training(gradient_accumulation_steps=2).epoch()
"""


def test_the_launcher_records_the_same_script_with_the_same_numbers(tmp_path: Path) -> None:
    found = launched(SCRIPT, tmp_path)
    _plain(tmp_path / "plain", parts=2)
    _compare(found, gradscope.open_run(tmp_path / "plain"))
