"""Runs to write and read, as plain functions."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gradscope.schema import ClipEvent, Coverage, Record, RunMeta, SiteInfo, SiteRecord, StepRow
from gradscope.store import RunWriter, guard

META = RunMeta(
    created_at="2026-01-02T03:04:05+00:00",
    gradscope_version="0.1.0",
    torch_version="2.13.0",
    settings={"every": 10, "samples": 8},
    model={"class": "LSTM", "parameters": 1234, "text": "LSTM(3, 4)"},
)
SITES = {
    "lstm/l0": SiteInfo("lstm/l0", "lstm", "LSTM", "lstm", gates=("i", "f", "g", "o"), curve="cell"),
    "head/l0": SiteInfo("head/l0", "head", "GRU", "gru", gates=("r", "z", "n")),
}


def site_record(lengths=(5, 3), seed=0, quantities=("hidden", "cell"), **fields):
    """Random norms at one site, NaN beyond each length."""
    random = np.random.default_rng(seed)
    lengths = np.array(lengths, np.int32)
    lags = int(lengths.max(initial=0))
    inside = np.arange(lags) < lengths[:, None]
    arrays = {}
    for name in quantities:
        values = random.random((len(lengths), lags)) + 0.5
        arrays[name] = np.where(inside, values, np.nan)
    if "gates" in arrays:
        arrays["gates"] = np.repeat(arrays["gates"][:, None, :], 4, axis=1)
    if "weight" in arrays:
        arrays["weight"] = random.random(lags)
    rows = np.arange(len(lengths), dtype=np.int32)
    return SiteRecord(lengths, rows, 1.1754943508222875e-38, arrays, **fields)


def record(step, sites=None, micro=0, **fields):
    sites = {"lstm/l0": site_record(seed=step)} if sites is None else sites
    return Record(step, micro, 100.0 + step, sites, **{"parameters": {"lstm.weight": 0.5 + step}, **fields})


def write_run(path, records=3, close=True, **options):
    """A small run; returns its writer."""
    writer = RunWriter(path, META, **options)
    writer.set_sites(SITES)
    writer.set_coverage([Coverage("lstm/l0", "recorded", count=records)])
    for step in range(records):
        writer.add_record(record(step))
        writer.add_step(StepRow(step, 100.0 + step, {"loss": 1.0 / (step + 1)}))
        writer.add_clip(ClipEvent(step, "norm", 1.0, 2.0, 1.0, 0.5, float("nan"), 1.0, parameters=4))
    writer.flush()
    if close:
        writer.close()
    return writer


def die(writer):
    """Leave a run as a process that died: what was committed is in the journal, nobody writes."""
    writer._worker.end("leave")
    writer._worker.join()


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def wait_until_sealed(writer):
    """Wait until every row that was committed is in a segment and gone from the journal."""
    wait_until(lambda: not guard.load_journal(writer.path / "journal.sqlite").rows)


@pytest.fixture
def sealed(tmp_path):
    write_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def segment(sealed):
    return sealed / "attempt-1" / "rank-0" / "segment-00001.h5"
