"""Which records of which runs a figure shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradscope.diagnostics import DecayCurve, decay_curve
from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError
from gradscope.schema import DATASETS, QUANTITIES

Floats = NDArray[np.float64]

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
) -> list[tuple[str, Any, str, str]]:
    """``(run name, run, site, quantity)`` for every site to show, in order.

    Without a quantity each site shows the one that describes its memory (``SiteInfo.curve``), or the first recorded.

    Raises
    ------
    UnknownNameError
        A site that no run has.
    EmptyRunError
        Runs without a single site.
    NotRecordedError
        Nothing left to show; says what to record.
    """
    wanted = [site] if isinstance(site, str) else list(site) if site is not None else None
    known = sorted({name for run in runs for name in run.sites})
    for name in wanted or ():
        if name not in known:
            raise UnknownNameError("site", name, known)
    if not known:
        paths = ", ".join(str(run.path) for run in runs)
        raise EmptyRunError(f"{paths}: no record yet, so there is nothing to draw. Train at least one recorded step.")
    found = []
    for name, run in zip(run_names(runs), runs, strict=True):
        for at in run.sites:
            if wanted is None or at in wanted:
                there = recorded(run, at)
                shown = quantity or curve_quantity(run, at)
                if shown is not None and shown in there:
                    found.append((name, run, at, shown))
    if not found:
        raise not_recorded(runs, quantity or "hidden", wanted)
    return found


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
    return NotRecordedError(
        f"{paths}: {quantity!r} was not recorded{where} (recorded: {', '.join(there) or 'nothing'}). "
        f"Record it with gradscope.record(..., quantities=[..., {quantity!r}])."
    )


@dataclass(frozen=True, eq=False)
class Norms:
    """Every per-sequence norm of one quantity at one site, with the records it belongs to.

    Attributes
    ----------
    records : DataFrame
        One row per record kept, index = position in ``values``.
    values : ndarray, shape (record, sequence, lag)
    lengths : ndarray of int, shape (record, sequence)
    """

    records: pd.DataFrame
    values: Floats
    lengths: NDArray[np.int64]

    @property
    def steps(self) -> list[int]:
        """Recorded steps, increasing; a step whose update was skipped (overflowed loss scale) is left out."""
        return sorted({int(step) for step in self.records["step"]})

    def curve(self, step: int) -> DecayCurve:
        """The decay curve over all sequences of a step: its micro-batches and ranks together, of its last attempt."""
        rows = self.records[self.records["step"] == step]
        at = rows[rows["attempt"] == rows["attempt"].max()].index.to_numpy()
        values = self.values[at].reshape(-1, self.values.shape[-1])
        lengths = self.lengths[at].reshape(-1)
        values, lengths = values[lengths > 0], lengths[lengths > 0]
        reached = int(lengths.max()) if lengths.size else 0
        smallest = float(rows["smallest_normal"].max())
        return decay_curve(
            np.arange(reached), values[:, :reached].reshape(-1, reached), lengths=lengths, smallest_normal=smallest
        )

    def usable(self, step: int) -> bool:
        """Whether any norm of the step is a positive number."""
        at = self.records.index[self.records["step"] == step].to_numpy()
        block = self.values[at]
        return bool(np.any(np.isfinite(block) & (block > 0)))

    def last(self) -> int:
        """The last step with a usable curve; the last step at all where there is none."""
        return next((step for step in reversed(self.steps) if self.usable(step)), self.steps[-1])


@dataclass(frozen=True, eq=False)
class Block:
    """One dataset at one recorded step: all records of the step (micro-batches, ranks) of its last attempt.

    ``values`` has shape (record, \\*DATASETS[dataset]).
    """

    step: int
    values: Floats
    lengths: NDArray[np.int64]
    smallest_normal: float


def block(run: Any, site: str, dataset: str, step: int | str | None = None) -> Block:
    """``dataset`` at one step; by default the last with a finite value.

    Raises
    ------
    SettingError
        The step was not recorded.
    """
    records = run.records(site).reset_index(drop=True)
    kept = records[~records["skipped"].astype(bool)]
    records = records if kept.empty else kept
    values = np.asarray(run.array(site, dataset), dtype=np.float64)
    finite = np.asarray(np.isfinite(values.reshape(len(values), -1)).any(axis=1))
    steps = sorted({int(at) for at in records["step"]})
    filled = records["step"][finite[records.index.to_numpy()]]
    chosen = chosen_step(steps, step, int(filled.max()) if len(filled) else steps[-1])
    rows = records[records["step"] == chosen]
    at = rows[rows["attempt"] == rows["attempt"].max()].index.to_numpy()
    lengths = np.asarray(run.lengths(site), dtype=np.int64)
    return Block(chosen, values[at], lengths[at], float(rows["smallest_normal"].max()))


def norms(run: Any, site: str, quantity: str) -> Norms:
    """All norms of ``quantity`` at ``site``; records whose update was skipped only where there are no others."""
    records = run.records(site).reset_index(drop=True)
    kept = records[~records["skipped"].astype(bool)]
    return Norms(
        records if kept.empty else kept,
        np.asarray(run.array(site, quantity), dtype=np.float64),
        np.asarray(run.lengths(site), dtype=np.int64),
    )


def chosen_step(available: list[int], step: int | str | None, default: int) -> int:
    """``step`` as a recorded step: ``None`` is ``default``, ``"first"`` and ``"last"`` are the ends.

    Raises
    ------
    SettingError
        The step was not recorded; names the nearest that was.
    """
    if step is None:
        return default
    if step == "first":
        return available[0]
    if step == "last":
        return default
    if int(step) in available:
        return int(step)
    nearest = min(available, key=lambda known: abs(known - int(step)))
    raise SettingError(f"step {step} was not recorded; the nearest recorded step is {nearest}.")
