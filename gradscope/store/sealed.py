"""A sealed segment, or a packed file, as a part of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradscope.errors import NotRecordedError, UnsafeFileError
from gradscope.schema import DATASETS, SCHEMA, SITES_GROUP
from gradscope.store import guard
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
)


@dataclass(frozen=True)
class _Site:
    """What a site's group contains."""

    group: str
    extent: dict[str, int]
    datasets: tuple[str, ...]
    gates: tuple[str, ...]


class SealedPart:
    """A part in an HDF5 file, which is opened for each read: nothing stays open, but inside :meth:`opened`.

    Raises
    ------
    RunDamagedError, SchemaVersionError, UnsafeFileError
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        with guard.open_hdf5(path) as file:
            if "schema" not in file.attrs or guard.read_text(file, "schema") != SCHEMA:
                raise guard.damaged(path, "it is HDF5, but no gradscope run")
            check_version(guard.read_text(file, "schema_version"), path)
            guard.check_hdf5(file, path)
            self.header = _read_header(file)
            self._n_records = guard.read_integer(file, "n_records")
            self._sites = {site_of(group.name[1:]): _describe(group) for group in _site_groups(file)}

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
        dims = ("step", "sequence") if name in SEQUENCE_COLUMNS else ("step",)
        dtype = RECORD_COLUMNS.get(name, np.dtype("<i4"))
        if name in ADDED_COLUMNS and not self._has(self._sites[site].group, name):
            return np.full(self._sites[site].extent["step"], ADDED_COLUMNS[name], dtype)
        return self._read(site, name, dims).astype(dtype, copy=False)

    def recorded(self, site: str, dataset: str) -> np.ndarray:
        described = self._sites[site]
        if dataset not in described.datasets:
            return np.zeros(described.extent["step"], bool)
        with self._open() as file:
            group = file[described.group]
            names = _text(group[DATASET_AXIS])
            return group[RECORDED][:, names.index(dataset)].astype(bool)

    def array(self, site: str, dataset: str, records: slice = ALL) -> np.ndarray:
        if dataset not in self._sites[site].datasets:
            raise NotRecordedError(f"{dataset} was not recorded at {site!r}")
        values = self._read(site, dataset, ("step", *DATASETS[dataset]), records)
        return values.astype(dtype_of(dataset), copy=False)

    def _has(self, group: str, name: str) -> bool:
        with self._open() as file:
            return name in file[group]

    def _read(self, site: str, name: str, dims: tuple[str, ...], records: slice = ALL) -> np.ndarray:
        described = self._sites[site]
        with self._open() as file:
            variable = file[described.group][name]
            if variable.shape != tuple(described.extent[dim] for dim in dims):
                raise guard.damaged(self.path, f"{name} at {site!r} has shape {variable.shape}")
            return np.asarray(variable[records])

    def table(self, group: str) -> Table:
        spec = TABLES[group]
        with self._open() as file:
            found = file[group]
            rows = len(found["step"])
            columns = {
                name: np.asarray(found[name][()])
                if name in found or name not in ADDED_COLUMNS
                else np.full(rows, _stored_default(name), dtype)
                for name, dtype in spec.columns.items()
            }
            names = _text(found[spec.name_axis]) if spec.name_axis else ()
            values = file[group][spec.values][()] if spec.name_axis else np.empty((rows, 0))
        if any(column.shape != (rows,) for column in columns.values()) or values.shape != (rows, len(names)):
            raise guard.damaged(self.path, f"the columns of {group!r} differ in length")
        return Table({name: columns[name].astype(dtype) for name, dtype in spec.columns.items()}, names, values)


def _stored_default(name: str) -> Any:
    value = ADDED_COLUMNS[name]
    return value.encode() if isinstance(value, str) else value


def _read_header(file: h5py.File) -> Header:
    texts = {name: json.loads(guard.read_text(file, name)) for name in ("metas", "sites", "coverage", "lost")}
    numbers = {name: guard.read_integer(file, name) for name in ("first_id", "last_id")}
    return parse_header(texts, closing=bool(guard.read_integer(file, "closing")), **numbers)


def _site_groups(file: h5py.File) -> list[h5py.Group]:
    """Groups that hold records, in the order of their writing. A module's group may be one, and hold others."""
    found: list[h5py.Group] = []

    def visit(group: h5py.Group) -> None:
        for child in group.values():
            if isinstance(child, h5py.Group):
                if "site" in child.attrs:
                    found.append(child)
                visit(child)

    if SITES_GROUP in file:
        visit(file[SITES_GROUP])
    # HDF5 lists links by name; the header knows the model's order.
    return found


def _describe(group: h5py.Group) -> _Site:
    datasets = tuple(name for name in DATASETS if isinstance(group.get(name), h5py.Dataset))
    dims = {"step", "sequence", *(dim for name in datasets for dim in DATASETS[name])}
    extent = {dim: _axis(group, dim).shape[0] for dim in sorted(dims)}
    for name in datasets:
        if group[name].shape != tuple(extent[dim] for dim in ("step", *DATASETS[name])):
            raise ValueError(f"{group[name].name} has shape {group[name].shape}")
    gates = _text(group["gate"]) if "gate" in extent else ()
    return _Site(group.name, extent, datasets, gates)


def _axis(group: h5py.Group, name: str) -> h5py.Dataset:
    axis = group[name]
    if not isinstance(axis, h5py.Dataset) or axis.ndim != 1:
        raise UnsafeFileError(f"{group.name}/{name} is no axis.")
    return axis


def _text(dataset: h5py.Dataset) -> tuple[str, ...]:
    return tuple(bytes(value).decode("utf-8", "replace") for value in dataset[()])
