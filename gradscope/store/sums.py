"""CRC-32 of what a sealed file holds: a changed byte in it is told, never read as another number.

HDF5's own checksums cover chunks and headers, not small arrays, long attributes, or which chunk is where.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

#: The attribute of an array that holds its checksum; at the root, that of the file's description.
ATTRIBUTE = "crc32"
#: The array of a site that holds one for each record and dataset, so that a stretch can be checked.
CHECKSUM = "checksum"
CHECKSUM_TYPE = np.dtype("<u4")
#: The first format that has them.
SINCE = (1, 2)


def crc(values: np.ndarray, before: int = 0) -> int:
    """Checksum of an array's bytes as they are stored, going on from one of what stands ``before``."""
    little = values.dtype.newbyteorder("<")
    return zlib.crc32(np.ascontiguousarray(values, little).reshape(-1).view(np.uint8).data, before)


def crc_of_rows(values: np.ndarray) -> np.ndarray:
    """One for each row, shape ``(len(values),)``."""
    rows = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(len(values), -1).view(np.uint8)
    return np.fromiter((zlib.crc32(row.data) for row in rows), CHECKSUM_TYPE, len(values))


def crc_of_description(texts: Mapping[str, str], numbers: Mapping[str, int]) -> int:
    """Of what a file says of itself."""
    said = [f"{name}={value}" for name, value in sorted({**texts, **numbers}.items())]
    return zlib.crc32("\0".join(said).encode("utf-8", "backslashreplace"))


def state(owner: h5py.Dataset | h5py.Group, value: int) -> None:
    """Write a checksum beside what it is of."""
    owner.attrs.create(ATTRIBUTE, value, dtype=CHECKSUM_TYPE)


def check(owner: h5py.Dataset | h5py.Group, value: int) -> None:
    """Compare with what was written.

    Raises
    ------
    ValueError
    """
    name = ATTRIBUTE.encode()
    if not h5py.h5a.exists(owner.id, name):
        raise ValueError(f"{owner.name} has no checksum")
    attribute = h5py.h5a.open(owner.id, name)
    if attribute.shape != () or attribute.dtype != CHECKSUM_TYPE:
        raise ValueError(f"the checksum of {owner.name} is none")
    found = np.zeros((), CHECKSUM_TYPE)
    attribute.read(found)
    if int(found) != value:
        raise ValueError(f"{owner.name} differs from its checksum")


def check_rows(values: np.ndarray, stated: np.ndarray, what: str) -> None:
    """Compare records with theirs.

    Raises
    ------
    ValueError
    """
    if not np.array_equal(crc_of_rows(values), stated):
        raise ValueError(f"{what} differs from its checksum")


def read(variable: h5py.Dataset, summed: bool) -> np.ndarray[Any, Any]:
    """A whole array, compared with its checksum where it has one.

    Raises
    ------
    ValueError
    """
    values = np.asarray(variable[()])
    if summed:
        check(variable, crc(values))
    return values
