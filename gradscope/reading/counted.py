"""A run as it counts: only the records that count, and each of its arrays read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pandas as pd

from gradscope.errors import EmptyRunError
from gradscope.reading.records import EVERYTHING, Choice, attempt_starts, counting, lowest_rank
from gradscope.schema import Coverage, RunMeta, SiteInfo
from gradscope.store import Run
from gradscope.store.run import load_run
from gradscope.store.sealed import Held

#: Arrays are kept while those of all runs that are read take no more than this; else each is read when it is asked for.
HELD_BYTES = 512 << 20

_ALIVE: WeakSet[Reading] = WeakSet()


def read(run: Run | Reading, choice: Choice | None = None) -> Reading:
    """A run as it counts; the same object for the same run and choice, so that nothing is read twice.

    Parameters
    ----------
    run : Run
        From :func:`gradscope.open_run`. What has been read already is returned as it is.
    choice : Choice, optional
        By default everything that counts.
    """
    if isinstance(run, Reading):
        return run if choice is None or choice == run.choice else read(run.run, choice)
    choice = choice or EVERYTHING
    found = run.held.get(choice)
    if not isinstance(found, Reading):
        found = run.held[choice] = Reading(run, choice)
    return found


def read_run(path: str | Path, choice: Choice | None = None) -> Reading:
    """:func:`read` of the run at a path: each of its files is opened once."""
    with Held() as held:
        return read(load_run(path, held=held), choice)


def read_all(runs: Iterable[Run | Reading | str | Path]) -> list[Reading]:
    """:func:`read` for each of several runs; :func:`read_run` for each path."""
    return [read_run(run) if isinstance(run, str | Path) else read(run) for run in runs]


class Reading:
    """What counts of a run, with the face of :class:`gradscope.store.Run`.

    ``records``, ``array`` and ``lengths`` hold the records that count, ``steps``, ``clips`` and ``parameters`` the
    rows; see :class:`gradscope.reading.Choice` for which these are.
    """

    def __init__(self, run: Run, choice: Choice = EVERYTHING) -> None:
        self.run = run
        self.choice = choice
        self._kept: dict[str, np.ndarray] = {}
        self._held: dict[tuple[str, ...], Any] = {}
        self._bytes = 0
        self._forgotten = False
        with run.opened():
            self._load()

    def _load(self) -> None:
        self._n_records = self.run.n_records
        tables = {name: getattr(self.run, name)() for name in ("steps", "clips", "parameters")}
        records = {site: self.run.records(site) for site in self.run.sites}
        starts = attempt_starts([*tables.values(), *records.values()])
        calls = tables["clips"].drop(columns="effective", errors="ignore")
        self._held[("calls",)] = tables["clips"][counting(calls, starts, self.choice)].reset_index(drop=True)
        for name, table in tables.items():
            kept = counting(table, starts, self.choice)
            if self.choice.rank is None and len(table):
                kept &= lowest_rank(table)
            every = self._held[("calls",)] if name == "clips" else table
            # Most runs have one process and one attempt: what counts is everything, and is kept once.
            self._held[(name,)] = (
                every if kept.all() and len(every) == len(table) else table[kept].reset_index(drop=True)
            )
        for site, table in records.items():
            at = self._kept[site] = np.flatnonzero(counting(table, starts, self.choice))
            self._held["records", site] = table if len(at) == len(table) else table.iloc[at].reset_index(drop=True)
            self._held["lengths", site] = self.run.lengths(site)[at]
        self._hold()

    def _hold(self) -> None:
        """Read every array, if there is room for them."""
        self._forgotten = False
        wanted = [(site, name) for site in self._kept for name in self.run.datasets(site)]
        wanted = [(site, name) for site, name in wanted if not name.endswith("_tensor")]
        size = sum(self.run.nbytes(site, name) for site, name in wanted)
        if size + sum(other._bytes for other in _ALIVE) <= HELD_BYTES:
            self._bytes = size
            _ALIVE.add(self)
            for site, name in wanted:
                self._held["array", site, name] = self.run.array(site, name)[self._kept[site]]

    # --- what the run says of itself ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def meta(self) -> RunMeta:
        return self.run.meta

    @property
    def metas(self) -> tuple[RunMeta, ...]:
        return self.run.metas

    @property
    def settings(self) -> dict[str, Any]:
        return self.run.settings

    @property
    def model(self) -> dict[str, Any]:
        return self.run.model

    @property
    def coverage(self) -> list[Coverage]:
        return self.run.coverage

    @property
    def lost(self) -> dict[str, int]:
        return self.run.lost

    @property
    def sealed(self) -> bool:
        return self.run.sealed

    @property
    def n_records(self) -> int:
        """All that were written, whether they count or not."""
        return self._n_records

    @property
    def sites(self) -> tuple[str, ...]:
        return self.run.sites

    def site(self, site: str) -> SiteInfo:
        return self.run.site(site)

    def quantities(self, site: str) -> tuple[str, ...]:
        return self.run.quantities(site)

    def require_records(self) -> Reading:
        """The reading itself, if the run holds a record; raises EmptyRunError."""
        self.run.require_records()
        return self

    # --- what counts -------------------------------------------------------------------------------------------------

    def counted(self, site: str) -> int:
        """How many records of a site count."""
        return len(self._kept[site]) if site in self._kept else 0

    def require(self, site: str) -> None:
        """Refuse a site without a record that counts.

        Raises
        ------
        EmptyRunError
        """
        if site in self._kept and not self.counted(site):
            raise EmptyRunError(
                f"{site}: no record in the run {self.name} counts: of {len(self.run.records(site))}, no update "
                "followed (the loss scaler skipped it, or the optimizer never stepped), the gradients were dropped, or "
                "the step lies outside what was asked for."
            )

    def records(self, site: str) -> pd.DataFrame:
        """:meth:`Run.records <gradscope.store.Run.records>` of those that count."""
        return self._get(("records", site), lambda: self.run.records(site))

    def array(self, site: str, dataset: str) -> np.ndarray:
        """:meth:`Run.array <gradscope.store.Run.array>` of the records that count; not to be written to."""
        if self._forgotten:
            with self.run.opened():
                self._hold()
        found = self._held.get(("array", site, dataset))
        return self.run.array(site, dataset)[self._kept[site]] if found is None else found

    def lengths(self, site: str) -> np.ndarray:
        """Length of each sequence, int (record, sequence)."""
        return self._get(("lengths", site), lambda: self.run.lengths(site))

    def steps(self) -> pd.DataFrame:
        """Scalars of every optimizer step that counts."""
        return self._held[("steps",)]

    def clip_calls(self) -> pd.DataFrame:
        """Every clipping call, also those that no update saw."""
        return self._held[("calls",)]

    def clips(self) -> pd.DataFrame:
        """Clipping calls that count."""
        return self._held[("clips",)]

    def parameters(self) -> pd.DataFrame:
        """Gradient norms of the parameters, of the records that count."""
        return self._held[("parameters",)]

    def once(self, what: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made at the first call; not to be written to."""
        key = ("once", what)
        if key not in self._held:
            self._held[key] = make()
        return self._held[key]

    def forget(self) -> None:
        """Let go of the arrays: who asks for one again has them read again, all at once."""
        self._held = {key: value for key, value in self._held.items() if key[0] not in ("array", "once")}
        self._bytes = 0
        self._forgotten = True

    def _get(self, key: tuple[str, ...], unknown: Callable[[], Any]) -> Any:
        # A site without records: the run says what is wrong with the name.
        return self._held[key] if key in self._held else unknown()
