"""How long the store holds a training while it commits and seals what was recorded.

Records of the default quantities (8 sequences, 100 timesteps) and with whole tensors are added after each step of a
small training until they have a size together. Commits and sealing go on meanwhile.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gradscope.schema import Record, RunMeta, SiteRecord
from gradscope.store import RunWriter, open_run
from scripts.benchmark.tables import line

COLUMNS = (
    *("records", "a call, median (ms)", "longest", "target", "a step alone: median, longest wait"),
    *("beside the store", "target", "segments", "dropped"),
)
# The longest that the store may hold a step, ms.
TARGET = "20"
QUANTITIES = ("hidden", "cell", "input", "direct")


def record(tensors: bool) -> Record:
    """One record as the recorder hands it over."""
    lengths, random = np.full(8, 100, np.int32), np.random.default_rng(0)
    arrays = {name: random.random((8, 100)) for name in QUANTITIES}
    if tensors:
        arrays |= {f"{name}_tensor": random.random((8, 100, 300), np.float32) for name in QUANTITIES}
    return Record(0, 0, 0.0, {"lstm/l0": SiteRecord(lengths, np.arange(8, dtype=np.int32), 1e-38, arrays)})


def training() -> Callable[[], None]:
    """A step of a small training."""
    model, x = nn.LSTM(32, 64), torch.randn(50, 16, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(x)[0].sum().backward()
        optimizer.step()

    return step


def held(work: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds of a call, and those of them in which it waited for something else than a processor."""
    queued, busy, began = _queued(), time.thread_time(), time.perf_counter()
    work()
    # The kernel's account of the queue may be ahead of the clock by a tick.
    wall = max(0.0, time.perf_counter() - began - (_queued() - queued))
    return 1e3 * wall, 1e3 * max(0.0, wall - (time.thread_time() - busy))


def _queued() -> float:
    """Seconds that this thread has waited for a processor: other programs' doing."""
    path = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


def measure_holding(megabytes: float, tensors: bool) -> dict[str, Any]:
    """Return, in ms, calls and steps as :func:`held` has them, and what became of the records."""
    step, one = training(), record(tensors)
    alone = [held(step) for _ in range(400)][100:]
    size = sum(array.nbytes for array in one.sites["lstm/l0"].arrays.values())
    steps, calls = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(f"{folder}/run", RunMeta("", "0", "0", {}, {}))
        for _ in range(max(1, int(megabytes * 1e6 / size))):
            steps.append(held(step))
            calls.append(held(lambda: writer.add_record(one)))
        writer.close()
        run = open_run(f"{folder}/run")
        parts, lost = len(run.parts), sum(run.lost.values())
    found = {"calls": calls, "alone": alone, "steps": steps}
    return found | {"record_mb": size / 1e6, "segments": parts, "dropped": lost}


def holding_row(found: dict[str, Any]) -> str:
    """Write one row."""
    calls = [call for call, _ in found["calls"]]
    alone, beside = (
        f"{statistics.median(wall for wall, _ in found[name]):.1f}, {max(wait for _, wait in found[name]):.1f}"
        for name in ("alone", "steps")
    )
    cells = [f"{len(calls)} of {found['record_mb']:.2f} MB", f"{statistics.median(calls):.2f}", f"{max(calls):.1f}"]
    return line([*cells, TARGET, alone, beside, TARGET, str(found["segments"]), str(found["dropped"])])
