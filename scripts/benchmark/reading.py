"""What it takes to read runs of a size.

Runs are written with the store's own writer, not by training. Every command runs in a process of its own, which says at
its end what CPU time and memory it took.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradscope.schema import ClipEvent, Record, RunMeta, SiteInfo, SiteRecord, StepRow
from gradscope.store import RunWriter
from scripts.benchmark.tables import line

SITE = "lstm/l0"
QUANTITIES = ("hidden", "cell", "input", "direct")
SEQUENCES = 8
_SMALLEST = float(np.finfo(np.float32).tiny)

#: Runs a command of gradscope, then tells CPU seconds and the most memory, in MiB, on the last line of stderr.
_CODE = """
import json, resource, sys
from gradscope.cli import main
code = 0
try:
    main(sys.argv[1:], standalone_mode=False)
except SystemExit as leaving:
    code = leaving.code or 0
status = open("/proc/self/status").read()
peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(each.ru_utime + each.ru_stime for each in used)
print("\\n" + json.dumps({"cpu": cpu, "mib": peak}), file=sys.stderr)
sys.exit(code)
"""


@dataclass(frozen=True)
class Costs:
    """What a command took: CPU seconds, and the most memory in MiB."""

    cpu: float
    mib: float


def costs_of(*arguments: str | Path) -> Costs:
    """Run a command of gradscope in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _CODE, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"gradscope {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Costs(**json.loads(done.stderr.splitlines()[-1]))


def written(path: Path, records: int, lags: int, units: int = 0, every: int = 10, seed: int = 0) -> Path:
    """Write a run of an LSTM, unless it is there: the default quantities, with whole tensors of ``units`` if asked."""
    if path.exists():
        return path
    random = np.random.default_rng(seed)
    writer = RunWriter(path, RunMeta("2026-01-01T00:00:00+00:00", "0", "0", {"every": every}, {"class": "Net"}))
    writer.set_sites({SITE: SiteInfo(SITE, "lstm", "LSTM", "lstm", gates=("i", "f", "g", "o"), curve="cell")})
    rate, lengths = -random.uniform(0.02, 0.3), np.full(SEQUENCES, lags, np.int32)
    rows = np.arange(SEQUENCES, dtype=np.int32)
    for i in range(records):
        curves = 10.0 ** (rate * np.arange(lags) + random.normal(0, 0.1, (SEQUENCES, lags)))
        arrays = {name: curves * (1 + k) for k, name in enumerate(QUANTITIES)}
        arrays["direct"] = np.where(np.arange(lags) == 0, curves, 0.0)
        if units:
            arrays |= {f"{q}_tensor": random.random((SEQUENCES, lags, units), np.float32) for q in QUANTITIES[:2]}
        data = SiteRecord(lengths, rows, _SMALLEST, arrays)
        writer.add_record(Record(i * every, 0, float(i), {SITE: data}, {"lstm.weight_hh_l0": 1.0}))
        for step in range(i * every, (i + 1) * every if i < records - 1 else i * every + 1):
            norm = float(2 * 10 ** random.normal(0, 0.4))
            writer.add_step(StepRow(step, float(step), {"loss": 2.3 * float(np.exp(-step / 100)), "grad_norm": norm}))
            scale = min(1.0, 1 / norm)
            writer.add_clip(ClipEvent(step, "norm", 1.0, norm, norm * scale, scale, 1.0, float(norm > 1)))
        if i % 50 == 0:
            writer.flush()  # what waits for the disk is bounded, and this is faster than any training
    writer.close()
    return path


def many(folder: Path, scale: float) -> list[Path]:
    """Write 1,000 runs of 20 records."""
    return [written(folder / f"run-{i:04}", 20, 50, seed=i) for i in range(max(2, round(1000 * scale)))]


def long(folder: Path, scale: float) -> list[Path]:
    """Write one run of 20,000 records."""
    return [written(folder / "long", max(2, round(20_000 * scale)), 25, every=2)]


def heavy(folder: Path, scale: float) -> list[Path]:
    """Write one run with 2 GB of tensors."""
    one = SEQUENCES * 100 * 300 * 4 * 2
    return [written(folder / f"heavy-{scale:g}", max(2, round(2e9 * scale / one)), 100, units=300)]


def half(folder: Path, scale: float) -> list[Path]:
    """Write one run with 1 GB of tensors: what is linear takes half as long for it."""
    return heavy(folder, scale / 2)


@dataclass(frozen=True)
class Row:
    """One line of the table: what is read, by which command, and its targets."""

    name: str
    made: str
    command: Callable[[Sequence[Path], Path], Sequence[str | Path]]
    mib: float
    cpu: float | None = None
    size: Callable[[Path], str] = lambda out: "–"


def _page(out: Path) -> str:
    return f"page {(out / 'index.html').stat().st_size / 1e6:.1f} MB (5)"


def _file(out: Path) -> str:
    return f"file {out.stat().st_size / 1e9:.2f} GB"


def _tables(out: Path) -> str:
    return f"CSV {sum(path.stat().st_size for path in out.rglob('*.csv')) / 1e9:.2f} GB"


#: What is written, by name, with what it is called.
MADE: dict[str, tuple[str, Callable[[Path, float], list[Path]]]] = {
    "many": ("1,000 runs of 20 records", many),
    "long": ("a run of 20,000 records", long),
    "heavy": ("a run with 2 GB of tensors", heavy),
    "half": ("a run with 1 GB of tensors", half),
}
ROWS = (
    Row("report", "many", lambda runs, out: ("report", *runs, "-o", out), 1024, 120, _page),
    Row("report", "long", lambda runs, out: ("report", *runs, "-o", out), 1024, None, _page),
    Row("export", "long", lambda runs, out: ("export", *runs, "-o", out), 300, None, _tables),
    Row("pack", "heavy", lambda runs, out: ("pack", *runs, "-o", out), 1024, None, _file),
    Row("pack", "half", lambda runs, out: ("pack", *runs, "-o", out), 1024, None, _file),
    Row("validate", "heavy", lambda runs, out: ("validate", *runs), 1024),
    Row("validate", "half", lambda runs, out: ("validate", *runs), 1024),
    Row("inspect", "heavy", lambda runs, out: ("inspect", *runs), 1024),
    Row("inspect", "half", lambda runs, out: ("inspect", *runs), 1024),
    Row("export", "heavy", lambda runs, out: ("export", *runs, "-o", out), 1024, None, _tables),
)
COLUMNS = ("command", "of", "CPU time", "target", "memory", "target", "result")


def measure_reading(
    rows: Sequence[Row], scale: float = 1.0, kept: Path | None = None
) -> Iterator[tuple[Row, Costs, str]]:
    """Write what the rows read, in ``scale`` times its size, and measure each: costs, and what came of it.

    Runs are written to ``kept``, or taken from there where they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, row in enumerate(rows):
            runs, out = MADE[row.made][1](kept or Path(folder), scale), Path(folder) / f"out-{i}"
            costs = costs_of(*row.command(runs, out))
            yield row, costs, row.size(out)


def reading_row(row: Row, costs: Costs, result: str) -> str:
    """Write a row of the table."""
    cells = [f"`gradscope {row.name}`", MADE[row.made][0], f"{costs.cpu:.1f} s", f"{row.cpu:.0f} s" if row.cpu else "–"]
    return line([*cells, f"{costs.mib:.0f} MiB", f"{row.mib:.0f} MiB", result])
