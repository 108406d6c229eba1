"""The account of a step reads as what happened, and what makes no sense is said once, at once, beside the training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.telling import GradscopeWarning
from gradscope.errors import EmptyRunError, RunError, RunExistsError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][-1])


class Loop:
    """A model in training, whose recorder tells the order of each step that ends."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model, self.orders = Net(), []  # type: ignore[var-annotated]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        ends = Recorder.step_ends

        def told(recorder: Recorder, skipped: bool, late: bool) -> None:
            self.orders.append(", ".join(recorder._account.order))
            ends(recorder, skipped, late)

        monkeypatch.setattr(Recorder, "step_ends", told)
        self.recorder = gradscope.record(self.model, run_dir, optimizer=self.optimizer, every=1, **settings)

    def loss(self) -> Tensor:
        return self.model(torch.randn(5, 3, 2)).pow(2).mean()

    def clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    made = Loop(tmp_path / "run", monkeypatch)
    yield made
    made.recorder.close()


def test_a_plain_step_is_a_pass_and_an_update(loop: Loop) -> None:
    loop.loss().backward()
    loop.optimizer.step()
    assert loop.orders == ["pass, update"]


def test_a_clipped_step_of_two_passes(loop: Loop) -> None:
    loop.loss().backward()
    loop.clip()
    loop.loss().backward()
    loop.clip()
    loop.optimizer.step()
    assert loop.orders == ["pass, clip norm, pass, clip norm, update"]


def test_a_gradient_that_is_asked_for_and_one_that_is_zeroed(loop: Loop) -> None:
    torch.autograd.grad(loop.loss(), list(loop.model.parameters()))
    loop.loss().backward()
    loop.optimizer.zero_grad()
    loop.loss().backward()
    loop.optimizer.step()
    assert loop.orders == ["gradient, pass, zeroed, pass, update"]


def test_a_loss_scale_that_is_divided_out(loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(loop.loss()).backward()
    scaler.unscale_(loop.optimizer)
    loop.clip()
    scaler.step(loop.optimizer)
    assert loop.orders == ["pass, unscale, clip norm, update"]


def test_an_update_that_a_loss_scale_skips(loop: Loop) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    (scaler.scale(loop.loss()) * float("inf")).backward()
    scaler.step(loop.optimizer)
    assert loop.orders == ["pass, unscale, skipped update"]


def test_a_pass_inside_of_a_pass_is_part_of_it(loop: Loop) -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(5, 3, 2, requires_grad=True)
    checkpoint(loop.model, x, use_reentrant=True).pow(2).mean().backward()
    loop.optimizer.step()
    assert loop.orders == ["pass, update"]


def test_a_closure_that_fails_leaves_the_steps_after_it_in_order(loop: Loop) -> None:
    def fails() -> Tensor:
        loop.loss().backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop.optimizer.step(fails)
    loop.optimizer.zero_grad()
    for _ in range(2):
        loop.loss().backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert loop.orders == ["pass, zeroed, pass, update", "pass, update"]
    assert loop.recorder.step_number == 2


# --- what makes no sense ---------------------------------------------------------------------------------------------


def _said(action: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(one.message) for one in caught if issubclass(one.category, GradscopeWarning)]


@pytest.mark.parametrize("name", ["log", "step"])
def test_a_recorder_that_is_used_after_close_says_so_once(name: str, loop: Loop) -> None:
    loop.recorder.close()
    (said,) = _said(lambda: [getattr(loop.recorder, name)() for _ in range(3)])
    assert f"recorder.{name}() after close()" in said


def test_marks_without_any_pass_are_said_once(tmp_path: Path) -> None:
    with gradscope.record(Net(), tmp_path / "run") as recorder:
        (said,) = _said(lambda: [recorder.step() for _ in range(3)])
    assert "before any backward pass" in said
    assert recorder.step_number == 3


def test_clipping_no_parameters_is_said_once_and_returns_what_torch_returns(loop: Loop) -> None:
    used_up = iter(loop.model.parameters())
    loop.loss().backward()
    loop.recorder.clip_grad_norm_(used_up, 0.1)
    (said,) = _said(lambda: [loop.recorder.clip_grad_norm_(used_up, 0.1) for _ in range(2)])
    assert "no parameters" in said
    assert float(loop.recorder.clip_grad_norm_([], 0.1)) == 0.0


def test_an_optimizer_of_another_model_is_said_at_once(tmp_path: Path) -> None:
    other = torch.optim.Adam(nn.Linear(2, 2).parameters())
    said = _said(lambda: gradscope.record(Net(), tmp_path / "run", optimizer=other).close())
    assert len(said) == 1
    assert "none of the parameters of the Adam that was given is the model's" in said[0]


def test_a_second_recorder_of_one_model_is_said_and_both_record(loop: Loop, tmp_path: Path) -> None:
    made: list[Recorder] = []
    (said,) = _said(
        lambda: made.append(gradscope.record(loop.model, tmp_path / "b", optimizer=loop.optimizer, every=1))
    )
    assert str(tmp_path / "run") in said
    loop.loss().backward()
    loop.optimizer.step()
    made[0].close()
    loop.recorder.close()
    assert [gradscope.open_run(tmp_path / name).n_records for name in ("run", "b")] == [1, 1]


def test_a_restart_in_the_same_process_ends_the_recorder_before_it(loop: Loop, tmp_path: Path) -> None:
    loop.loss().backward()
    loop.optimizer.step()
    with pytest.raises(RunExistsError):
        gradscope.record(loop.model, tmp_path / "run", optimizer=loop.optimizer)
    made: list[Recorder] = []
    again = {"optimizer": loop.optimizer, "every": 1, "restart": True}
    (said,) = _said(lambda: made.append(gradscope.record(loop.model, tmp_path / "run", **again)))
    assert "still writing" in said
    for _ in range(2):
        loop.loss().backward()
        loop.optimizer.step()
    made[0].close()
    records = gradscope.open_run(tmp_path / "run").records("rnn/l0")
    assert list(zip(records.attempt, records.step, strict=True)) == [(1, 0), (2, 0), (2, 1)]


def test_a_run_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradscope.store import writer

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(writer.Journal, "create", full)
    with pytest.raises(RunError, match="Make room"):
        gradscope.record(Net(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["settle_clips", "gradient_ready", "settle", "updated", "roles"])
def test_an_error_in_the_account_never_reaches_the_training(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradscope.capture.training.account import Account

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    weights = []
    for record in (False, True):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def train(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(5, 3, 2)).pow(2).mean().backward()
                optimizer.step()

        if record:
            monkeypatch.setattr(Account, broken, fail)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1) as recorder:
                    train()
                    recorder.log(loss=1.0)
        else:
            train()
        weights.append(copy.deepcopy(model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))
    lost = gradscope.open_run(tmp_path / "run").lost
    assert any("a bug" in reason for reason in lost)


def test_a_warning_points_at_the_line_of_the_script(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with warnings.catch_warnings(record=True) as caught, gradscope.record(model, tmp_path / "run", every=1):
        warnings.simplefilter("always")
        model(torch.randn(3, 2)).sum().backward()
    (one,) = [w for w in caught if issubclass(w.category, GradscopeWarning)]
    assert one.filename == __file__
    assert "nothing recurs" in str(one.message)


def test_a_run_of_a_model_in_which_nothing_recurs_says_so_wherever_it_is_asked(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with warnings.catch_warnings(), gradscope.record(model, tmp_path / "run", every=1):
        warnings.simplefilter("ignore")
        model(torch.randn(3, 2)).sum().backward()
    run = gradscope.open_run(tmp_path / "run")
    for ask in (run.decay, run.plot, run.require_records):
        with pytest.raises(EmptyRunError, match="model: nothing recurs in the graph of the loss"):
            ask()
    assert "nothing recurs in the graph of the loss" in str(run)


def test_thousands_of_attributions_after_an_update_are_not_all_kept(loop: Loop) -> None:
    loop.loss().backward()
    loop.optimizer.step()
    for _ in range(70):
        x = torch.randn(5, 3, 2, requires_grad=True)
        torch.autograd.grad(loop.model(x).sum(), x)
    assert len(loop.recorder._account.passes) == 64
    loop.loss().backward()
    loop.optimizer.step()
    loop.recorder.close()
    run = gradscope.open_run(loop.recorder.run_dir)
    assert run.records("rnn/l0").step.tolist() == [0, 1]
    assert len(run.apart.records("rnn/l0")) == 64
    assert any("only the first 64" in line.reason for line in run.coverage)
