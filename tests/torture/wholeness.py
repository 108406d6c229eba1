"""Whether a run that something has interrupted still holds what it promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradscope.errors import GradscopeError, RunNotFoundError
from gradscope.store import Run, open_run, repair, validate
from tests.store.conftest import record

SITE = "lstm/l0"


def shortfall(
    run: Path, flushed: int, *, closed: bool = False, repairing: bool = True, untouched: bool = False
) -> str | None:
    """How a run of the records 0, 1, 2 ... falls short of holding the first ``flushed``, as it is and once repaired.

    Parameters
    ----------
    run : Path
        Its records are those of `tests.store.conftest.record`. Changed where ``repairing``.
    flushed : int
        With 0 there need not be a run at all.
    closed : bool
        Whether it must be sealed as it is.
    repairing : bool
        Whether to repair it, and look again.
    untouched : bool
        Whether nothing may be there to repair.

    Returns
    -------
    str or None
        None where everything is in order.
    """
    try:
        with open_run(run) as opened:
            held = opened.n_records
            if wrong := _wrong(opened, flushed):
                return wrong
            if closed and not opened.sealed:
                return "it was closed, and is not sealed"
        left = [problem for problem in validate(run) if untouched or "interrupted write" not in problem]
        if left:
            return f"validate: {left[0]}"
        return _after_repair(run, held) if repairing else None
    except RunNotFoundError as error:
        return None if not flushed else f"{flushed} flushed: {error}"
    except GradscopeError as error:
        return f"{flushed} flushed: {type(error).__name__}: {error}"


def _after_repair(run: Path, held: int) -> str | None:
    report = repair(run)
    if report.lost:
        return f"repair lost {report.lost[0]}"
    with open_run(run) as opened:
        if not opened.sealed:
            return "repair left it unsealed"
        if wrong := _wrong(opened, held):
            return f"after repair: {wrong}"
        if opened.n_records != held:
            return f"repair made {opened.n_records} of {held} records"
    if left := validate(run):
        return f"validate after repair: {left[0]}"
    return f"repair is never done: {again[0]}" if (again := repair(run).actions) else None


def _wrong(run: Run, flushed: int) -> str | None:
    """Whether records are missing, doubled, or have other numbers than were recorded."""
    if not run.n_records:
        return f"none of {flushed} flushed records are there" if flushed else None
    steps = run.records(SITE)["step"].tolist()
    if steps != list(range(len(steps))):
        return f"it holds the steps {steps}"
    if len(steps) < flushed:
        return f"{len(steps)} of {flushed} flushed records are there"
    wanted = np.stack([record(step).sites[SITE].arrays["hidden"] for step in steps])
    return None if np.array_equal(run.array(SITE, "hidden"), wanted, equal_nan=True) else "it holds other numbers"
