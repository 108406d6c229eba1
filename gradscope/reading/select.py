"""Which sites, quantities and records of a run are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.diagnostics import DecayCurve, DecayFit, Entry, decay_curve, find_entry, fit_decay
from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError
from gradscope.reading.counted import Reading, read, read_all
from gradscope.reading.records import part_of
from gradscope.schema import DATASETS, QUANTITIES
from gradscope.store import Run

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

#: Quantities with one norm per sequence and lag.
PER_LAG = tuple(name for name in QUANTITIES if DATASETS.get(name) == ("sequence", "lag"))


def run_names(runs: Sequence[Any]) -> list[str]:
    """One distinct name per run: its own, with as much of its path as tells equal names apart."""
    names = [str(run.name) for run in runs]
    if len(set(names)) < len(names):
        names = ["/".join([*getattr(run.path, "parts", ())[-2:-1], str(run.name)]) for run in runs]
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


def per_lag(quantity: str | None) -> None:
    """Refuse a quantity that has no norm per lag.

    Raises
    ------
    UnknownNameError
    """
    if quantity is not None and quantity not in PER_LAG:
        raise UnknownNameError("quantity with one norm per lag", quantity, PER_LAG)


def sites_with(
    runs: Sequence[Any], quantity: str | None, site: str | Sequence[str] | None = None
) -> list[tuple[str, Reading, str, str]]:
    """``(run name, run, site, quantity)`` for every site to show, in order.

    Without a quantity each site shows the one that describes its memory (``SiteInfo.curve``), or the first recorded.

    Raises
    ------
    UnknownNameError
        A site that no run has.
    EmptyRunError
        Runs without a single site, or without a record that counts.
    NotRecordedError
        Nothing left to show; says what to record.
    """
    wanted = [site] if isinstance(site, str) else list(site) if site is not None else None
    readings = read_all(runs)
    known = sorted({name for run in runs for name in run.sites})
    for name in wanted or ():
        if name not in known:
            raise UnknownNameError("site", name, known)
    if not known:
        paths = ", ".join(str(run.path) for run in runs)
        raise EmptyRunError(f"{paths}: no record yet, so there is nothing to draw. Train at least one recorded step.")
    found = []
    for name, run in zip(run_names(runs), readings, strict=True):
        for at in run.sites:
            if wanted is None or at in wanted:
                there = recorded(run, at)
                shown = quantity or curve_quantity(run, at)
                if shown is not None and shown in there:
                    found.append((name, run, at, shown))
    if not found:
        raise not_recorded(runs, quantity or "hidden", wanted)
    counted = [one for one in found if one[1].counted(one[2])]
    if not counted:
        found[0][1].require(found[0][2])
    return counted


def recorded(run: Any, site: str) -> tuple[str, ...]:
    """Quantities recorded at a site; none where the site is known but no gradient ever arrived."""
    try:
        return tuple(run.quantities(site))
    except NotRecordedError:
        return ()


def curve_quantity(run: Any, site: str) -> str | None:
    """The quantity whose decay describes the site, or else the first recorded with a norm per lag."""
    with_lag = [name for name in recorded(run, site) if name in PER_LAG]
    own = run.site(site).curve
    # The direct gradient is no adjoint: its curve is never shown unless asked for.
    adjoints = [name for name in with_lag if name != "direct"]
    return own if own in with_lag else next(iter(adjoints), None)


def not_recorded(runs: Sequence[Any], quantity: str, sites: Sequence[str] | None = None) -> NotRecordedError:
    """The error for a quantity that no shown site has: what there is, and what to record to get it."""
    there = sorted({name for run in runs for site in run.sites for name in recorded(run, site)})
    where = f" at {', '.join(sites)}" if sites else ""
    paths = ", ".join(str(run.path) for run in runs)
    return NotRecordedError(
        f"{paths}: {quantity!r} was not recorded{where} (recorded: {', '.join(there) or 'nothing'}). "
        f"Record it with gradscope.record(..., quantities=[..., {quantity!r}])."
    )


@dataclass(frozen=True, eq=False)
class Norms:
    """Every per-sequence norm of one quantity at one site that counts. Sentences and figures both ask it.

    Attributes
    ----------
    records : DataFrame
        One row per record, index = position in ``values``.
    values : ndarray, shape (record, sequence, lag)
    lengths : ndarray of int, shape (record, sequence)
    direct, total : ndarray, shape (record, sequence, lag), or None
        Of the hidden state: what arrives from above, and all of it.
    above : {"loss", "layer"}
    """

    records: pd.DataFrame
    values: Floats
    lengths: NDArray[np.int64]
    direct: Floats | None = None
    total: Floats | None = None
    above: str = "loss"

    @property
    def steps(self) -> list[int]:
        """Recorded steps, increasing."""
        return sorted({int(step) for step in self.records["step"]})

    def at(self, when: int | str | None = None) -> Positions:
        """Positions of the records of a step or of a part of the run, ``late`` when not given.

        Parts are counted over records with a usable norm: of a run that diverged they are what it had before.

        Raises
        ------
        UnknownNameError, SettingError
            No such part; the step was not recorded.
        """
        steps = self.records["step"].to_numpy(dtype=np.int64)
        if when is not None and (not isinstance(when, str) or when.lstrip("-").isdigit()):
            return np.flatnonzero(steps == recorded_step(self.steps, int(when)))
        block = self.values.reshape(len(steps), -1)
        usable = np.flatnonzero((np.isfinite(block) & (block > 0)).any(axis=1))
        known = usable if usable.size else np.arange(len(steps))
        return np.asarray(known[part_of(steps[known], when or "late")])

    def span(self, at: Positions) -> tuple[int, int]:
        """First and last step of some records."""
        steps = self.records["step"].to_numpy(dtype=np.int64)[at]
        return int(steps.min()), int(steps.max())

    def fit(self, at: Positions, **options: Any) -> DecayFit:
        """:func:`gradscope.fit_decay` of some records, pooled: all their sequences, with the step of each."""
        lags, values = self._laid(self.values, at)
        starts, lengths = self._ends(at)
        steps = self.records["step"].to_numpy(dtype=np.int64)[at]
        return fit_decay(
            lags,
            values,
            lengths=lengths,
            starts=starts,
            steps=np.repeat(steps, self.values.shape[1]),
            entry=self.entry(at),
            smallest_normal=self._smallest(at),
            **options,
        )

    def entry(self, at: Positions) -> Entry | None:
        """Where the gradient enters in some records; None where that was not recorded."""
        if self.direct is None or self.total is None:
            return None
        lags, direct = self._laid(self.direct, at)
        return find_entry(lags, direct, self._laid(self.total, at)[1], self.above)

    def curve(self, at: Positions) -> DecayCurve:
        """The decay curve of some records, up to their longest sequence."""
        lags, values = self._laid(self.values, at)
        starts, lengths = self._ends(at)
        there = lengths > starts
        reached = lags < lengths[there].max(initial=0)
        return decay_curve(
            lags[reached],
            values[there][:, reached],
            lengths=lengths[there],
            starts=starts[there],
            smallest_normal=self._smallest(at),
        )

    @property
    def after(self) -> NDArray[np.int64]:
        """Steps of the sequence after this site's last one, per record: its lags begin there."""
        if "after" not in self.records:
            return np.zeros(len(self.records), dtype=np.int64)
        return np.maximum(self.records["after"].to_numpy(dtype=np.int64), 0)

    def _laid(self, values: Floats, at: Positions) -> tuple[Floats, Floats]:
        """The lags of some records, and their rows (record · sequence, lag) laid along them."""
        after, block = self.after[at], values[at]
        low, width = int(after.min()), block.shape[-1]
        laid = np.full((*block.shape[:2], width + int(after.max()) - low), np.nan)
        for row, values_of, shift in zip(laid, block, after - low, strict=True):
            row[:, shift : shift + width] = values_of
        return np.arange(low, low + laid.shape[-1], dtype=np.float64), laid.reshape(-1, laid.shape[-1])

    def _ends(self, at: Positions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First lag of every sequence, and the lag behind its last."""
        starts = np.repeat(self.after[at], self.lengths.shape[1])
        return starts, starts + self.lengths[at].reshape(-1)

    def _smallest(self, at: Positions) -> float:
        return float(self.records["smallest_normal"].to_numpy()[at].max())


@dataclass(frozen=True, eq=False)
class Block:
    """One dataset at one recorded step: all records of the step (micro-batches, ranks).

    ``values`` has shape (record, \\*DATASETS[dataset]).
    """

    step: int
    values: Floats
    lengths: NDArray[np.int64]
    smallest_normal: float


def block(run: Run | Reading, site: str, dataset: str, step: int | str | None = None) -> Block:
    """``dataset`` at one step; by default the last with a finite value.

    Raises
    ------
    SettingError
        The step was not recorded.
    EmptyRunError
        No record there counts.
    """
    reading = read(run)
    reading.require(site)
    steps = reading.records(site)["step"].to_numpy(dtype=np.int64)
    values = np.asarray(reading.array(site, dataset), dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).any(axis=1))
    if step in (None, "last"):
        chosen = int(steps[finite].max() if finite.size else steps.max())
    else:
        chosen = int(steps.min()) if step == "first" else recorded_step(sorted({*map(int, steps)}), int(step or 0))
    at = np.flatnonzero(steps == chosen)
    smallest = float(reading.records(site)["smallest_normal"].to_numpy()[at].max())
    return Block(chosen, values[at], np.asarray(reading.lengths(site)[at], dtype=np.int64), smallest)


def norms(run: Run | Reading, site: str, quantity: str) -> Norms:
    """All norms of ``quantity`` at ``site`` that count.

    Raises
    ------
    EmptyRunError
        No record there counts.
    """
    reading = read(run)
    reading.require(site)
    return Norms(
        reading.records(site),
        np.asarray(reading.array(site, quantity), dtype=np.float64),
        np.asarray(reading.lengths(site), dtype=np.int64),
        *_arriving(reading, site),
    )


def _arriving(reading: Reading, site: str) -> tuple[Floats | None, Floats | None, str]:
    """Direct and total gradient of the hidden state, where both were recorded, and what lies above."""
    if not {"direct", "hidden"} <= set(recorded(reading, site)):
        return None, None, "loss"
    above = "layer" if has_layer_above(reading, site) else "loss"
    return reading.array(site, "direct"), reading.array(site, "hidden"), above


def has_layer_above(run: Run | Reading, site: str) -> bool:
    """Whether the site is a level of a stacked module with another level on top of it."""
    module, _, level = site.rpartition("/l")
    number = level.removesuffix("_reverse")
    return bool(module) and number.isdigit() and f"{module}/l{int(number) + 1}" in run.sites


def recorded_step(available: list[int], step: int) -> int:
    """``step``, if it was recorded.

    Raises
    ------
    SettingError
        Names the nearest that was.
    """
    if step in available:
        return step
    nearest = min(available, key=lambda known: abs(known - step))
    raise SettingError(f"step {step} was not recorded; the nearest recorded step is {nearest}.")
