"""A recording training that is killed loses no flushed record and leaves a run that opens."""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope


def _train(run_dir: Path, report: int) -> None:
    """Train for ever, recording every step; after each flush tell how many steps are durable."""
    torch.manual_seed(0)
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = gradscope.record(model, run_dir, optimizer=optimizer, every=1)
    for step in range(10**9):
        optimizer.zero_grad()
        model(torch.randn(6, 3, 2))[0].sum().backward()
        recorder.clip_grad_norm_(1.0)
        optimizer.step()
        recorder.log(loss=float(step))
        if step % 3 == 2:
            recorder.flush()
            os.write(report, struct.pack("q", step + 1))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_random_moments_loses_no_flushed_record(tmp_path: Path) -> None:
    chance = random.Random(0)
    _train_once_here(tmp_path / "warm")  # so that a forked child starts at once
    flushed_somewhere = 0
    for trial in range(50):
        run_dir = tmp_path / f"run{trial}"
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _train(run_dir, write)
            finally:
                os._exit(1)
        os.close(write)
        told = os.read(read, 8) if trial % 5 else b""  # one in five is killed while it starts
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while chunk := os.read(read, 65536):
            told += chunk
        os.close(read)
        flushed = struct.unpack("q", told[-8:])[0] if told else 0
        flushed_somewhere += flushed > 0
        if not run_dir.exists():
            assert flushed == 0
            continue
        if flushed == 0 and not any(run_dir.rglob("journal.sqlite")):
            continue  # killed before the run had begun
        run = gradscope.open_run(run_dir)
        assert run.n_records >= flushed
        if flushed:
            assert run.records("model/l0")["step"].tolist()[:flushed] == list(range(flushed))
            assert len(run.clips()) >= flushed
            assert torch.tensor(run.array("model/l0", "cell")).isfinite().all()
    assert flushed_somewhere >= 40


def _train_once_here(run_dir: Path) -> None:
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.record(model, run_dir, optimizer=optimizer, every=1):
        model(torch.randn(6, 3, 2))[0].sum().backward()
        optimizer.step()
