"""What a figure can be drawn from besides runs: saved probes, and the CSV that stands beside every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from gradscope.errors import RunDamagedError, RunNotFoundError, SettingError
from gradscope.legible import from_cell
from gradscope.store.probes import Probe, load_probe

#: Columns of tables that hold names, whatever they look like.
NAMES = (
    "run", "line", "site", "quantity", "name", "model", "kind", "gate", "family", "init", "cell", "seed", "metric",
    "statement", "outcome", "where", "what", "met", "by", "panel", "norm_state", "token", "rows", "columns", "verdict",
    "metric_name",
)  # fmt: skip


def is_data(path: Path) -> bool:
    """Whether a path is a saved probe or the CSV of a figure, not a run."""
    return path.suffix in (".csv", ".npz")


def read_table(path: Path) -> pd.DataFrame:
    """The table behind a figure, from the CSV beside it.

    Raises
    ------
    RunNotFoundError, RunDamagedError
    """
    if not path.is_file():
        raise RunNotFoundError(f"{path}: no such file.")
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise RunDamagedError(f"{path}: no table that gradscope wrote ({error}).") from None
    raw = raw.rename(columns=from_cell).apply(lambda column: column.map(from_cell))
    # In a comparison ``metric`` is the number, and its name stands beside it.
    names = set(NAMES) - ({"metric"} if "metric_name" in raw else set())
    return pd.DataFrame({name: values if name in names else _parsed(values) for name, values in raw.items()})


def _parsed(values: pd.Series) -> pd.Series:
    """Numbers and truth values as such, where all are; a truth that is unknown is none."""
    unknown = values.isin(["nan", ""])
    if len(values[~unknown]) and set(values[~unknown]) <= {"True", "False"}:
        return values == "True"
    numbers = pd.to_numeric(values.mask(unknown), errors="coerce")
    if numbers[~unknown].isna().any():
        return values
    # to_numeric of pandas 2 misses the last digit of fractions.
    return values.mask(unknown).astype(float) if numbers.dtype.kind == "f" else numbers


def table_of(module: ModuleType, paths: Sequence[Path], options: Mapping[str, Any]) -> pd.DataFrame:
    """The table of a figure, from files.

    Raises
    ------
    SettingError
        Files of another kind than the figure needs, or more of them than it shows.
    RunNotFoundError, RunDamagedError
    """
    kind = module.__name__.rpartition(".")[2]
    if all(path.suffix == ".csv" for path in paths):
        if len(paths) > 1:
            raise SettingError(f"one CSV holds a whole figure; here are {len(paths)}.")
        data = read_table(paths[0])
        _refuse_foreign(module, data, paths[0])
        return data
    wanted = getattr(module, "PROBES", None)
    if wanted is None or any(path.suffix != ".npz" for path in paths):
        needed = "runs" if wanted is None else f"what {wanted}.save wrote (.npz)"
        raise SettingError(f"the figure {kind!r} is drawn from {needed}, or from the CSV of such a figure.")
    probes = [load_probe(path) for path in paths]
    for path, probe in zip(paths, probes, strict=True):
        if probe.kind != wanted:
            raise SettingError(f"{path}: holds a {probe.kind}; the figure {kind!r} needs a {wanted}.")
    try:
        found: pd.DataFrame = module.table(_measured(kind, paths, probes), **options)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        listed = ", ".join(map(str, paths))
        raise RunDamagedError(f"{listed}: not a whole {wanted} ({type(error).__name__}: {error}).") from None
    return found


def _measured(kind: str, paths: Sequence[Path], probes: Sequence[Probe]) -> Any:
    """The probes as the figure's table takes them; a name is that of the file where none was given."""
    if kind == "lyapunov":
        return {str(probe.labels.get("name", path.stem)): probe for path, probe in zip(paths, probes, strict=True)}
    if kind == "dynamics":
        through: dict[str, dict[int, Probe]] = {}
        for i, probe in enumerate(probes):
            through.setdefault(str(probe.labels.get("name", "")), {})[int(probe.labels.get("step", i))] = probe
        return through
    if len(probes) > 1:
        raise SettingError(f"the figure {kind!r} shows one measurement, here are {len(probes)}.")
    return probes[0]


def _refuse_foreign(module: ModuleType, data: pd.DataFrame, path: Path) -> None:
    """A CSV of another figure: say so rather than fail in the middle of drawing."""
    try:
        module.caption(data)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        kind = module.__name__.rpartition(".")[2]
        why = f"it has no column {error.args[0]}" if isinstance(error, KeyError) else str(error)
        beside = f"that is the CSV which 'gradscope plot {kind}' writes beside the figure"
        raise SettingError(f"{path}: not the data of a figure {kind!r}, {why}; {beside}.") from None
