"""The norms of a site that count, as curves and fits. Sentences and figures both ask here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.diagnostics import DecayCurve, DecayFit, Entry, decay_curve, find_entry, fit_decay, unknown_entry
from gradscope.errors import UnknownNameError
from gradscope.reading.counted import Reading, read
from gradscope.reading.records import part_of
from gradscope.reading.select import laid, recorded, recorded_step
from gradscope.schema import STATES
from gradscope.store import Run

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

#: Of :func:`gradscope.fit_decay`, what is not read from the records themselves.
FIT_OPTIONS = ("lag_range", "confidence", "resamples", "seed", "horizon_fraction")


@dataclass(frozen=True, eq=False)
class Norms:
    """Every per-sequence norm of one quantity at one site that counts.

    Attributes
    ----------
    records : DataFrame
        One row per record, index = position in ``values``.
    values : ndarray, shape (record, sequence, lag)
    lengths : ndarray of int, shape (record, sequence)
    direct, total : ndarray, shape (record, sequence, lag), or None
        Of the hidden state: what arrives from above, and all of it. Of a curve of a state, the first may not be known.
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
        """:func:`gradscope.fit_decay` of some records, pooled: all their sequences, with the step of each.

        Raises
        ------
        UnknownNameError
            No such option.
        """
        for name in options:
            if name not in FIT_OPTIONS:
                raise UnknownNameError("option of the fit", name, FIT_OPTIONS)
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
        """Where the gradient enters in some records; None where there is no hidden state it could enter."""
        if self.total is None:
            return None
        if self.direct is None:
            return unknown_entry(self._laid(self.total, at)[0], self.above)
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
    def longest(self) -> int:
        """Steps of the longest sequence, with those of it in calls before and after this one."""
        before = self.records["carried"].to_numpy(dtype=np.int64) if "carried" in self.records else 0
        return int((self.lengths.max(axis=1, initial=0) + np.maximum(before, 0) + self.after).max())

    @property
    def after(self) -> NDArray[np.int64]:
        """Steps of the sequence after this site's last one, per record: its lags begin there."""
        if "after" not in self.records:
            return np.zeros(len(self.records), dtype=np.int64)
        return np.maximum(self.records["after"].to_numpy(dtype=np.int64), 0)

    def _laid(self, values: Floats, at: Positions) -> tuple[Floats, Floats]:
        """The lags of some records, and their rows (record · sequence, lag) laid along them."""
        lags, rows = laid(values[at], self.after[at])
        return lags, rows.reshape(-1, rows.shape[-1])

    def _ends(self, at: Positions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First lag of every sequence, and the lag behind its last."""
        starts = np.repeat(self.after[at], self.lengths.shape[1])
        return starts, starts + self.lengths[at].reshape(-1)

    def _smallest(self, at: Positions) -> float:
        return float(self.records["smallest_normal"].to_numpy()[at].max())


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
        *_arriving(reading, site, quantity),
    )


def _arriving(reading: Reading, site: str, quantity: str) -> tuple[Floats | None, Floats | None, str]:
    """Direct and total gradient of the hidden state, as far as they were recorded, and what lies above.

    Of numbered states, what enters from above is never known.
    """
    if quantity in STATES:
        return None, reading.array(site, quantity), "loss"
    if "hidden" not in recorded(reading, site):
        return None, None, "loss"
    above = "layer" if has_layer_above(reading.sites, site) else "loss"
    direct = reading.array(site, "direct") if "direct" in recorded(reading, site) else None
    return direct, reading.array(site, "hidden"), above


def has_layer_above(sites: Sequence[str], site: str) -> bool:
    """Whether the site is a level of a stacked module with another level on top of it."""
    module, _, level = site.rpartition("/l")
    number = level.removesuffix("_reverse")
    return bool(module) and number.isdigit() and f"{module}/l{int(number) + 1}" in sites
