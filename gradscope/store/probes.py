"""What was measured on demand, in a file: arrays and JSON in one ``.npz``, nothing that could run.

``spectrum.save("lstm.npz", step=100)`` writes one; :func:`load_probe` reads it without torch and without the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.errors import RunDamagedError, RunNotFoundError, SettingError
from gradscope.schema import SiteInfo
from gradscope.store.budget import Budget
from gradscope.store.fields import read_json
from gradscope.store.header import parse_site

#: Written into every file.
SCHEMA = "gradscope-probe"

_HEADER = "header"


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A saved measurement, with the fields of what was saved (:class:`gradscope.Spectrum` and the like).

    Attributes
    ----------
    kind : str
        ``Spectrum``, ``SourceTarget`` or ``ClipWhatIf``.
    info : SiteInfo
    labels : dict
        What it was saved with: ``name``, ``step`` ...
    fields : dict
    """

    kind: str
    info: SiteInfo
    labels: dict[str, Any]
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"a saved {self.__dict__.get('kind', 'probe')} has no {name!r}")


def save_probe(measured: Any, path: str | os.PathLike[str], labels: Mapping[str, Any] | None = None) -> None:
    """Write a measurement, a dataclass with ``info``, arrays, mappings of arrays, tuples of numbers and plain values.

    Raises
    ------
    SettingError
        The name does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise SettingError(f"{path}: the file of a probe ends in .npz.")
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    for one in dataclasses.fields(measured):
        value = getattr(measured, one.name)
        if one.name == "info":
            continue
        if isinstance(value, np.ndarray):
            arrays[one.name] = value
        elif isinstance(value, tuple):
            arrays[f"{one.name}/"] = np.asarray(value, dtype=np.float64)
        elif isinstance(value, Mapping):
            arrays |= {f"{one.name}/{key}": array for key, array in value.items()}
        else:
            plain[one.name] = value
    header = {
        "schema": SCHEMA, "kind": type(measured).__name__, "info": measured.info.to_json(), "plain": plain,
        "labels": dict(labels or {}),
    }  # fmt: skip
    with path.open("wb") as file:
        np.savez_compressed(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]


def load_probe(path: str | os.PathLike[str]) -> Probe:
    """Read what :func:`save_probe` wrote.

    Raises
    ------
    RunNotFoundError
    RunDamagedError
        No such file of gradscope's.
    UnsafeFileError
        It would take more memory than one of its size may.
    """
    path = Path(path)
    if not path.is_file():
        raise RunNotFoundError(f"{path}: no such file.")
    file = path.resolve()  # a link to a file is the user's own choice
    try:
        budget = Budget.of([file])
        with zipfile.ZipFile(file) as members:
            _check_members(members, budget, path)
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        header = read_json(str(found.pop(_HEADER)), budget, path)
        if header["schema"] != SCHEMA:
            raise KeyError(header["schema"])
        return _probe(header, found)
    except _FAULTS as error:
        raise RunDamagedError(f"{path}: not a probe that gradscope saved ({type(error).__name__}: {error}).") from None


#: What a file raises that is no probe, or a damaged one. numpy's own parser of headers raises SyntaxError, and zipfile
#: a RuntimeError for what is encrypted and NotImplementedError for how it is packed.
_FAULTS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, SyntaxError, RuntimeError,
    MemoryError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _check_members(members: zipfile.ZipFile, budget: Budget, path: Path) -> None:
    """Look at the size of every array before one is allocated: numpy takes it from the array's own header."""
    listed = members.infolist()
    budget.take("files", len(listed), path)
    for member in listed:
        budget.take("bytes", member.file_size, path)
        with members.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename!r} announces more than it holds")


def _probe(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Probe:
    fields: dict[str, Any] = dict(header["plain"])
    for name, array in arrays.items():
        whole, slash, part = name.partition("/")
        if not slash:
            fields[whole] = array
        elif part:
            fields.setdefault(whole, {})[part] = array
        else:
            fields[whole] = tuple(map(float, array))
    return Probe(str(header["kind"]), parse_site(header["info"]), dict(header["labels"]), fields)
