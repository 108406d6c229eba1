"""Journal entries as bytes: a JSON header and the raw arrays behind it. No pickle.

::

    payload = uint32 header length | header, JSON in ASCII | int32 and float arrays, little-endian, back to back
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, Union

import numpy as np

from gradscope.errors import SettingError, UnknownNameError
from gradscope.schema import DATASETS, ClipEvent, Record, SiteRecord, StepRow
from gradscope.store import fields

Entry = Union[Record, StepRow, ClipEvent]  # noqa: UP007  (a runtime alias, Python 3.10)

RECORD, STEP, CLIP = 1, 2, 3

_LENGTH = struct.Struct("<I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_INT = np.dtype("<i4")
_FLOAT = np.dtype("<f8")
_FLOAT32 = np.dtype("<f4")


_CLIP_COUNTS = {"step", "parameters", "effective", "passes", "foreach", "overflow"}
_MOST_ALONG_AN_AXIS = 2**31 - 1
#: A sequence without a norm against lag may be so long.
_LONGEST = 2**28

_step, _small = fields.within(0), fields.within(-(2**31), 2**31 - 1)
_RECORD_CHECKS: dict[str, fields.Check] = {
    "step": _step, "micro": _small, "time": fields.is_number, "loss_scale": fields.is_number,
    "skipped": fields.is_flag, "role": fields.within(0, 127),
    "sites": lambda value: isinstance(value, list) and all(isinstance(site, list) and site for site in value),
    "parameters": lambda value: isinstance(value, list),
}  # fmt: skip
_STEP_CHECKS: dict[str, fields.Check] = {"step": _step, "time": fields.is_number, "scalars": fields.is_object}
_CLIP_CHECKS: dict[str, fields.Check] = {
    **dict.fromkeys(ClipEvent.__dataclass_fields__, fields.is_number),
    **dict.fromkeys(("kind", "place", "part"), fields.is_text),
    **dict.fromkeys(_CLIP_COUNTS, _small),
    "step": _step,
}
#: Of non-finite sequences, steps before and steps after.
_SITE_CHECKS = (fields.within(0, 2**31 - 1), fields.within(-1), fields.within(0))


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
        header = json.loads(payload[_LENGTH.size : _LENGTH.size + length].decode("ascii"))
        if kind == RECORD:
            return _decode_record(header, payload, _LENGTH.size + length)
        if _LENGTH.size + length != len(payload):
            raise CorruptEntryError("bytes left over")
        if kind == STEP:
            return _decode_step(header)
        if kind == CLIP:
            return ClipEvent(**_cleaned(_CLIP_CHECKS, header, "a clipping call"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise CorruptEntryError(f"not a journal entry: {error}") from error
    raise CorruptEntryError(f"unknown kind of journal entry: {kind}")


def items_of(payload: bytes) -> int:
    """About how many values the JSON of an entry holds, before it is read."""
    (length,) = _LENGTH.unpack_from(payload) if len(payload) >= _LENGTH.size else (0,)
    text = payload[_LENGTH.size : _LENGTH.size + length]
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _cleaned(checks: Mapping[str, fields.Check], entry: Any, what: str) -> dict[str, Any]:
    found = fields.typed(checks, entry, what)
    return {name: fields.clean(value) if isinstance(value, str) else value for name, value in found.items()}


def _decode_step(header: Any) -> StepRow:
    known = fields.typed(_STEP_CHECKS, header, "a step")
    scalars = known["scalars"]
    if not all(fields.is_text(name) and isinstance(value, int | float) for name, value in scalars.items()):
        raise CorruptEntryError("a scalar that is no number")
    return StepRow(
        known["step"], float(known["time"]), {fields.clean(name): float(value) for name, value in scalars.items()}
    )


class _Reader:
    """Takes arrays off a payload, front to back."""

    def __init__(self, payload: bytes, offset: int) -> None:
        self.payload, self.offset = payload, offset

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        if any(not fields.is_whole(size) or not 0 <= size <= _MOST_ALONG_AN_AXIS for size in shape):
            raise CorruptEntryError(f"shape {shape}")
        count = math.prod(shape)
        if count * dtype.itemsize > len(self.payload) - self.offset:
            raise CorruptEntryError("more values announced than there are")
        array = np.frombuffer(self.payload, dtype, count, self.offset).reshape(shape)
        self.offset += array.nbytes
        return array


def _decode_record(header: Any, payload: bytes, offset: int) -> Record:
    known = fields.typed(_RECORD_CHECKS, header, "a record")
    reader = _Reader(payload, offset)
    sites = {_name(site[0]): _decode_site(site, reader) for site in known["sites"]}
    names = [_name(name) for name in known["parameters"]]
    values = reader.take(_FLOAT, (len(names),)).tolist()
    if reader.offset != len(payload):
        raise CorruptEntryError("bytes left over")
    if len(sites) != len(known["sites"]) or len(set(names)) != len(names):
        raise CorruptEntryError("a name that stands twice")
    return Record(
        step=known["step"],
        micro=known["micro"],
        time=float(known["time"]),
        sites=sites,
        parameters=dict(zip(names, values, strict=True)),
        loss_scale=float(known["loss_scale"]),
        skipped=known["skipped"],
        role=known.get("role", 0),
    )


def _name(name: Any) -> str:
    if not fields.is_text(name):
        raise CorruptEntryError("a name that is no text")
    return fields.clean(name)


def _decode_site(site: list[Any], reader: _Reader) -> SiteRecord:
    _, count, smallest_normal, nonfinite, carried, described, *after = site
    if not all(check(value) for check, value in zip(_SITE_CHECKS, (nonfinite, carried, *after), strict=False)):
        raise CorruptEntryError("a count out of range")
    if not fields.is_number(smallest_normal) or not 0 <= smallest_normal < math.inf:
        raise CorruptEntryError("a smallest normal number out of range")
    lengths, rows = reader.take(_INT, (count,)), reader.take(_INT, (count,))
    arrays: dict[str, np.ndarray] = {}
    for name, shape in described:
        dims = DATASETS.get(name)
        if dims is None or name in arrays or len(shape) != len(dims) or (dims[0] == "sequence" and shape[0] != count):
            raise CorruptEntryError(f"dataset {name!r} of shape {shape}")
        arrays[name] = reader.take(dtype_of(name), tuple(shape))
    _check_sequences(lengths, rows, arrays)
    return SiteRecord(lengths, rows, float(smallest_normal), arrays, nonfinite, carried, *after[:1])


def _check_sequences(lengths: np.ndarray, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    axes = [
        size
        for name, values in arrays.items()
        for dim, size in zip(DATASETS[name], values.shape, strict=True)
        if dim in ("lag", "time")
    ]
    if lengths.min(initial=0) < 0 or rows.min(initial=0) < -1 or lengths.max(initial=0) > max(axes, default=_LONGEST):
        raise CorruptEntryError("a sequence of impossible length or row")
