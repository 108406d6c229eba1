"""Which sites, quantities and records of a run are looked at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError
from gradscope.reading.counted import Reading, read, read_all
from gradscope.schema import DATASETS, QUANTITIES
from gradscope.store import Run
from gradscope.words import few

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

#: Quantities with one norm per sequence and lag.
PER_LAG = tuple(name for name in QUANTITIES if DATASETS.get(name) == ("sequence", "lag"))


def run_names(runs: Sequence[Any]) -> list[str]:
    """One distinct name per run: its own, with as much of its path as tells equal names apart."""
    names = [str(run.name) for run in runs]
    if len(set(names)) < len(names):
        names = ["/".join([*getattr(run.path, "parts", ())[-2:-1], str(run.name)]) for run in runs]
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name} ({seen[name]})"
    return names


def per_lag(quantity: str | None) -> None:
    """Refuse a quantity that has no norm per lag.

    Raises
    ------
    UnknownNameError
    """
    if quantity is not None and quantity not in PER_LAG:
        raise UnknownNameError("quantity with one norm per lag", quantity, PER_LAG)


def sites_with(
    runs: Sequence[Any], quantity: str | None, site: str | Sequence[str] | None = None
) -> list[tuple[str, Reading, str, str]]:
    """``(run name, run, site, quantity)`` for every site to show, in order.

    Without a quantity each site shows the one that describes its memory (``SiteInfo.curve``), or the first recorded.

    Raises
    ------
    UnknownNameError
        A site that no run has.
    EmptyRunError
        Runs without a single site, or without a record that counts.
    NotRecordedError
        Nothing left to show; says what to record.
    """
    wanted = [site] if isinstance(site, str) else list(site) if site is not None else None
    readings = read_all(runs)
    known = sorted({name for run in runs for name in run.sites})
    for name in wanted or ():
        if name not in known:
            raise UnknownNameError("site", name, known)
    if not known:
        for run in runs:
            run.require_records()
        paths = ", ".join(str(run.path) for run in runs)
        raise EmptyRunError(f"{paths}: no record yet, so there is nothing to draw. Train at least one recorded step.")
    found = []
    for name, run in zip(run_names(runs), readings, strict=True):
        for at in run.sites:
            if wanted is None or at in wanted:
                there = recorded(run, at)
                shown = quantity or curve_quantity(run, at)
                if shown is not None and shown in there:
                    found.append((name, run, at, shown))
    if not found:
        raise not_recorded(runs, quantity or "hidden", wanted)
    counted = [one for one in found if one[1].counted(one[2])]
    if not counted:
        found[0][1].require(found[0][2])
    return counted


def recorded(run: Any, site: str) -> tuple[str, ...]:
    """Quantities recorded at a site; none where the site is known but no gradient ever arrived."""
    try:
        return tuple(run.quantities(site))
    except NotRecordedError:
        return ()


def curve_quantity(run: Any, site: str) -> str | None:
    """The quantity whose decay describes the site, or else the first recorded with a norm per lag."""
    with_lag = [name for name in recorded(run, site) if name in PER_LAG]
    own = run.site(site).curve
    # The direct gradient is no adjoint: its curve is never shown unless asked for.
    adjoints = [name for name in with_lag if name != "direct"]
    return own if own in with_lag else next(iter(adjoints), None)


def not_recorded(runs: Sequence[Any], quantity: str, sites: Sequence[str] | None = None) -> NotRecordedError:
    """The error for a quantity that no shown site has: what there is, and what to record to get it."""
    there = sorted({name for run in runs for site in run.sites for name in recorded(run, site)})
    where = f" at {', '.join(sites)}" if sites else ""
    paths = ", ".join(str(run.path) for run in runs)
    lacking = [run.site(site).lacks(quantity) for run in runs for site in sites or run.sites]
    advice = f"Record it with gradscope.record(..., quantities=[..., {quantity!r}])."
    if lacking and all(lacking):
        advice = f"No recording can hold it there: {lacking[0]}."
    return NotRecordedError(
        f"{paths}: {quantity!r} was not recorded{where} (recorded: {', '.join(there) or 'nothing'}). {advice}"
    )


def left_out(runs: Sequence[Any], shown: Collection[str], reason: str) -> dict[str, str]:
    """Names of the runs that a figure does not show, with why: what a table carries in ``attrs["left_out"]``."""
    return {name: reason for name in run_names(runs) if name not in shown}


def left_out_words(data: Any) -> list[str]:
    """One sentence on the runs that a table does not hold; nothing where it holds all."""
    missing: dict[str, list[str]] = {}
    for name, reason in data.attrs.get("left_out", {}).items():
        missing.setdefault(reason, []).append(name)
    return [f"Left out: {few(names)} ({reason})." for reason, names in missing.items()]


@dataclass(frozen=True, eq=False)
class Block:
    """One dataset at one recorded step: all records of the step (micro-batches, ranks).

    ``values`` has shape (record, \\*DATASETS[dataset]); ``after`` and ``carried`` count the steps of the same sequence
    behind the last and before the first of these, per record: lags begin at ``after``, timesteps at ``carried``.
    """

    step: int
    values: Floats
    lengths: NDArray[np.int64]
    smallest_normal: float
    after: NDArray[np.int64]
    carried: NDArray[np.int64]


def block(run: Run | Reading, site: str, dataset: str, step: int | str | None = None) -> Block:
    """``dataset`` at one step; by default the last with a finite value.

    Raises
    ------
    SettingError
        The step was not recorded.
    EmptyRunError
        No record there counts.
    """
    reading = read(run)
    reading.require(site)
    steps = reading.records(site)["step"].to_numpy(dtype=np.int64)
    values = np.asarray(reading.array(site, dataset), dtype=np.float64)
    finite = np.flatnonzero(np.isfinite(values.reshape(len(values), -1)).any(axis=1))
    if step in (None, "last"):
        chosen = int(steps[finite].max() if finite.size else steps.max())
    else:
        chosen = int(steps.min()) if step == "first" else recorded_step(sorted({*map(int, steps)}), int(step or 0))
    at = np.flatnonzero(steps == chosen)
    records = reading.records(site).iloc[at]
    around = [
        np.maximum(records[name].to_numpy(dtype=np.int64), 0) if name in records else np.zeros(at.size, dtype=np.int64)
        for name in ("after", "carried")
    ]
    smallest, lengths = float(records["smallest_normal"].max()), np.asarray(reading.lengths(site)[at], dtype=np.int64)
    return Block(chosen, values[at], lengths, smallest, *around)


def laid(values: Floats, starts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Arrays (record, ..., position) laid along one axis, each from its own start on; NaN where it has nothing.

    Returns
    -------
    (positions, values)
        Of shape (P,) and (record, ..., P).
    """
    low, width = int(starts.min()), values.shape[-1]
    result = np.full((*values.shape[:-1], width + int(starts.max()) - low), np.nan)
    for row, own, shift in zip(result, values, starts - low, strict=True):
        row[..., shift : shift + width] = own
    return np.arange(low, low + result.shape[-1], dtype=np.float64), result


def recorded_step(available: list[int], step: int) -> int:
    """``step``, if it was recorded.

    Raises
    ------
    SettingError
        Names the nearest that was.
    """
    if step in available:
        return step
    nearest = min(available, key=lambda known: abs(known - step))
    raise SettingError(f"step {step} was not recorded; the nearest recorded step is {nearest}.")
