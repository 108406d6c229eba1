"""A run in memory with the reading interface of :class:`gradscope.store.Run`, for figures and reports of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gradscope.schema import DATASETS, QUANTITIES, ClipEvent, Coverage, Record, RunMeta, SiteInfo, SiteRecord, StepRow

SMALLEST = float(np.finfo(np.float32).tiny)


class FakeRun:
    def __init__(self, name, sites, records, steps=(), clips=(), coverage=(), lost=None):
        self.name, self.path = name, Path("runs") / name
        self._sites, self._records, self._steps, self._clips = dict(sites), list(records), list(steps), list(clips)
        self.coverage, self.lost, self.sealed = list(coverage), dict(lost or {}), True
        self.meta = RunMeta("2026-01-01T00:00:00Z", "0.1.0", "2.9.0", {"every": 10, "samples": 8}, {"class": "Net"})
        self.metas, self.settings, self.model = [self.meta], self.meta.settings, self.meta.model
        self.n_records = len(self._records)

    @property
    def sites(self):
        return tuple(self._sites)

    def site(self, site):
        return self._sites[site]

    def _at(self, site):
        return [(r, r.sites[site]) for r in self._records if site in r.sites]

    def quantities(self, site):
        there = {name for _, data in self._at(site) for name in data.arrays}
        return tuple(q.name for q in QUANTITIES.values() if there & set(q.datasets))

    def records(self, site):
        columns = ["step", "micro", "attempt", "rank", "loss_scale", "skipped", "nonfinite", "carried", "smallest_normal"]
        rows = [
            (r.step, r.micro, 1, 0, r.loss_scale, r.skipped, s.nonfinite, s.carried, s.smallest_normal)
            for r, s in self._at(site)
        ]
        return pd.DataFrame(rows, columns=columns)

    def array(self, site, dataset):
        arrays = [data.arrays[dataset] for _, data in self._at(site)]
        shape = tuple(max(a.shape[i] for a in arrays) for i in range(arrays[0].ndim))
        out = np.full((len(arrays), *shape), np.nan)
        for i, a in enumerate(arrays):
            out[(i, *map(slice, a.shape))] = a
        return out

    def lengths(self, site):
        rows = [data.lengths for _, data in self._at(site)]
        out = np.zeros((len(rows), max(len(r) for r in rows)), dtype=np.int64)
        for i, r in enumerate(rows):
            out[i, : len(r)] = r
        return out

    def steps(self):
        rows = [{"step": s.step, "attempt": 1, "rank": 0, "time": s.time, **s.scalars} for s in self._steps]
        return pd.DataFrame(rows, columns=None if rows else ["step", "attempt", "rank", "time"])

    def clips(self):
        names = list(ClipEvent.__dataclass_fields__)
        rows = [{"attempt": 1, "rank": 0, **{n: getattr(c, n) for n in names}} for c in self._clips]
        return pd.DataFrame(rows, columns=["attempt", "rank", *names])

    def parameters(self):
        return pd.DataFrame(
            [{"step": r.step, "micro": r.micro, "attempt": 1, "rank": 0, **r.parameters} for r in self._records]
        )

    def close(self):
        pass


def site_info(site="lstm/l0", cell="lstm", **more):
    gates = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}.get(cell, ())
    curve = "cell" if cell == "lstm" else "hidden"
    return SiteInfo(site, site.rsplit("/", 1)[0], "LSTM", cell, gates=gates, curve=curve, hidden_size=16, **more)


def decaying(rate, lags=60, sequences=8, seed=0, level=1.0, spread=0.2):
    """Norms (S, L) that fall by ``rate`` decades per lag, each sequence at its own level."""
    rng = np.random.default_rng(seed)
    wobble = np.cumsum(rng.normal(0, 0.02, (sequences, lags)), axis=1)
    logs = np.log10(level) + rate * np.arange(lags) + rng.normal(0, spread, (sequences, 1)) + wobble
    with np.errstate(under="ignore", over="ignore"):
        return 10.0**logs


def site_record(arrays, lengths=None, nonfinite=0):
    first = next(iter(arrays.values()))
    s, n = (first.shape[0], first.shape[-1]) if first.ndim > 1 else (4, first.shape[0])
    lengths = np.full(s, n) if lengths is None else np.asarray(lengths)
    return SiteRecord(lengths.astype(np.int32), np.arange(s, dtype=np.int32), SMALLEST, dict(arrays), nonfinite)


def make_run(name="lstm", rates=(-0.19, -0.15, -0.1), *, sites=("lstm/l0",), cell="lstm", lags=60, every=10,
             sequences=8, threshold=1.0, diverges_at=None, lost=None, extra=None, seed=0):  # fmt: skip
    """A training in which the decay rate moves through ``rates``, one record each ``every`` steps."""
    rng = np.random.default_rng(seed)
    quantity = "cell" if cell == "lstm" else "hidden"
    infos = {s: site_info(s, cell) for s in sites}
    n_steps = (len(rates) - 1) * every + 1
    raw = 2.0 * 10 ** rng.normal(0, 0.4, n_steps)
    loss = 2.3 * np.exp(-np.arange(n_steps) / max(n_steps, 30)) + rng.normal(0, 0.02, n_steps)
    if diverges_at is not None:
        raw[diverges_at:], loss[diverges_at:] = np.inf, np.nan
    records = []
    for i, rate in enumerate(rates):
        bad = diverges_at is not None and i * every >= diverges_at
        data = {}
        for j, s in enumerate(sites):
            norms = decaying(rate * (1 + 0.1 * j), lags, sequences, seed + i + 10 * j)
            arrays = {quantity: norms, "hidden": norms * 0.7}
            arrays = {k: np.full_like(v, np.nan) if bad else v for k, v in arrays.items()}
            arrays |= {k: f(i) for k, f in (extra or {}).items()}
            data[s] = site_record(arrays, nonfinite=sequences if bad else 0)
        records.append(Record(i * every, 0, float(i), data, {"weight_hh": float(raw[i * every])}))
    steps = [StepRow(k, float(k), {"loss": float(v), "grad_norm": float(g)}) for k, (v, g) in enumerate(zip(loss, raw))]
    clips = []
    if threshold is not None:
        for k, g in enumerate(raw):
            scale = min(1.0, threshold / (g + 1e-6)) if np.isfinite(g) else float("nan")
            clips.append(ClipEvent(k, "norm", threshold, g, g * scale if np.isfinite(g) else g, scale, 1.0, float(g > threshold)))
    coverage = [Coverage(s, "recorded", "", len(rates)) for s in sites]
    coverage.append(Coverage("head.gru/l0", "missing", "no gradient arrived", len(rates)))
    return FakeRun(name, infos, records, steps, clips, coverage, lost)


assert set(DATASETS) >= {"hidden", "cell"}
