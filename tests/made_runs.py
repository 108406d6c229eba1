"""Runs of any shape, written with the store's own writer: no training, so figures can be held to numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from gradscope.schema import ClipEvent, Coverage, Record, RunMeta, SiteInfo, SiteRecord, StepRow
from gradscope.store import Run, RunWriter, open_run
from gradscope.store.layout import group_of
from gradscope.store.part import ADDED_COLUMNS
from gradscope.store.segment import checksum_path

SMALLEST = float(np.finfo(np.float32).tiny)
GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn_tanh": ()}


def decaying(rate: float, lags: int = 40, sequences: int = 6, seed: int = 0) -> np.ndarray:
    """Norms (S, L): every sequence falls by ``rate`` decades per lag from a level of its own, with some noise."""
    rng = np.random.default_rng(seed)
    logs = rate * np.arange(lags) + rng.normal(0, 0.3, (sequences, 1)) + rng.normal(0, 0.01, (sequences, lags))
    with np.errstate(under="ignore", over="ignore"):
        return 10.0**logs


def site_info(site: str, cell: str) -> SiteInfo:
    curve = "cell" if cell == "lstm" else "hidden"
    return SiteInfo(site, site.rpartition("/")[0], "Layer", cell, hidden_size=8, gates=GATES[cell], curve=curve)


def site_record(arrays: Mapping[str, np.ndarray], sequences: int, lags: int, nonfinite: int = 0) -> SiteRecord:
    lengths = np.full(sequences, lags, dtype=np.int32)
    return SiteRecord(lengths, np.arange(sequences, dtype=np.int32), SMALLEST, dict(arrays), nonfinite)


def make_run(
    path: Path,
    rates: Sequence[float] = (-0.2, -0.15, -0.1),
    *,
    sites: Sequence[str] = ("lstm/l0",),
    cell: str = "lstm",
    lags: int = 40,
    sequences: int = 6,
    every: int = 10,
    threshold: float | None = 1.0,
    diverges_at: int | None = None,
    norms: Callable[[int], np.ndarray] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    lost: Mapping[str, int] | None = None,
    model: Mapping[str, object] | None = None,
    labels: Mapping[str, object] | None = None,
    scalars: Mapping[str, float] | None = None,
    inputs: bool = False,
    seed: int = 0,
) -> Run:
    """A run with one record per rate, ``every`` steps apart; ``norms(record)`` and ``extra`` replace or add arrays.

    ``scalars`` are logged at the last step; ``inputs`` records ∂L/∂x_t as well, a tenth of the other norms.
    """
    rng = np.random.default_rng(seed)
    steps = (len(rates) - 1) * every + 1
    raw, loss = 2.0 * 10 ** rng.normal(0, 0.4, steps), 2.3 * np.exp(-np.arange(steps) / 30)
    if diverges_at is not None:
        raw[diverges_at:], loss[diverges_at:] = np.inf, np.nan
    described = {"class": "Net", "parameters": 1234, **(model or {})}
    settings = {"every": every, **({"labels": dict(labels)} if labels else {})}
    meta = RunMeta("2026-01-01T00:00:00+00:00", "0.1.0", "2.9.0", settings, described)
    writer = RunWriter(path, meta)
    writer.set_sites({site: site_info(site, cell) for site in sites})
    for i, rate in enumerate(rates):
        data = {}
        for j, site in enumerate(sites):
            values = norms(i) if norms else decaying(rate, lags, sequences, seed + i + 10 * j)
            gone = diverges_at is not None and i * every >= diverges_at
            values = np.full_like(values, np.nan) if gone else values
            arrays = {"hidden": values, **({"cell": values} if cell == "lstm" else {}), **(extra or {})}
            arrays |= {"input": values / 10} if inputs else {}
            data[site] = site_record(arrays, *values.shape, nonfinite=len(values) if gone else 0)
        writer.add_record(Record(i * every, 0, float(i), data, {"weight_hh": float(raw[i * every])}))
    for step in range(steps):
        logged = {"loss": float(loss[step]), "grad_norm": float(raw[step])}
        writer.add_step(StepRow(step, float(step), logged | dict(scalars or {}) if step == steps - 1 else logged))
        if threshold is not None:
            writer.add_clip(_clip(step, threshold, float(raw[step])))
    writer.set_coverage([Coverage(s, "recorded", "", len(rates)) for s in sites] + [Coverage("head", "missing", "why")])
    for reason, count in (lost or {}).items():
        writer.add_lost(reason, count)
    writer.close()
    return open_run(path)


def as_format_1_0(run: Run) -> Run:
    """The run as the first format held it, with neither what became of a pass nor where a clipping call stood."""
    for path in sorted(run.path.rglob("*.h5")):
        with h5py.File(path, "r+") as file:
            file.attrs.create("schema_version", "1.0", dtype=h5py.string_dtype("utf-8", 3))
            groups = [file["clips"], file["parameters"], *(file[group_of(site)] for site in run.sites)]
            for group in groups:
                for column in ADDED_COLUMNS:
                    if column in group:
                        del group[column]
        checksum_path(path).write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return open_run(run.path)


def entering_last(lags: int = 40, sequences: int = 6) -> np.ndarray:
    """What enters from above under a loss at the last step alone: the array of ``direct``."""
    direct = np.zeros((sequences, lags))
    direct[:, 0] = 1.0
    return direct


def _clip(step: int, threshold: float, norm: float) -> ClipEvent:
    finite = np.isfinite(norm)
    scale = min(1.0, threshold / (norm + 1e-6)) if finite else float("nan")
    after = norm * scale if finite else norm
    return ClipEvent(step, "norm", threshold, norm, after, scale, 1.0, float(norm > threshold))
