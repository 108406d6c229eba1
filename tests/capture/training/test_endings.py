"""However a training ends, and whoever flushes or closes, what was recorded is there."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope
from gradscope.store import validate
from tests.torture import signals


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_signal_loses_no_record_and_does_what_it_would_have_done(tmp_path: Path) -> None:
    outcome = signals.run(tmp_path, 6)
    assert outcome.tries == 6
    assert outcome.fell_short == []


def _wait_until(true: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0].sum()


def _begin(run: Path) -> tuple[Net, torch.optim.Optimizer, gradscope.Recorder]:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, gradscope.record(model, run, optimizer=optimizer, every=1)


def _step(model: Net, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 3, 2)).backward()
    optimizer.step()


def test_the_handlers_of_signals_are_as_they_were_after_close(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    first, second = _begin(tmp_path / "a")[2], _begin(tmp_path / "b")[2]
    assert signal.getsignal(signal.SIGTERM) is not before[0]
    first.close()
    second.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_handler_that_came_later_is_left_in_place_and_may_call_the_one_before(tmp_path: Path) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    ours, seen = signal.getsignal(signal.SIGTERM), []

    def mine(number: int, frame: object) -> None:
        ours(number, frame)  # type: ignore[operator, misc, arg-type]
        seen.append(gradscope.open_run(tmp_path / "run").n_records)

    signal.signal(signal.SIGTERM, mine)
    try:
        for _ in range(3):
            _step(model, optimizer)
        signal.raise_signal(signal.SIGTERM)
        recorder.close()
        assert signal.getsignal(signal.SIGTERM) is mine
        assert seen == [3]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_flush_and_close_by_a_handler_inside_the_recorder_disturb_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradscope.capture.training.recorder import Recorder

    model, optimizer, recorder = _begin(tmp_path / "run")
    write = Recorder._write_records
    calls = {3: recorder.flush, 7: recorder.close}

    def interrupted(self: Recorder, *arguments: object) -> object:
        calls.get(self.step_number, lambda: None)()
        found = write(self, *arguments)  # type: ignore[arg-type]
        calls.get(self.step_number, lambda: None)()
        return found

    monkeypatch.setattr(Recorder, "_write_records", interrupted)
    for _ in range(9):
        _step(model, optimizer)
    assert recorder._closed
    run = gradscope.open_run(tmp_path / "run")
    assert run.sealed
    assert run.records("lstm/l0")["step"].tolist() == list(range(8))
    assert run.lost == {}
    assert validate(tmp_path / "run") == []


def test_a_step_that_is_flushed_before_it_is_logged_has_one_row(tmp_path: Path) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    for step in range(4):
        _step(model, optimizer)
        recorder.flush()
        recorder.log(loss=float(step))
    recorder.close()
    steps = gradscope.open_run(tmp_path / "run").steps()
    assert steps["step"].tolist() == list(range(4))
    assert steps["loss"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert steps["grad_norm"].notna().all()


def test_another_thread_may_flush_all_the_time(tmp_path: Path) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    stop = threading.Event()

    def flush() -> None:
        while not stop.is_set():
            recorder.flush()

    thread = threading.Thread(target=flush)
    thread.start()
    for step in range(60):
        _step(model, optimizer)
        recorder.log(loss=float(step))
    stop.set()
    thread.join()
    closing = threading.Thread(target=recorder.close)
    closing.start()
    closing.join()
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == list(range(60))
    assert run.steps()["loss"].dropna().tolist() == [float(step) for step in range(60)]
    assert run.lost == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_is_in_the_recorder_does_not_hang(tmp_path: Path) -> None:
    model, optimizer, recorder = _begin(tmp_path / "run")
    _step(model, optimizer)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        leave.wait(60)

    thread = threading.Thread(target=recorder.within, args=("staying", stay))
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _step(model, optimizer)
            recorder.log(loss=1.0)
            recorder.flush()
            recorder.close()
            code = 0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 2
        finally:
            os._exit(code)
    leave.set()
    thread.join()
    ended: list[tuple[int, int]] = []

    def has_ended() -> bool:
        ended.append(os.waitpid(child, os.WNOHANG))
        return ended[-1][0] == child

    try:
        _wait_until(has_ended, 30)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    assert ended[-1][1] == 0
    _step(model, optimizer)
    recorder.close()
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("lstm/l0")["step"].tolist() == [0, 1]
    assert run.steps().get("loss") is None
