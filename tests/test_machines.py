"""The lines of docs/machines.md, typed: the other machines are processes of this one."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import gradscope
from tests import pages

ROOT = Path(__file__).parents[1]
#: What the programs of the page are in an environment that has no commands of its packages.
MODULES = {"torchrun": "torch.distributed.run", "dask": "dask", "gradscope": "gradscope"}
SHOWN = "10.0.0.5:8786"
SMALL = "--task adding --length 8 --hidden 4 --steps 6 --batch 8 --seed 0 --clip none,1"

TRAIN = """
import torch
from torch import distributed, nn

import gradscope

distributed.init_process_group("gloo")
torch.manual_seed(distributed.get_rank())
model = nn.parallel.DistributedDataParallel(nn.LSTM(3, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with gradscope.record(model, "runs/ddp", optimizer=optimizer, every=1, samples=2):
    for _ in range(2):
        model(torch.randn(9, 2, 3))[0][-1].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
distributed.destroy_process_group()
"""


def line(begin: str) -> list[str]:
    """The words of the line of the page that begins so."""
    text = pages.text("machines.md").replace("\\\n", "")
    (found,) = re.findall(rf"^\$ ({begin}.*?)(?: +#.*)?$", text, re.MULTILINE)
    return shlex.split(found)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", MODULES[words[0]], *words[1:]]


@contextmanager
def running(words: list[str], folder: Path) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(words), cwd=folder, env=ENVIRONMENT, **quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def done(words: list[str], folder: Path) -> str:
    result = subprocess.run(command(words), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_a_training_under_torchrun_is_one_run_whose_report_is_of_all_ranks_or_of_one(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    port = free_port()
    torchrun = line("torchrun")
    done([torchrun[0], "--master-port", port, *torchrun[1:]], tmp_path)
    with gradscope.open_run(tmp_path / "runs" / "ddp") as run:
        assert run.records("model/l0")["rank"].tolist() == [0, 0, 1, 1]
    assert "lstm" in done(["gradscope", "inspect", "runs/ddp"], tmp_path)
    report = line("gradscope report")
    assert "report: report/index.html" in done(report, tmp_path)
    assert "report: one/index.html" in done([*report[:-1], "one", "--rank", "1"], tmp_path)


@pytest.mark.slow
def test_a_sweep_runs_on_the_scheduler_and_workers_of_the_lines_above_it(tmp_path):
    pytest.importorskip("distributed")
    address = f"127.0.0.1:{free_port()}"
    scheduler = [*line("dask scheduler"), "--host", "127.0.0.1", "--port", address.split(":")[1], "--no-dashboard"]
    there = {f"tcp://{SHOWN}": f"tcp://{address}", "8": "1"}
    worker = [there.get(word, word) for word in line("dask worker")]
    sweep = [there.get(word, word) for word in line("gradscope sweep.*--dask")] + shlex.split(SMALL)
    with running(scheduler, tmp_path), running([*worker, "--no-dashboard"], tmp_path):
        said = done(sweep, tmp_path)
    assert "clip-digits/report/index.html" in said
    assert len(list((tmp_path / "clip-digits" / "runs").iterdir())) == 2
