"""Small runs for the commands that read one."""

from __future__ import annotations

import numpy as np

from gradscope.schema import ClipEvent, Coverage, Record, RunMeta, SiteInfo, SiteRecord, StepRow
from gradscope.store import RunWriter

META = RunMeta("2026-01-02T03:04:05+00:00", "0.1.0", "2.13.0", {"every": 10}, {"class": "Net", "parameters": 1234})


def write_run(path, sites=("lstm/l0",), steps=(0, 10), close=True):
    """Two records of two sequences, lengths 3 and 2, at each site; norms 1 at every lag, 0.5 in the second record."""
    writer = RunWriter(path, META)
    writer.set_sites({site: SiteInfo(site, "lstm", "LSTM", "lstm", curve="cell") for site in sites})
    writer.set_coverage([Coverage("lstm/l1", "missing", "dropout between layers", 2)])
    for step in steps:
        values = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, np.nan]]) / (1 + step / 10)
        lengths, rows = np.array([3, 2], np.int32), np.array([0, 1], np.int32)
        data = SiteRecord(lengths, rows, 1e-38, {"cell": values, "hidden": values / 4})
        writer.add_record(Record(step, 0, 5.0, dict.fromkeys(sites, data), {"lstm.weight": 2.0}))
        writer.add_step(StepRow(step, 5.0, {"loss": 0.25}))
        writer.add_clip(ClipEvent(step, "norm", 1.0, 2.0, 1.0, 0.5, float("nan"), 1.0))
    writer.flush()
    if close:
        writer.close()
    return writer
