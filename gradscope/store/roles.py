"""A part without the passes that fed no update, or with nothing but these.

What a reader gets by default are the gradients that updates used: a gradient that was zeroed, another loss's or a
closure's second evaluation is in the file, and in no curve, table or count.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gradscope.schema import PARAMETERS_GROUP
from gradscope.store.part import ALL, Part, Table


class RoleView:
    """A part whose records are those with ``role`` 0 (``apart`` False), or all others.

    Parameters
    ----------
    part : Part
    apart : bool
    """

    def __init__(self, part: Part, apart: bool = False) -> None:
        self._part, self._apart = part, apart
        self._kept = lru_cache(maxsize=None)(self._find)
        self._sites = lru_cache(maxsize=None)(self._find_sites)
        self._count = lru_cache(maxsize=None)(self._count_records)

    def _find(self, site: str) -> np.ndarray | None:
        """Positions of the records of a site; None where it is all of them."""
        kept = (self._part.column(site, "role") != 0) == self._apart
        return None if kept.all() else np.flatnonzero(kept)

    def _take(self, site: str, values: np.ndarray) -> np.ndarray:
        kept = self._kept(site)
        return values if kept is None else values[kept]

    @property
    def n_records(self) -> int:
        return self._count()

    def _count_records(self) -> int:
        return int(((self._part.table(PARAMETERS_GROUP).columns["role"] != 0) == self._apart).sum())

    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites())

    def holds(self, site: str) -> bool:
        """Whether there is a record of the site."""
        return site in self._sites()

    def _find_sites(self) -> dict[str, None]:
        return dict.fromkeys(site for site in self._part.sites() if (kept := self._kept(site)) is None or kept.size)

    def datasets(self, site: str) -> tuple[str, ...]:
        found = self._part.datasets(site)
        return found if self._kept(site) is None else tuple(n for n in found if self.recorded(site, n).any())

    def extent(self, site: str) -> dict[str, int]:
        sizes, kept = self._part.extent(site), self._kept(site)
        return sizes if kept is None else sizes | {"step": len(kept)}

    def gates(self, site: str) -> tuple[str, ...]:
        return self._part.gates(site)

    def column(self, site: str, name: str) -> np.ndarray:
        return self._take(site, self._part.column(site, name))

    def recorded(self, site: str, dataset: str) -> np.ndarray:
        return self._take(site, self._part.recorded(site, dataset))

    def array(self, site: str, dataset: str, records: slice = ALL) -> np.ndarray:
        kept = self._kept(site)
        if kept is None:
            return self._part.array(site, dataset, records)
        chosen = kept[records]
        if not chosen.size:
            return self._part.array(site, dataset, slice(0, 0))
        first = int(chosen[0])
        return self._part.array(site, dataset, slice(first, int(chosen[-1]) + 1))[chosen - first]

    def table(self, group: str) -> Table:
        table = self._part.table(group)
        if group != PARAMETERS_GROUP:
            return table
        kept = (table.columns["role"] != 0) == self._apart
        return Table({name: column[kept] for name, column in table.columns.items()}, table.names, table.values[kept])
