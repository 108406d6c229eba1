"""Parts as pandas tables. pandas is imported when a table is asked for: opening a run stays quick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradscope.schema import CLIPS_GROUP, DATASETS, PARAMETERS_GROUP, ROLES, STEPS_GROUP, ClipEvent
from gradscope.store.budget import check_padding
from gradscope.store.part import ALL, RECORD_COLUMNS, TABLES, Part, stretches

if TYPE_CHECKING:
    import pandas as pd

FLAGS = ("", "zero", "below-normal", "non-finite")


def records(parts: Sequence[Part], site: str) -> pd.DataFrame:
    """One row per record at a site."""
    import pandas as pd

    frame = pd.DataFrame(
        {
            name: np.concatenate([np.empty(0, dtype), *(part.column(site, name) for part in parts)])
            for name, dtype in RECORD_COLUMNS.items()
        }
    )
    frame["skipped"] = frame["skipped"].astype(bool)
    frame["role"] = [ROLES[role] if 0 <= role < len(ROLES) else "other" for role in frame["role"]]
    frame["dropped"] = frame["role"] == "dropped"
    return frame


def norms(parts: Sequence[Part], site: str, dataset: str) -> pd.DataFrame:
    """Tidy table of one dataset; see `Run.norms`."""
    pieces = [_tidy(part, site, dataset) for part in parts if dataset in part.datasets(site)]
    return _norms(parts, site, {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})


def norms_in_pieces(parts: Sequence[Part], site: str, dataset: str, most: int) -> Iterator[pd.DataFrame]:
    """The rows of :func:`norms` a few at a time: arrays of up to ``most`` bytes are read at once."""
    for part in parts:
        if dataset in part.datasets(site):
            columns = _Columns(part, site, dataset)
            for records in stretches(part, site, dataset, most):
                yield _norms(parts, site, _tidy(part, site, dataset, records, columns))


def _norms(parts: Sequence[Part], site: str, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(columns)
    if "gate" in columns:
        gates = max((part.gates(site) for part in parts), key=len)
        frame["gate"] = pd.Categorical.from_codes(columns["gate"], categories=list(gates))
    frame["flag"] = pd.Categorical.from_codes(columns["flag"], categories=list(FLAGS))
    return frame


class _Columns:
    """What is known of each record of a dataset, read once."""

    def __init__(self, part: Part, site: str, dataset: str) -> None:
        self.recorded = part.recorded(site, dataset)
        named = ("length", "after", "step", "micro", "attempt", "rank", "smallest_normal")
        self._read = {name: part.column(site, name) for name in named}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read[name]


def _tidy(
    part: Part, site: str, dataset: str, records: slice = ALL, columns: _Columns | None = None
) -> dict[str, np.ndarray]:
    """Columns of the values that exist, padding left out."""
    values, dims = part.array(site, dataset, records), DATASETS[dataset]
    known = columns or _Columns(part, site, dataset)
    inside = _inside(known["length"][records], dims, values.shape)
    mask = np.broadcast_to(known.recorded[records].reshape(-1, *[1] * len(dims)) & inside, values.shape)
    index = np.nonzero(mask)
    norm = values[index].astype(np.float64)
    axes = {dim: index[axis] for axis, dim in enumerate(dims, 1)}
    if "lag" in axes:  # lags count from the end of the whole sequence, which may go on in another layer
        axes["lag"] = axes["lag"] + known["after"][records][index[0]]
    whose = {name: known[name][records][index[0]] for name in ("step", "micro", "attempt", "rank")}
    smallest = known["smallest_normal"][records][index[0]]
    who = {name: whose[name] for name in ("micro", "attempt", "rank")}
    return {"step": whose["step"], **axes, "norm": norm, **who, "flag": _flags(norm, smallest)}


def _inside(lengths: np.ndarray, dims: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Which entries lie within their sequence, broadcastable to ``shape``."""
    inside = np.ones([1] * len(shape), bool)
    longest = lengths.max(axis=1, initial=0)
    for axis, dim in enumerate(dims, 1):
        if dim not in {"lag", "time"}:
            continue
        where = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
        limit = lengths if dims[0] == "sequence" else longest
        inside = inside & (where < limit.reshape(*limit.shape, *[1] * (len(shape) - limit.ndim)))
    if dims[0] == "sequence":
        inside = inside & (lengths > 0).reshape(*lengths.shape, *[1] * (len(shape) - 2))
    return inside


def _flags(norm: np.ndarray, smallest_normal: np.ndarray) -> np.ndarray:
    size = np.abs(norm)
    flags = np.zeros(len(norm), np.int8)
    flags[size < smallest_normal] = FLAGS.index("below-normal")
    flags[size == 0] = FLAGS.index("zero")
    flags[~np.isfinite(norm)] = FLAGS.index("non-finite")
    return flags


def table(parts: Sequence[Part], group: str, path: Path | str = "the run") -> pd.DataFrame:
    """One of the run's tables; see `Run.steps`, `Run.clips`, `Run.parameters`."""
    import pandas as pd

    order = {
        CLIPS_GROUP: ["attempt", "rank", *ClipEvent.__dataclass_fields__],
        PARAMETERS_GROUP: ["step", "micro", "attempt", "rank"],
    }.get(group, ["step", "attempt", "rank", "time"])
    tables = [part.table(group) for part in parts]
    names = {name for table in tables for name in table.names}
    check_padding(8 * len(names) * sum(map(len, tables)), sum(table.values.nbytes for table in tables), path)
    keep = [t.columns["measured"] > 0 if "measured" in t.columns else slice(None) for t in tables]
    columns = {
        name: np.concatenate([np.empty(0, dtype), *(t.columns[name][k] for t, k in zip(tables, keep, strict=True))])
        for name, dtype in TABLES[group].columns.items()
    }
    frame = pd.DataFrame({name: columns[name] for name in order})
    if group == CLIPS_GROUP:
        for name in ("kind", "place", "part"):
            values = columns[name].tolist()
            known = {value: value.decode("utf-8", "replace") for value in set(values)}  # few, and each kept once
            frame[name] = [known[value] for value in values]
    named = [
        pd.DataFrame(t.values[k], columns=pd.Index(t.names, dtype=object)) for t, k in zip(tables, keep, strict=True)
    ]
    logged = pd.concat(named, ignore_index=True) if named else pd.DataFrame()
    # A scalar may be called "step" too: the run's own column keeps the name, the logged one says what it is.
    logged.columns = [f"logged {name}" if name in order else name for name in logged.columns]
    whole = pd.concat([frame, logged], axis=1)
    return _one_row_a_step(whole) if group == STEPS_GROUP else whole


def _one_row_a_step(steps: pd.DataFrame) -> pd.DataFrame:
    """One row for each step: what is logged after a flush in the middle of a step is written as a row of its own."""
    whose = ["attempt", "rank", "step"]
    if not steps.duplicated(whose).any():
        return steps
    merged = steps.groupby(whose, sort=False, as_index=False).last()  # of each column the last number there is
    return merged[steps.columns]
