"""What a run is made of: parts, each a stretch of records, in memory (`Block`) or in a sealed file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gradscope.errors import UnsafeFileError
from gradscope.schema import (
    CLIPS_GROUP,
    DATASETS,
    PARAMETERS_GROUP,
    STEPS_GROUP,
    ClipEvent,
    Coverage,
    Record,
    RunMeta,
    SiteInfo,
    SiteRecord,
    StepRow,
)
from gradscope.store.budget import Budget
from gradscope.store.codec import Entry, dtype_of
from gradscope.store.sums import CHECKSUM

#: Stacked arrays beyond this are refused: they would not fit an ordinary machine's memory.
MAX_ARRAY_BYTES = 4 << 30
#: Entries are stacked in blocks of at most this size, however ragged they are.
BLOCK_BYTES = 256 << 20

#: Every record of a part.
ALL = slice(None)

#: What is read at once of an array that need not be whole in memory.
STRETCH_BYTES = 4 << 20

#: One value per record at a site.
RECORD_COLUMNS: dict[str, np.dtype[Any]] = {
    "step": np.dtype("<i8"),
    "micro": np.dtype("<i4"),
    "attempt": np.dtype("<i4"),
    "rank": np.dtype("<i4"),
    "loss_scale": np.dtype("<f8"),
    "skipped": np.dtype("i1"),
    "nonfinite": np.dtype("<i4"),
    "carried": np.dtype("<i8"),
    "smallest_normal": np.dtype("<f8"),
    "role": np.dtype("i1"),
    "after": np.dtype("<i8"),
}

#: Columns that files of format 1.0 do not have, and what stands for them.
ADDED_COLUMNS: dict[str, Any] = {"role": 0, "after": 0} | {
    name: ClipEvent.__dataclass_fields__[name].default
    for name in ("place", "effective", "passes", "applied", "loss_scale", "foreach", "overflow", "part")
}

#: One value per sequence of a record; what stands where a record has fewer sequences than another.
SEQUENCE_COLUMNS = {"length": 0, "row": -1}
#: Which datasets each record has.
RECORDED, DATASET_AXIS = "recorded", "dataset"

#: Every name that may stand in a site's group.
SITE_NAMES = frozenset(
    {
        RECORDED,
        DATASET_AXIS,
        CHECKSUM,
        *RECORD_COLUMNS,
        *SEQUENCE_COLUMNS,
        *DATASETS,
        *(d for dims in DATASETS.values() for d in dims),
    }
)


@dataclass(frozen=True)
class TableSpec:
    """A table of a run: its row axis, the axis of its free names, its fixed columns."""

    axis: str
    columns: Mapping[str, np.dtype[Any]]
    name_axis: str = ""
    values: str = ""


_WHO: dict[str, np.dtype[Any]] = {"attempt": np.dtype("<i4"), "rank": np.dtype("<i4")}
_F8 = np.dtype("<f8")
_CLIP_COLUMNS: dict[str, np.dtype[Any]] = {**_WHO, **dict.fromkeys(ClipEvent.__dataclass_fields__, _F8)}
_CLIP_COLUMNS |= dict.fromkeys(("parameters", "effective", "passes", "foreach", "overflow"), np.dtype("<i4"))
_CLIP_COLUMNS |= {"step": np.dtype("<i8"), "kind": np.dtype("S16"), "place": np.dtype("S16"), "part": np.dtype("S64")}

TABLES: dict[str, TableSpec] = {
    STEPS_GROUP: TableSpec("step", {"step": np.dtype("<i8"), **_WHO, "time": _F8}, "scalar", "value"),
    CLIPS_GROUP: TableSpec("event", _CLIP_COLUMNS),
    PARAMETERS_GROUP: TableSpec(
        "step",
        {
            "step": np.dtype("<i8"),
            "micro": np.dtype("<i4"),
            **_WHO,
            "time": _F8,
            "measured": np.dtype("<i4"),
            "role": np.dtype("i1"),
        },
        "parameter",
        "norm",
    ),
}


#: Of a row in memory.
_CLIP_BYTES = sum(dtype.itemsize for dtype in _CLIP_COLUMNS.values())


@dataclass(frozen=True, eq=False)
class Table:
    """Fixed columns, shape ``(row,)``, and free ones, ``values`` of shape ``(row, name)`` with NaN where absent."""

    columns: dict[str, np.ndarray]
    names: tuple[str, ...]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.columns["step"])


@dataclass(frozen=True)
class Header:
    """What a segment, a journal or a packed file says of itself.

    ``first_id`` to ``last_id`` are the journal entries it holds: a reader that meets an entry both in a segment and
    in the journal (the writer died between sealing and deleting) counts it once. ``closing`` marks a run's last
    segment.
    """

    metas: tuple[RunMeta, ...] = ()
    sites: dict[str, SiteInfo] = field(default_factory=dict)
    coverage: tuple[Coverage, ...] = ()
    lost: dict[str, int] = field(default_factory=dict)
    first_id: int = 0
    last_id: int = 0
    closing: bool = False


class Part(Protocol):
    """A stretch of records of one or more runs."""

    @property
    def n_records(self) -> int: ...

    def sites(self) -> tuple[str, ...]:
        """Sites with at least one record."""

    def datasets(self, site: str) -> tuple[str, ...]:
        """Datasets recorded at the site."""

    def extent(self, site: str) -> dict[str, int]:
        """Size of each axis at the site, ``step`` and ``sequence`` included."""

    def gates(self, site: str) -> tuple[str, ...]:
        """Names along the ``gate`` axis, ``()`` where there is none."""

    def column(self, site: str, name: str) -> np.ndarray:
        """A key of ``RECORD_COLUMNS``, shape (record,), or of ``SEQUENCE_COLUMNS``, shape (record, sequence)."""

    def recorded(self, site: str, dataset: str) -> np.ndarray:
        """Whether each record has the dataset, bool (record,)."""

    def array(self, site: str, dataset: str, records: slice = ALL) -> np.ndarray:
        """The dataset, shape (record, *DATASETS[dataset]), NaN where there is nothing; of some records if asked."""

    def table(self, group: str) -> Table:
        """A key of ``TABLES``."""


class Block:
    """A part in memory, stacked from journal entries.

    Parameters
    ----------
    entries : sequence of Record, StepRow or ClipEvent
    attempt, rank : int
        Who wrote them.
    gates : mapping of str to tuple of str
        Gate names by site.
    """

    def __init__(
        self, entries: Sequence[Entry], attempt: int, rank: int, gates: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._records = [entry for entry in entries if isinstance(entry, Record)]
        self._steps = [entry for entry in entries if isinstance(entry, StepRow)]
        self._clips = [entry for entry in entries if isinstance(entry, ClipEvent)]
        self._who = {"attempt": attempt, "rank": rank}
        self._gates = gates or {}
        self._extents: dict[str, dict[str, int]] = {}
        self._at: dict[str, list[tuple[Record, SiteRecord]]] = {}
        for record in self._records:
            for site, data in record.sites.items():
                self._at.setdefault(site, []).append((record, data))

    @property
    def n_records(self) -> int:
        return len(self._records)

    def sites(self) -> tuple[str, ...]:
        return tuple(self._at)

    def datasets(self, site: str) -> tuple[str, ...]:
        present = {name for _, data in self._at.get(site, ()) for name in data.arrays}
        return tuple(name for name in DATASETS if name in present)

    def extent(self, site: str) -> dict[str, int]:
        if site not in self._extents:
            sizes = self._extents[site] = {"step": len(self._at.get(site, ())), "sequence": 1}
            for _, data in self._at.get(site, ()):
                _grow(sizes, data)
        return dict(self._extents[site])

    def gates(self, site: str) -> tuple[str, ...]:
        size = self.extent(site).get("gate", 0)
        names = self._gates.get(site, ())
        return names if len(names) == size else tuple(map(str, range(size)))

    def column(self, site: str, name: str) -> np.ndarray:
        found = self._at.get(site, [])
        if name in SEQUENCE_COLUMNS:
            shape = (len(found), self.extent(site)["sequence"])
            padded = np.full(shape, SEQUENCE_COLUMNS[name], np.int32)
            for row, (_, data) in zip(padded, found, strict=True):
                row[: len(data.lengths)] = data.lengths if name == "length" else data.rows
            return padded
        values = [
            self._who[name] if name in self._who else getattr(record if hasattr(record, name) else data, name)
            for record, data in found
        ]
        return np.array(values, RECORD_COLUMNS[name])

    def recorded(self, site: str, dataset: str) -> np.ndarray:
        return np.array([dataset in data.arrays for _, data in self._at.get(site, ())], bool)

    def array(self, site: str, dataset: str, records: slice = ALL) -> np.ndarray:
        sizes, dtype, found = self.extent(site), dtype_of(dataset), self._at.get(site, [])[records]
        shape = (len(found), *(sizes.get(dim, 1) for dim in DATASETS[dataset]))
        stacked = np.full(check_size(shape, dtype, f"{site} {dataset}"), np.nan, dtype)
        for row, (_, data) in zip(stacked, found, strict=True):
            if dataset in data.arrays:
                values = data.arrays[dataset]
                row[tuple(map(slice, values.shape))] = values
        return stacked

    def table(self, group: str) -> Table:
        source: dict[str, Sequence[Any]] = {
            STEPS_GROUP: self._steps,
            CLIPS_GROUP: self._clips,
            PARAMETERS_GROUP: self._records,
        }
        rows = source[group]
        columns = {name: self._table_column(rows, name, dtype) for name, dtype in TABLES[group].columns.items()}
        named = [] if group == CLIPS_GROUP else [_named_values(row) for row in rows]
        names = tuple(dict.fromkeys(name for values in named for name in values))
        where = {name: position for position, name in enumerate(names)}
        matrix = np.full((len(rows), len(names)), np.nan)
        for line, values in zip(matrix, named, strict=bool(names)):
            line[[where[name] for name in values]] = list(values.values())
        return Table(columns, names, matrix)

    def _table_column(self, rows: Sequence[Any], name: str, dtype: np.dtype[Any]) -> np.ndarray:
        if name in self._who:
            return np.full(len(rows), self._who[name], dtype)
        if name == "measured":
            return np.array([len(row.parameters) for row in rows], dtype)
        values = [getattr(row, name) for row in rows]
        return np.array([value.encode() for value in values] if dtype.kind == "S" else values, dtype)


#: Columns that hold no negative number, and those that may begin at another.
_LEAST = dict.fromkeys(("step", "attempt", "rank", "nonfinite", "smallest_normal", "role", "after", "length"), 0)
_LEAST |= {"carried": -1, "row": -1, "measured": 0}
_MOST = 2**53
_NORMS = ("norm_before", "norm_after")


def check_column(name: str, values: np.ndarray, extent: Mapping[str, int]) -> None:
    """Refuse what no recorder writes; beyond 2^53 an integer is exact in no table.

    Raises
    ------
    ValueError
    """
    if name in _NORMS and (values < 0).any():
        raise ValueError(f"{name} has negative values")
    if values.dtype.kind not in "iu" and name != "smallest_normal":
        return
    low, high = values.min(initial=0), values.max(initial=0)
    longest = max(extent.get("lag", 0), extent.get("time", 0)) if name == "length" else 0
    if low < _LEAST.get(name, -(2**31)) or not high <= (longest or _MOST) or (name == "length" and high > 2**28):
        raise ValueError(f"{name} has values from {low} to {high}")


def _named_values(row: Record | StepRow) -> dict[str, float]:
    return row.parameters if isinstance(row, Record) else row.scalars


def _grow(sizes: dict[str, int], data: SiteRecord) -> None:
    """Widen ``sizes`` to hold ``data``. No axis is empty: netCDF has no fixed dimension of size 0."""
    sizes["sequence"] = max(sizes.get("sequence", 1), len(data.lengths))
    for name, values in data.arrays.items():
        for dim, size in zip(DATASETS[name], values.shape, strict=True):
            sizes[dim] = max(sizes.get(dim, 1), size)


def blocks(entries: Sequence[Entry], limit: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """Cut entries into stretches ``entries[start:stop]`` that each stack to at most ``limit`` bytes.

    Padding to the longest may cost far more than the entries themselves (one sequence of 100,000 steps among
    thousands of short ones), so what counts is the stacked size.
    """
    start, estimate = 0, _StackedSize()
    for index, entry in enumerate(entries):
        if estimate.add(entry) > limit and index > start:
            yield start, index
            start, estimate = index, _StackedSize()
            estimate.add(entry)
    yield start, len(entries)


def pay_for_stacking(entries: Sequence[Entry], budget: Budget, path: Path) -> None:
    """Spend what the blocks of these entries would take, before one is stacked.

    Raises
    ------
    UnsafeFileError
        The budget is used up.
    """
    total, sites, names = 0, set[str](), set[str]()
    for start, stop in blocks(entries):
        estimate = _StackedSize()
        for entry in entries[start:stop]:
            estimate.add(entry)
        total += estimate.total
        sites |= estimate.sites
        names |= estimate.names
    for kind, amount in (("sites", len(sites)), ("names", len(names)), ("bytes", total)):
        budget.take(kind, amount, path)


class _StackedSize:
    """Bytes that stacking the entries seen so far would take."""

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[str, dict[str, int]] = {}
        self._datasets: dict[str, set[str]] = {}
        self._rows: dict[str, int] = {}
        self._site_bytes: dict[str, int] = {}
        self._tables: dict[type, tuple[int, set[str]]] = {Record: (0, set()), StepRow: (0, set())}

    @property
    def sites(self) -> set[str]:
        return set(self._sizes)

    @property
    def names(self) -> set[str]:
        return {name for _, names in self._tables.values() for name in names}

    def add(self, entry: Entry) -> int:
        if isinstance(entry, ClipEvent):
            self.total += _CLIP_BYTES
            return self.total
        rows, names = self._tables[type(entry)]
        before = 8 * rows * len(names)
        names.update(_named_values(entry))
        self._tables[type(entry)] = (rows + 1, names)
        self.total += 8 * (rows + 1) * len(names) - before
        if isinstance(entry, Record):
            for site, data in entry.sites.items():
                self._add_site(site, data)
        return self.total

    def _add_site(self, site: str, data: SiteRecord) -> None:
        sizes = self._sizes.setdefault(site, {})
        names = self._datasets.setdefault(site, set())
        _grow(sizes, data)
        names.update(data.arrays)
        self._rows[site] = self._rows.get(site, 0) + 1
        per_record = 0
        for name in names:
            count = dtype_of(name).itemsize
            for dim in DATASETS[name]:
                count *= sizes[dim]
            per_record += count
        self.total += self._rows[site] * per_record - self._site_bytes.get(site, 0)
        self._site_bytes[site] = self._rows[site] * per_record


def stretches(part: Part, site: str, dataset: str, most: int = STRETCH_BYTES) -> Iterator[slice]:
    """All records of a part, in stretches whose ``array`` takes up to ``most`` bytes, at least one record each."""
    extent = part.extent(site)
    record = dtype_of(dataset).itemsize
    for dim in DATASETS[dataset]:
        record *= extent.get(dim, 1)
    length = max(1, most // max(record, 1))
    for start in range(0, extent["step"], length):
        yield slice(start, min(start + length, extent["step"]))


def check_size(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> tuple[int, ...]:
    """``shape``, if an array of it is of a reasonable size.

    Raises
    ------
    UnsafeFileError
    """
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size > MAX_ARRAY_BYTES:
        raise UnsafeFileError(
            f"{what}: an array of shape {shape} would take {size / 2**30:.1f} GiB, more than the limit of "
            f"{MAX_ARRAY_BYTES >> 30} GiB. Record fewer samples, or whole tensors only where they are needed."
        )
    return shape
