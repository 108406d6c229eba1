"""What a growing run has to say each time it is looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gradscope.diagnostics import DecayFit
from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.reading import select
from gradscope.reading.counted import Reading, read
from gradscope.reading.curves import Norms, norms
from gradscope.store.growing import Growing

#: Most steps that are looked at in detail each time; of more, the last.
MOST = 20


@dataclass(frozen=True, eq=False)
class Arrival:
    """A recorded step.

    Attributes
    ----------
    step, attempt : int
    loss : float
        The last that was logged up to it; NaN where none was.
    clipped : float
        Share of the clipping calls since the recorded step before that changed anything; NaN without a call.
    calls : int
        How many there were.
    fits : tuple of (str, str, DecayFit)
        Site, quantity and the decay at this step.
    """

    step: int
    attempt: int
    loss: float
    clipped: float
    calls: int
    fits: tuple[tuple[str, str, DecayFit], ...]


@dataclass(frozen=True)
class News:
    """What came since the last look: the last few recorded steps, and how many came before these."""

    arrivals: tuple[Arrival, ...]
    earlier: int


class Watch:
    """Looks at a run again and again.

    Parameters
    ----------
    path : Path
    quantity : str, optional
        By default what describes each site.

    Raises
    ------
    UnknownNameError
        No such quantity, or one without a curve.
    """

    def __init__(self, path: Path, quantity: str | None = None) -> None:
        select.per_lag(quantity)
        self._growing, self._quantity = Growing(path), quantity
        self._last = (0, -1)  # attempt and step
        self._calls, self._steps = _Waiting(), _Waiting()

    def look(self, most: int = MOST) -> News:
        """What came since the last time.

        Raises
        ------
        RunError
            The run cannot be read.
        """
        with self._growing.news() as run:
            found = read(run)
            at = {site: self._norms(found, site) for site in run.sites}
            curves = {site: one for site, one in at.items() if one is not None}
            tables = [found.records(site)[["attempt", "step"]] for site in run.sites]
            known = {(int(a), int(s)) for table in tables for a, s in table.itertuples(index=False)}
            new = sorted(one for one in known if one > self._last)
            self._calls.add(found.clips(), self._growing.repeats)
            self._steps.add(found.steps(), self._growing.repeats)
            for one in new[-most - 1 : -most]:
                self._calls.take(*one)  # those of earlier steps
            arrivals = tuple(self._arrival(curves, *one) for one in new[-most:])
            self._last = max([self._last, *new])
            return News(arrivals, len(new) - len(arrivals))

    def _norms(self, run: Reading, site: str) -> tuple[str, Norms] | None:
        quantity = self._quantity or select.curve_quantity(run, site)
        try:
            return None if quantity is None else (quantity, norms(run, site, quantity))
        except (NotRecordedError, EmptyRunError):
            return None

    def _arrival(self, curves: dict[str, tuple[str, Norms]], attempt: int, step: int) -> Arrival:
        changed = self._calls.take(attempt, step)["clipped"].to_numpy(dtype=float) > 0
        steps = self._steps.take(attempt, step)
        losses = steps["loss"].dropna().to_numpy(dtype=float) if "loss" in steps else np.empty(0)
        fits = []
        for site, (quantity, found) in curves.items():
            at = np.flatnonzero((found.records["attempt"] == attempt) & (found.records["step"] == step))
            if at.size:
                fits.append((site, quantity, found.fit(at)))
        return Arrival(
            step=step,
            attempt=attempt,
            loss=float(losses[-1]) if losses.size else float("nan"),
            clipped=float(changed.mean()) if changed.size else float("nan"),
            calls=int(changed.size),
            fits=tuple(fits),
        )


class _Waiting:
    """Rows that came, until the next recorded step is told: what belongs to a step may come before or after it."""

    def __init__(self) -> None:
        self._rows = pd.DataFrame({"attempt": [], "step": [], "clipped": []})
        self._newest = (0, -1)
        self._seen: Counter[str] = Counter()  # rows of the newest step, of which more may come

    def add(self, table: pd.DataFrame, repeats: bool) -> None:
        """Add what is new of a table; with ``repeats`` rows may come that had come before."""
        attempt, step = self._newest
        fresh = table[_beyond(table, attempt, step) | ((table["attempt"] == attempt) & (table["step"] == step))]
        if repeats:
            rows = _written(fresh)
            fresh = fresh[rows.groupby(rows).cumcount() >= rows.map(self._seen).astype(int)]
        if len(fresh):
            newest = max(zip(fresh["attempt"].astype(int), fresh["step"].astype(int), strict=True))
            at = fresh[(fresh["attempt"] == newest[0]) & (fresh["step"] == newest[1])]
            self._seen = (self._seen if newest == self._newest else Counter()) + Counter(_written(at))
            self._newest = newest
            self._rows = pd.concat([self._rows, fresh], ignore_index=True) if len(self._rows) else fresh

    def take(self, attempt: int, step: int) -> pd.DataFrame:
        """Rows up to a step, once."""
        beyond = _beyond(self._rows, attempt, step)
        taken, self._rows = self._rows[~beyond], self._rows[beyond]
        return taken


def _written(table: pd.DataFrame) -> pd.Series:
    """Each row as words, to know it again."""
    return pd.Series([repr(row) for row in table.itertuples(index=False, name=None)], table.index, dtype=object)


def _beyond(table: pd.DataFrame, attempt: int, step: int) -> pd.Series:
    return (table["attempt"] > attempt) | ((table["attempt"] == attempt) & (table["step"] > step))
