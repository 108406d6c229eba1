"""A fault of gradscope's or of the disk is told once, counted, and stops nobody."""

from __future__ import annotations

import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.training import clipping, scaling
from gradscope.capture.training.clips import ClipBook
from gradscope.capture.training.faults import IN_A_ROW, OTHER, REASONS, Faults
from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.telling import GradscopeWarning
from gradscope.errors import InternalError, RunError
from gradscope.store.journal import Journal
from gradscope.store.worker import DROPPED


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0].sum()


def _begin(run: Path, optimizer: Any = None) -> tuple[Net, Any, Recorder]:
    model = Net()
    made = (optimizer or torch.optim.SGD)(model.parameters(), lr=0.1)
    return model, made, gradscope.record(model, run, optimizer=made, every=1)


def _step(model: Net, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 3, 2)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def test_the_step_number_moves_on_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    good = Recorder._end_recorded

    def fail(self: Recorder, skipped: bool) -> None:
        if self.step_number in (1, 3):
            raise KeyError("a bug")
        good(self, skipped)

    monkeypatch.setattr(Recorder, "_end_recorded", fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(5):
            _step(model, optimizer)
            recorder.log(loss=float(step))
        recorder.close()
    assert len(told) == 1
    assert "a bug" in str(told[0].message)
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == [0, 2, 4]
    assert run.steps()[["step", "loss"]].values.tolist() == [[step, step] for step in range(5)]
    assert sum(run.lost.values()) == 2


def test_an_optimizer_without_a_learning_rate_is_recorded(tmp_path: Path) -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, parameters: Any, lr: float) -> None:
            super().__init__(parameters, {"rate": lr})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter -= group["rate"] * parameter.grad

    model, optimizer, recorder = _begin(tmp_path / "run", Plain)
    for _ in range(3):
        _step(model, optimizer)
    recorder.close()
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == [0, 1, 2]
    assert run.lost == {}


def test_a_scalar_that_is_no_number_takes_no_other_with_it(tmp_path: Path) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    _step(model, optimizer)
    with pytest.warns(GradscopeWarning, match=r"log\(bad=\.\.\.\): a number, not dict"):
        recorder.log(good=1.5, bad={}, better=2.5)
    recorder.close()
    steps = gradscope.open_run(tmp_path / "run").steps()
    assert steps[["good", "better"]].values.tolist() == [[1.5, 2.5]]


def test_a_part_that_fails_every_time_is_switched_off_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: ClipBook, *_: Any) -> None:
        calls.append(1)
        raise RuntimeError(f"fault {len(calls)}")

    monkeypatch.setattr(ClipBook, "before", fail)
    model, optimizer, recorder = _begin(tmp_path / "run")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(5 * IN_A_ROW):
            _step(model, optimizer)
    recorder.close()
    assert len(calls) == IN_A_ROW
    assert [str(one.message).split(": ", 1)[1][:16] for one in told] == ["clipping failed ", "clipping failed "]
    assert "switched off" in str(told[1].message)
    run = gradscope.open_run(tmp_path / "run")
    assert run.n_records == 5 * IN_A_ROW
    assert run.lost == {"clipping: RuntimeError: fault 1": IN_A_ROW}


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(2, 4)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, states = torch.zeros(3, 4), []
        for x_t in x:
            h = torch.tanh(self.outer(x_t) + self.inner(h))
            states.append(h)
        return self.lstm(torch.stack(states))[0].sum()


@pytest.mark.parametrize(("place", "lost"), [("adjoints", "inner"), ("walk", "model")])
def test_a_loop_that_is_found_is_switched_off_as_a_layer_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, lost: str
) -> None:
    from gradscope.capture.calls import found, searching

    calls = []

    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise RuntimeError(f"fault {len(calls)}")

    monkeypatch.setattr(*((found.FoundSequence, place, fail) if place == "adjoints" else (searching, place, fail)))
    model = Loop()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1):
            for _ in range(2 * IN_A_ROW):
                _step(model, optimizer)  # type: ignore[arg-type]
    assert len(calls) == IN_A_ROW
    assert ["switched off" in str(one.message) for one in told] == [False, True]
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == list(range(2 * IN_A_ROW))
    assert run.lost == {f"recording {lost}: RuntimeError: fault 1": IN_A_ROW}


def test_without_an_account_of_the_steps_recording_ends_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradscope.capture.training.account import Account

    model, optimizer, recorder = _begin(tmp_path / "run")
    _step(model, optimizer)
    monkeypatch.setattr(Account, "settle", lambda self, late=False: 1 / 0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3 * IN_A_ROW):
            _step(model, optimizer)
    assert [("recording has ended" in str(one.message)) for one in told].count(True) == 1
    assert recorder._closed
    run = gradscope.open_run(tmp_path / "run")
    assert run.sealed
    assert run.n_records >= 1


def test_reasons_are_grouped_and_bounded() -> None:
    faults = Faults()
    assert len({faults.reason("log", ValueError(f"fault {k}")) for k in range(3000)}) == 1
    reasons = {faults.reason(f"part {k}", ValueError("x" * 10_000)) for k in range(3000)}
    assert len(reasons) == REASONS
    assert OTHER in reasons
    assert max(map(len, reasons)) < 300


def test_a_part_that_fails_now_and_then_is_not_switched_off() -> None:
    faults = Faults()
    for _ in range(10 * IN_A_ROW):
        assert not faults.take("log")
        faults.step_over()
        faults.step_over()


def test_a_warning_that_cannot_be_shown_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("I/O operation on closed file")

    model, optimizer, recorder = _begin(tmp_path / "run")
    monkeypatch.setattr(warnings, "showwarning", broken)
    monkeypatch.setattr("sys.stderr", None)
    recorder.log(bad={})
    _step(model, optimizer)
    recorder.close()
    assert gradscope.open_run(tmp_path / "run").n_records == 1


def test_a_full_disk_is_told_once_and_what_it_refused_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    model, optimizer, recorder = _begin(tmp_path / "run")
    good = Journal.append

    def full(self: Journal, rows: Any, info: Any) -> None:
        if rows:
            raise sqlite3.OperationalError("database or disk is full")
        good(self, rows, info)

    monkeypatch.setattr(Journal, "append", full)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(4):
            _step(model, optimizer)
            recorder.flush()
        recorder.close()
    assert len(told) == 1
    assert "Make room there" in str(told[0].message)
    run = gradscope.open_run(tmp_path / "run")
    assert run.n_records == 0
    assert set(run.lost) == {DROPPED}
    assert run.lost[DROPPED] >= 4


@pytest.mark.parametrize(
    "place", ["Watcher.start", "Account.__init__", "ClipBook.__init__", "clipping._seen", "scaling._wrap"]
)
def test_a_recording_that_cannot_begin_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from gradscope.capture.training import life

    owner, name = place.split(".")
    before = (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_, torch.amp.GradScaler.step)
    threads = threading.active_count()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(getattr(life, owner), name, fail)
        with pytest.raises(InternalError, match="a bug"):
            _begin(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert before == (torch.nn.utils.clip_grad_norm_, torch.nn.utils.clip_grad_value_, torch.amp.GradScaler.step)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not clipping._observers.held
    assert not scaling._observers.held
    model, optimizer, recorder = _begin(tmp_path / "run")
    _step(model, optimizer)
    recorder.close()
    assert gradscope.open_run(tmp_path / "run").n_records == 1


def test_a_place_that_cannot_be_written_is_told_by_gradscopes_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot begin the run"):
        gradscope.record(Net(), tmp_path / "file" / "run")
