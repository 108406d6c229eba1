"""A sealed segment, or a packed file, as a part of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradscope.errors import NotRecordedError, UnsafeFileError
from gradscope.schema import DATASETS, PARAMETERS_GROUP, SCHEMA, SITES_GROUP
from gradscope.store import fields, guard, sums
from gradscope.store.budget import Budget
from gradscope.store.codec import dtype_of
from gradscope.store.header import check_version, parse_header
from gradscope.store.layout import site_of
from gradscope.store.part import (
    ADDED_COLUMNS,
    ALL,
    DATASET_AXIS,
    RECORD_COLUMNS,
    RECORDED,
    SEQUENCE_COLUMNS,
    TABLES,
    Header,
    Table,
    check_column,
)
from gradscope.store.segment import DESCRIPTION

#: Longer than any name.
_MAX_NAME = 4096


#: How many files of a run may be open at once.
MAX_OPEN_FILES = 128


@dataclass(frozen=True)
class _Site:
    """What a site's group contains."""

    group: str
    extent: dict[str, int]
    datasets: tuple[str, ...]
    gates: tuple[str, ...]


class Held(ExitStack):
    """Files of a run that are read right after they were opened, and stay open for that; of many files the first."""

    def __init__(self) -> None:
        super().__init__()
        self.room = MAX_OPEN_FILES


class SealedPart:
    """A part in an HDF5 file, which is opened for each read: nothing stays open, but in ``held`` and :meth:`opened`.

    Raises
    ------
    RunDamagedError, SchemaVersionError, UnsafeFileError
    """

    def __init__(self, path: Path, budget: Budget | None = None, held: Held | None = None) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._columns: tuple[str, dict[str, np.ndarray]] = "", {}
        self._marks: dict[str, tuple[tuple[str, ...], np.ndarray, np.ndarray | None]] = {}
        budget = budget or Budget.of([path])
        if held is not None and held.room:
            held.room -= 1
            self._file = held.enter_context(guard.hold_hdf5(path))
            held.callback(setattr, self, "_file", None)
        with self._open() as file:
            if "schema" not in file.attrs or guard.read_text(file, "schema") != SCHEMA:
                raise guard.damaged(path, "it is HDF5, but no gradscope run")
            self._summed = check_version(guard.read_text(file, "schema_version"), path) >= sums.SINCE
            groups = guard.survey(file, path, budget)
            self._n_records = guard.read_integer(file, "n_records")
            self.header = _read_header(file, budget, path, self._n_records, self._summed)
            self._groups = _site_groups(groups)
            self._arrays = {name: frozenset(group.arrays) for name, group in groups.items()}
            self._sites = {
                site: _describe(file, name, groups[name], self._summed) for site, name in self._groups.items()
            }
            self._check_tables(groups, budget)

    def _check_tables(self, groups: Mapping[str, guard.Group], budget: Budget) -> None:
        for name, spec in TABLES.items():
            arrays = groups[name].arrays
            rows = arrays["step"].shape[0]
            budget.take("rows", rows, self.path)
            for column, dtype in spec.columns.items():
                if column in arrays or column not in ADDED_COLUMNS:
                    _check_stored(arrays, name, column, dtype, (rows,))
            if spec.name_axis:
                names = arrays[spec.name_axis].shape[0]
                budget.take("names", names, self.path)
                _check_stored(arrays, name, spec.name_axis, np.dtype("S1"), (names,))
                _check_stored(arrays, name, spec.values, np.dtype("<f8"), (rows, names))
        if groups[PARAMETERS_GROUP].arrays["step"].shape[0] != self._n_records:
            raise ValueError(f"{self._n_records} records stated, but not as many held")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the file open for several reads."""
        if self._file is not None:
            yield
            return
        with guard.hold_hdf5(self.path) as file:
            self._file = file
            try:
                yield
            finally:
                self._file = None

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        if self._file is None:
            with guard.open_hdf5(self.path) as file:
                yield file
        else:
            with guard.naming_damage(self.path):
                yield self._file

    @property
    def n_records(self) -> int:
        return self._n_records

    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites)

    def datasets(self, site: str) -> tuple[str, ...]:
        return self._sites[site].datasets

    def extent(self, site: str) -> dict[str, int]:
        return dict(self._sites[site].extent)

    def gates(self, site: str) -> tuple[str, ...]:
        return self._sites[site].gates

    def column(self, site: str, name: str) -> np.ndarray:
        """Return a column of a site, which is not to be written to: those of the last site are kept."""
        held = self._columns  # once: another thread may be at another site
        if held[0] != site:
            held = self._columns = site, {}
        if (values := held[1].get(name)) is None:
            values = self._read_column(site, name)
            values.flags.writeable = False
            held[1][name] = values
        return values

    def _read_column(self, site: str, name: str) -> np.ndarray:
        dims = ("step", "sequence") if name in SEQUENCE_COLUMNS else ("step",)
        dtype = RECORD_COLUMNS.get(name, np.dtype("<i4"))
        if name in ADDED_COLUMNS and name not in self._arrays[self._sites[site].group]:
            return np.full(self._sites[site].extent["step"], ADDED_COLUMNS[name], dtype)
        values = self._read(site, name, dims).astype(dtype, copy=False)
        with guard.naming_damage(self.path):
            check_column(name, values, self._sites[site].extent)
        return values

    def recorded(self, site: str, dataset: str) -> np.ndarray:
        described = self._sites[site]
        if dataset not in described.datasets:
            return np.zeros(described.extent["step"], bool)
        names, recorded, _ = self._by_record(site)
        return recorded[:, names.index(dataset)].astype(bool)

    def _by_record(self, site: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
        """Datasets of a site; which each record has; and the checksums of what each has, where the file has them."""
        if site not in self._marks:
            with self._open() as file:
                group = file[self._sites[site].group]
                recorded = sums.read(group[RECORDED], self._summed)
                stated = sums.read(group[sums.CHECKSUM], True) if self._summed else None
                self._marks[site] = _text(group[DATASET_AXIS], self._summed), recorded, stated
        return self._marks[site]

    def array(self, site: str, dataset: str, records: slice = ALL) -> np.ndarray:
        if dataset not in self._sites[site].datasets:
            raise NotRecordedError(f"{dataset} was not recorded at {site!r}")
        values = self._read(site, dataset, ("step", *DATASETS[dataset]), records)
        names, _, stated = self._by_record(site)
        if stated is not None:
            with guard.naming_damage(self.path):
                sums.check_rows(values, stated[records, names.index(dataset)], f"{dataset} at {site!r}")
        return values.astype(dtype_of(dataset), copy=False)

    def _read(self, site: str, name: str, dims: tuple[str, ...], records: slice = ALL) -> np.ndarray:
        described = self._sites[site]
        with self._open() as file:
            variable = file[described.group][name]
            if variable.shape != tuple(described.extent[dim] for dim in dims):
                raise guard.damaged(self.path, f"{name} at {site!r} has shape {variable.shape}")
            return np.asarray(variable[records]) if name in DATASETS else sums.read(variable, self._summed)

    def table(self, group: str) -> Table:
        spec = TABLES[group]
        with self._open() as file:
            found = file[group]
            rows = len(found["step"])
            columns = {
                name: sums.read(found[name], self._summed)
                if name in self._arrays[group] or name not in ADDED_COLUMNS
                else np.full(rows, _stored_default(name), dtype)
                for name, dtype in spec.columns.items()
            }
            names = _text(found[spec.name_axis], self._summed) if spec.name_axis else ()
            values = sums.read(found[spec.values], self._summed) if spec.name_axis else np.empty((rows, 0))
        if any(column.shape != (rows,) for column in columns.values()) or values.shape != (rows, len(names)):
            raise guard.damaged(self.path, f"the columns of {group!r} differ in length")
        with guard.naming_damage(self.path):
            if len(set(names)) != len(names):
                raise ValueError(f"two columns of {group!r} have one name")
            for name, column in columns.items():
                check_column(name, column, {})
        return Table({name: columns[name].astype(dtype) for name, dtype in spec.columns.items()}, names, values)


def _stored_default(name: str) -> Any:
    value = ADDED_COLUMNS[name]
    return value.encode() if isinstance(value, str) else value


def _read_header(file: h5py.File, budget: Budget, path: Path, n_records: int, summed: bool) -> Header:
    said = {name: guard.read_text(file, name) for name in DESCRIPTION}
    numbers = {name: guard.read_integer(file, name) for name in ("first_id", "last_id", "closing")}
    if summed:
        sums.check(file, sums.crc_of_description(said, {"n_records": n_records, **numbers}))
    texts = {name: fields.read_json(said[name], budget, path) for name in ("metas", "sites", "coverage", "lost")}
    if not 0 <= numbers["first_id"] <= numbers["last_id"] + 1 <= fields.MOST:
        raise ValueError(f"entries {numbers['first_id']} to {numbers['last_id']}")
    return parse_header(texts, **{**numbers, "closing": bool(numbers["closing"])})


def _site_groups(groups: Mapping[str, guard.Group]) -> dict[str, str]:
    """Site to the group that holds its records. A module's group may be one, and hold others.

    HDF5 lists links by name; the header knows the model's order.
    """
    found: dict[str, str] = {}
    for name, group in groups.items():
        if group.is_site and name.startswith(f"{SITES_GROUP}/"):
            site = fields.clean(site_of(name))
            if site in found:
                raise ValueError(f"two groups hold the site {site!r}")
            found[site] = name
    return found


def _describe(file: h5py.File, name: str, group: guard.Group, summed: bool) -> _Site:
    """A site's axes and datasets; every array of it has the type and the shape it is read with."""
    arrays = group.arrays
    datasets = tuple(dataset for dataset in DATASETS if dataset in arrays)
    dims = {"step", "sequence", *(dim for dataset in datasets for dim in DATASETS[dataset])}
    extent = {dim: _axis(arrays, name, dim) for dim in sorted(dims)}
    for column, dtype in RECORD_COLUMNS.items():
        if column in arrays or column not in ADDED_COLUMNS:
            _check_stored(arrays, name, column, dtype, (extent["step"],))
    for column in SEQUENCE_COLUMNS:
        _check_stored(arrays, name, column, np.dtype("<i4"), (extent["step"], extent["sequence"]))
    for dataset in datasets:
        shape = tuple(extent[dim] for dim in ("step", *DATASETS[dataset]))
        _check_stored(arrays, name, dataset, dtype_of(dataset), shape)
    if datasets:
        count = _axis(arrays, name, DATASET_AXIS)
        _check_stored(arrays, name, DATASET_AXIS, np.dtype("S1"), (count,))
        _check_stored(arrays, name, RECORDED, np.dtype("i1"), (extent["step"], count))
        if summed:
            _check_stored(arrays, name, sums.CHECKSUM, sums.CHECKSUM_TYPE, (extent["step"], count))
        if sorted(_text(file[f"{name}/{DATASET_AXIS}"], summed)) != sorted(datasets):
            raise ValueError(f"{name!r} lists other arrays than it holds")
    gates: tuple[str, ...] = ()
    if "gate" in extent:
        _check_stored(arrays, name, "gate", np.dtype("S1"), (extent["gate"],))
        gates = _text(file[f"{name}/gate"], summed)
        if len(set(gates)) != len(gates):
            raise ValueError(f"two gates of {name!r} have one name")
    return _Site(name, extent, datasets, gates)


def _axis(arrays: Mapping[str, guard.Stored], group: str, name: str) -> int:
    if name not in arrays or len(arrays[name].shape) != 1 or not arrays[name].shape[0]:
        raise UnsafeFileError(f"{group}/{name} is no axis.")
    return arrays[name].shape[0]


def _check_stored(
    arrays: Mapping[str, guard.Stored], group: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    """Refuse an array of another type or shape than gradscope writes."""
    if name not in arrays:
        raise ValueError(f"{group}/{name} is missing")
    found = arrays[name]
    text = dtype.kind == "S" and found.dtype.kind == "S" and found.dtype.itemsize <= _MAX_NAME
    if found.shape != shape or not (text or found.dtype.newbyteorder("<") == dtype):
        raise ValueError(f"{group}/{name} is {found.dtype} of shape {found.shape}, wanted {dtype} of {shape}")


def _text(dataset: h5py.Dataset, summed: bool) -> tuple[str, ...]:
    return tuple(bytes(value).decode("utf-8", "replace") for value in sums.read(dataset, summed))
