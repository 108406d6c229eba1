"""Journal entries as bytes: a JSON header and the raw arrays behind it. No pickle.

::

    payload = uint32 header length | header, JSON in ASCII | int32 and float arrays, little-endian, back to back
"""

from __future__ import annotations

import json
import struct
from typing import Any, Union

import numpy as np

from gradscope.errors import SettingError, UnknownNameError
from gradscope.schema import DATASETS, ClipEvent, Record, SiteRecord, StepRow

Entry = Union[Record, StepRow, ClipEvent]  # noqa: UP007  (a runtime alias, Python 3.10)

RECORD, STEP, CLIP = 1, 2, 3

_LENGTH = struct.Struct("<I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_INT = np.dtype("<i4")
_FLOAT = np.dtype("<f8")
_FLOAT32 = np.dtype("<f4")


_CLIP_TEXTS = {"kind", "place", "part"}
_CLIP_COUNTS = {"step", "parameters", "effective", "passes", "foreach", "overflow"}


class CorruptEntryError(ValueError):
    """Bytes that no `encode` wrote."""


def dtype_of(dataset: str) -> np.dtype[Any]:
    """Stored type of a dataset: float64 for norms, float32 for whole tensors."""
    return _FLOAT32 if dataset.endswith("_tensor") else _FLOAT


def encode_record(record: Record) -> bytes:
    """Bytes of a record; its arrays are copied, so the caller may reuse them."""
    raw: list[memoryview] = []
    sites = [_encode_site(site, data, raw) for site, data in record.sites.items()]
    raw.append(_bytes(np.fromiter(record.parameters.values(), _FLOAT, len(record.parameters))))
    header = {
        "step": int(record.step),
        "micro": int(record.micro),
        "time": float(record.time),
        "loss_scale": float(record.loss_scale),
        "skipped": bool(record.skipped),
        "role": int(record.role),
        "sites": sites,
        "parameters": list(record.parameters),
    }
    return _join(header, raw)


def _encode_site(site: str, data: SiteRecord, raw: list[memoryview]) -> list[Any]:
    lengths = np.ascontiguousarray(data.lengths, _INT)
    rows = np.ascontiguousarray(data.rows, _INT)
    if lengths.ndim != 1 or lengths.shape != rows.shape:
        raise SettingError(f"site {site!r}: lengths {lengths.shape} and rows {rows.shape} must be equal vectors")
    raw += (_bytes(lengths), _bytes(rows))
    arrays = []
    for name, values in data.arrays.items():
        dims = DATASETS.get(name)
        if dims is None:
            raise UnknownNameError("dataset", name, DATASETS)
        array = np.asarray(values, dtype_of(name))
        if array.ndim != len(dims) or (dims[0] == "sequence" and array.shape[0] != len(lengths)):
            raise SettingError(f"site {site!r}: {name} has shape {array.shape}, wanted {dims} of {len(lengths)} rows")
        raw.append(_bytes(np.ascontiguousarray(array)))
        arrays.append([name, array.shape])
    return [
        site,
        len(lengths),
        float(data.smallest_normal),
        int(data.nonfinite),
        int(data.carried),
        arrays,
        int(data.after),
    ]


def encode_step(row: StepRow) -> bytes:
    """Bytes of a step's scalars."""
    scalars = {str(name): float(value) for name, value in row.scalars.items()}
    return _join({"step": int(row.step), "time": float(row.time), "scalars": scalars}, [])


def encode_clip(event: ClipEvent) -> bytes:
    """Bytes of a clipping call."""
    return _join(
        {
            name: value if isinstance(value, str) else int(value) if name in _CLIP_COUNTS else float(value)
            for name, value in vars(event).items()
        },
        [],
    )


def _bytes(array: np.ndarray) -> memoryview:
    """View a contiguous array as bytes: it is copied once, by `_join`."""
    return array.reshape(-1).view(np.uint8).data


def _join(header: dict[str, Any], raw: list[memoryview]) -> bytes:
    text = _to_json(header).encode("ascii")
    return b"".join((_LENGTH.pack(len(text)), text, *raw))


def decode(kind: int, payload: bytes) -> Entry:
    """Inverse of the ``encode`` functions, for bytes that may be anybody's.

    Arrays are views of ``payload``: their sizes cannot exceed what is there.

    Raises
    ------
    CorruptEntryError
    """
    try:
        (length,) = _LENGTH.unpack_from(payload)
        header = json.loads(payload[_LENGTH.size : _LENGTH.size + length])
        if kind == RECORD:
            return _decode_record(header, payload, _LENGTH.size + length)
        if kind == STEP:
            scalars = {str(name): float(value) for name, value in header["scalars"].items()}
            return StepRow(_integer(header["step"]), float(header["time"]), scalars)
        if kind == CLIP:
            return _decode_clip(header)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise CorruptEntryError(f"not a journal entry: {error}") from error
    raise CorruptEntryError(f"unknown kind of journal entry: {kind}")


def _decode_clip(header: dict[str, Any]) -> ClipEvent:
    event = ClipEvent(**header)
    texts = [value for name, value in header.items() if name in _CLIP_TEXTS]
    numbers = [value for name, value in header.items() if name not in _CLIP_TEXTS]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, (int, float)) for n in numbers):
        raise CorruptEntryError("a clipping call with a field that is no number")
    for name in _CLIP_COUNTS & header.keys():
        _integer(header[name])
    return event


def _integer(value: Any) -> int:
    number = int(value)
    if not -(2**62) < number < 2**62:
        raise CorruptEntryError(f"{value!r} is out of range")
    return number


class _Reader:
    """Takes arrays off a payload, front to back."""

    def __init__(self, payload: bytes, offset: int) -> None:
        self.payload, self.offset = payload, offset

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        if any(not isinstance(size, int) or size < 0 for size in shape):
            raise CorruptEntryError(f"shape {shape}")
        count = 1
        for size in shape:
            count *= size
        if count * dtype.itemsize > len(self.payload) - self.offset:
            raise CorruptEntryError("more values announced than there are")
        array = np.frombuffer(self.payload, dtype, count, self.offset).reshape(shape)
        self.offset += array.nbytes
        return array


def _decode_record(header: dict[str, Any], payload: bytes, offset: int) -> Record:
    reader = _Reader(payload, offset)
    sites = {str(site[0]): _decode_site(site, reader) for site in header["sites"]}
    names = [str(name) for name in header["parameters"]]
    values = reader.take(_FLOAT, (len(names),)).tolist()
    if reader.offset != len(payload):
        raise CorruptEntryError("bytes left over")
    return Record(
        step=_integer(header["step"]),
        micro=_integer(header["micro"]),
        time=float(header["time"]),
        sites=sites,
        parameters=dict(zip(names, values, strict=True)),
        loss_scale=float(header["loss_scale"]),
        skipped=bool(header["skipped"]),
        role=_integer(header.get("role", 0)),
    )


def _decode_site(site: list[Any], reader: _Reader) -> SiteRecord:
    _, count, smallest_normal, nonfinite, carried, described, *after = site
    lengths, rows = reader.take(_INT, (count,)), reader.take(_INT, (count,))
    arrays = {}
    for name, shape in described:
        dims = DATASETS.get(name)
        if dims is None or len(shape) != len(dims) or (dims[0] == "sequence" and shape[0] != count):
            raise CorruptEntryError(f"dataset {name!r} of shape {shape}")
        arrays[name] = reader.take(dtype_of(name), tuple(shape))
    return SiteRecord(
        lengths, rows, float(smallest_normal), arrays, _integer(nonfinite), _integer(carried), _integer(*after or [0])
    )
