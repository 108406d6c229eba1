"""Writing: parts become one HDF5 file, put in place by a single rename.

Of a segment it is built in memory, of a packed run in a `Steady` file. h5py itself never holds a file that is being
written: with a full disk such a file takes the interpreter down at exit, and a crash leaves it unreadable.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gradscope.schema import DATASETS, SCHEMA, SCHEMA_VERSION
from gradscope.store import sums
from gradscope.store.codec import dtype_of
from gradscope.store.layout import group_of
from gradscope.store.part import (
    DATASET_AXIS,
    RECORD_COLUMNS,
    RECORDED,
    SEQUENCE_COLUMNS,
    STRETCH_BYTES,
    TABLES,
    Header,
    Part,
    TableSpec,
    check_size,
    stretches,
)

#: The texts of a file's description that a reader goes by.
DESCRIPTION = ("schema", "schema_version", "metas", "sites", "coverage", "lost")
_CHUNK_BYTES = 1 << 20
_UNCHUNKED_BYTES = 4096


def build(parts: Sequence[Part], header: Header, *, compress: bool = True) -> memoryview:
    """One HDF5 file, as bytes, that holds every record of ``parts`` in their order.

    Readable with ``xarray.open_dataset(file, group="sites/lstm/l0", engine="h5netcdf")``: every axis is a dimension
    scale in the same group. Only deflate, shuffle and fletcher32 are used, and no variable-length data.
    ``compress=False`` is some times faster, for a segment that is sealed while a training waits.
    """
    buffer = io.BytesIO()
    write(buffer, parts, header, compress=compress)
    return buffer.getbuffer()


def write(
    target: io.IOBase,
    parts: Sequence[Part],
    header: Header,
    *,
    compress: bool = True,
    check: Callable[[], None] = lambda: None,
) -> None:
    """:func:`build` into a file, with a few MiB of the arrays in memory at a time.

    The same records give the same bytes, however they are cut into parts. ``check`` is called after every stretch: what
    it raises ends the writing.
    """
    # v108: attributes beyond 64 KiB (a large model's description) need dense attribute storage.
    with h5py.File(target, "w", libver=("v108", "v110")) as file:
        _write_attributes(file, header, sum(part.n_records for part in parts))
        for site in dict.fromkeys(site for part in parts for site in part.sites()):
            # A module's group may be there already: a site "lstm" beside "lstm/l0".
            _SiteWriter(file.require_group(group_of(site)), site, parts, compress, check).write()
        for name, spec in TABLES.items():
            _write_table(file.create_group(name), spec, name, parts, compress, check)


def _write_attributes(file: h5py.File, header: Header, n_records: int) -> None:
    attrs = file.attrs
    first = header.metas[0] if header.metas else None
    texts = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "gradscope_version": first.gradscope_version if first else "",
        "torch_version": first.torch_version if first else "",
        "created_at": first.created_at if first else "",
        "model": to_json(first.model if first else {}),
        "settings": to_json(first.settings if first else {}),
        "metas": to_json([asdict(meta) for meta in header.metas]),
        "sites": to_json([info.to_json() for info in header.sites.values()]),
        "coverage": to_json([entry.to_json() for entry in header.coverage]),
        "lost": to_json(header.lost),
    }
    for name, text in texts.items():
        _set_text(attrs, name, text)
    numbers = {"n_records": n_records, "first_id": header.first_id, "last_id": header.last_id}
    numbers["closing"] = int(header.closing)
    for name, number in numbers.items():
        attrs.create(name, number, dtype=np.int64)
    sums.state(file, sums.crc_of_description({name: texts[name] for name in DESCRIPTION}, numbers))


def to_json(value: Any) -> str:
    """JSON of anything: what JSON has no word for is written as its text."""
    return json.dumps(value, default=str)


def _set_text(attrs: Any, name: str, text: str) -> None:
    raw = text.encode("utf-8", "backslashreplace")
    attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(len(raw), 1)))


@dataclass
class _SiteWriter:
    """Writes the group of one site."""

    group: h5py.Group
    site: str
    parts: Sequence[Part]
    compress: bool
    check: Callable[[], None]

    def __post_init__(self) -> None:
        self.parts = [part for part in self.parts if self.site in part.sites()]
        self.extents = [part.extent(self.site) for part in self.parts]
        self.sizes = {
            dim: max(e.get(dim, 0) for e in self.extents) for dim in dict.fromkeys(d for e in self.extents for d in e)
        }
        self.sizes["step"] = sum(extent["step"] for extent in self.extents)
        present = {name for part in self.parts for name in part.datasets(self.site)}
        self.datasets = [name for name in DATASETS if name in present]

    def write(self) -> None:
        _set_text(self.group.attrs, "site", self.site)
        self._write_axes()
        for name, dtype in RECORD_COLUMNS.items():
            if name != "step":
                self._write(name, ("step",), dtype, 0, self._columns(name))
        for name, fill in SEQUENCE_COLUMNS.items():
            self._write(name, ("step", "sequence"), np.dtype("<i4"), fill, self._columns(name))
        by_record = np.empty((self.sizes["step"], len(self.datasets)), sums.CHECKSUM_TYPE)
        for column, name in enumerate(self.datasets):
            dims = ("step", *DATASETS[name])
            self._write(name, dims, dtype_of(name), np.nan, self._stretches(name), by_record[:, column])
        if self.datasets:
            self._write(RECORDED, ("step", DATASET_AXIS), np.dtype("i1"), 0, self._recorded())
            self._write(sums.CHECKSUM, ("step", DATASET_AXIS), sums.CHECKSUM_TYPE, 0, iter([by_record]))

    def _write_axes(self) -> None:
        _write_axis(self.group, "step", np.concatenate([part.column(self.site, "step") for part in self.parts]))
        for dim, size in self.sizes.items():
            if dim == "gate":
                names = max((part.gates(self.site) for part in self.parts), key=len)
                _write_axis(self.group, dim, _fixed(names))
            elif dim != "step":
                _write_axis(self.group, dim, np.arange(size, dtype=np.int32))
        if self.datasets:
            _write_axis(self.group, DATASET_AXIS, _fixed(self.datasets))

    def _columns(self, name: str) -> Iterator[np.ndarray]:
        return (part.column(self.site, name) for part in self.parts)

    def _stretches(self, name: str) -> Iterator[np.ndarray]:
        for part, extent in zip(self.parts, self.extents, strict=True):
            if name in part.datasets(self.site):
                for records in stretches(part, self.site, name):
                    yield part.array(self.site, name, records)
            else:
                yield np.empty((extent["step"], *[0] * len(DATASETS[name])))

    def _recorded(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield np.stack([part.recorded(self.site, name) for name in self.datasets], axis=1)

    def _write(
        self,
        name: str,
        dims: tuple[str, ...],
        dtype: np.dtype[Any],
        fill: float,
        pieces: Iterator[np.ndarray],
        by_record: np.ndarray | None = None,
    ) -> None:
        shape = tuple(len(self.datasets) if dim == DATASET_AXIS else self.sizes[dim] for dim in dims)
        check_size(shape, dtype, f"{self.site} {name}")
        variable = _create(self.group, name, dims, shape, dtype, fill, self.compress)
        _write_pieces(variable, pieces, fill, self.check, by_record)


def _write_table(
    group: h5py.Group, spec: TableSpec, name: str, parts: Sequence[Part], compress: bool, check: Callable[[], None]
) -> None:
    found = [(table.columns, table.names) for table in (part.table(name) for part in parts)]
    columns = {c: np.concatenate([np.empty(0, d), *(own[c] for own, _ in found)]) for c, d in spec.columns.items()}
    total = len(columns["step"])
    _write_axis(group, spec.axis, columns[spec.axis] if spec.axis in columns else np.arange(total, dtype=np.int64))
    for column, dtype in spec.columns.items():
        if column != spec.axis:
            variable = _create(group, column, (spec.axis,), (total,), dtype, None, compress)
            variable[...] = columns[column].astype(_stored(dtype))
            sums.state(variable, sums.crc(columns[column]))
            check()
    if not spec.name_axis:
        return
    names = tuple(dict.fromkeys(label for _, labels in found for label in labels))
    _write_axis(group, spec.name_axis, _fixed(names))
    shape = check_size((total, len(names)), np.dtype("<f8"), name)
    variable = _create(group, spec.values, (spec.axis, spec.name_axis), shape, np.dtype("<f8"), np.nan, compress)
    _write_pieces(variable, _values(parts, name, names), np.nan, check)


def _values(parts: Sequence[Part], name: str, names: Sequence[str]) -> Iterator[np.ndarray]:
    """The free columns of a table, under ``names``, a part at a time."""
    where = {label: position for position, label in enumerate(names)}
    for part in parts:
        table = part.table(name)
        values = np.full((len(table), len(names)), np.nan)
        values[:, [where[label] for label in table.names]] = table.values
        yield values


def _write_pieces(
    variable: h5py.Dataset,
    pieces: Iterator[np.ndarray],
    fill: float,
    check: Callable[[], None],
    by_record: np.ndarray | None = None,
) -> None:
    """Write rows as they come, ``fill`` where a piece is smaller than the axes, in stretches of whole chunks.

    A chunk that is written twice is compressed twice, and leaves a hole in the file. The checksum goes into an
    attribute, or one of each row into ``by_record``.
    """
    total, rest = variable.shape[0], variable.shape[1:]
    height = variable.chunks[0] if variable.chunks else max(total, 1)
    size = height * int(np.prod(rest)) * variable.dtype.itemsize
    rows = height * max(1, STRETCH_BYTES // max(size, 1))
    held = np.full((min(rows, total), *rest), fill, variable.dtype)
    start = used = whole = 0
    for piece in pieces:
        taken = 0
        while taken < len(piece):
            some = piece[taken : taken + len(held) - used]
            held[(slice(used, used + len(some)), *map(slice, some.shape[1:]))] = some
            taken, used = taken + len(some), used + len(some)
            if used == len(held) or start + used == total:
                variable[start : start + used] = held[:used]
                check()
                if by_record is None:
                    whole = sums.crc(held[:used], whole)
                else:
                    by_record[start : start + used] = sums.crc_of_rows(held[:used])
                start, used = start + used, 0
                held[...] = fill
    if by_record is None:
        sums.state(variable, whole)


def _write_axis(group: h5py.Group, name: str, values: np.ndarray) -> None:
    axis = group.create_dataset(name, data=values.astype(_stored(values.dtype)))
    axis.make_scale(name)
    sums.state(axis, sums.crc(values))


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Text is UTF-8, which numpy's bytes type does not say of itself."""
    return h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype


def _fixed(names: Iterable[str]) -> np.ndarray:
    """Names as fixed-length UTF-8 bytes (variable-length strings crash some readers, and slow all)."""
    raw = [name.encode("utf-8", "backslashreplace") for name in names]
    return np.array(raw, f"S{max(map(len, raw), default=1) or 1}")


def _create(
    group: h5py.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill: Any,
    compress: bool,
) -> h5py.Dataset:
    size = int(np.prod(shape)) * dtype.itemsize
    options: dict[str, Any] = {}
    if size > _UNCHUNKED_BYTES:
        options = {"chunks": _chunks(shape, dtype.itemsize), "fletcher32": True}
        if compress:  # higher levels gain nothing on mantissas
            options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    variable = group.create_dataset(name, shape, _stored(dtype), fillvalue=fill, **options)
    for axis, dim in enumerate(dims):
        variable.dims[axis].attach_scale(group[dim])
    return variable


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    chunk = list(shape)
    for axis in range(len(chunk)):
        rest = int(np.prod(chunk[axis + 1 :])) * itemsize
        chunk[axis] = max(1, min(chunk[axis], _CHUNK_BYTES // rest))
        if rest * chunk[axis] <= _CHUNK_BYTES:
            break
    return tuple(chunk)


# --- files -----------------------------------------------------------------------------------------------------------


def checksum_path(path: Path) -> Path:
    """The SHA-256 beside a segment, in the format of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def write_segment(path: Path, content: memoryview | bytes) -> None:
    """Put a segment and its checksum in place. A crash at any moment leaves the whole segment or none of it."""
    digest = hashlib.sha256(content).hexdigest()
    # The checksum first: a segment is never seen without one, and a checksum alone means nothing was sealed.
    write_durably(checksum_path(path), f"{digest}  {path.name}\n".encode())
    write_durably(path, content)


def write_durably(path: Path, content: memoryview | bytes) -> None:
    """Write a temporary file, fsync, rename, fsync the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
