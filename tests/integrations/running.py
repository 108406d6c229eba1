"""Run a training as a script of its own: on two ranks, or under the launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import gradscope

ROOT = Path(__file__).parents[2]


def launched(script: str, folder: Path) -> gradscope.Run:
    """Run a script by ``gradscope record``; ``{root}`` and ``{folder}`` in it are filled in."""
    (folder / "train.py").write_text(script.format(root=str(ROOT), folder=str(folder)), encoding="utf-8")
    command = [sys.executable, "-m", "gradscope", "record", "--every", "1", "--out", "launched", "train.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return gradscope.open_run(folder / "launched")


def on_two_ranks(trainer: str, folder: Path) -> gradscope.Run:
    """Train on two processes that talk through gloo; their steps and norms must agree, their batches differ."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).with_name("on_one_of_two_ranks.py"))
    ranks = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-W", "ignore", script, trainer, str(folder / "run")]
        environment = os.environ | told | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [rank.communicate(timeout=300)[0].decode()[-2000:] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    run = gradscope.open_run(folder / "run")
    assert run.lost == {}
    steps = run.steps().pivot(index="step", columns="rank", values="grad_norm")
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-12, err_msg="after the all-reduce there is one gradient")
    (site,) = run.sites
    hidden = run.array(site, "hidden")
    half = len(hidden) // 2
    assert not np.array_equal(hidden[:half], hidden[half:]), "each rank has its own batch"
    return run
