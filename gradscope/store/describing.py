"""A run in one dictionary of plain values, for people and programs that want an overview."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gradscope.schema import CLIPS_GROUP, PARAMETERS_GROUP, ROLES, STEPS_GROUP
from gradscope.store.part import Table
from gradscope.store.run import Run


def describe(run: Run) -> dict[str, Any]:
    """What a run holds.

    Parameters
    ----------
    run : Run

    Returns
    -------
    dict
        JSON throughout: name, path, state, model, settings, counts, ``sites`` (one object each), coverage, lost.
    """
    with run.opened():
        sites = [_site(run, site) for site in run.sites]
    tables = {
        group: [part.table(group) for part in run.parts] for group in (STEPS_GROUP, CLIPS_GROUP, PARAMETERS_GROUP)
    }
    of_passes = [
        (int(step), ROLES[role] if 0 <= role < len(ROLES) else "other")
        for table in tables[PARAMETERS_GROUP]
        for step, role in zip(table.columns["step"], table.columns["role"], strict=True)
    ]
    recorded = [step for step, role in of_passes if role == ROLES[0]]
    return {
        "name": run.name,
        "path": str(run.path),
        "sealed": run.sealed,
        "created": run.meta.created_at,
        "gradscope": run.meta.gradscope_version,
        "torch": run.meta.torch_version,
        "model": _model(run.model),
        "settings": run.settings,
        "attempts": len({meta.attempt for meta in run.metas}),
        "ranks": len({meta.rank for meta in run.metas}),
        "records": run.n_records,
        "apart": dict(Counter(role for _, role in of_passes if role != ROLES[0])),
        "recorded_steps": [min(recorded), max(recorded)] if recorded else None,
        "steps": len(set().union(*map(_steps, tables[STEPS_GROUP]))),
        "clips": sum(map(len, tables[CLIPS_GROUP])),
        "scalars": list(dict.fromkeys(name for table in tables[STEPS_GROUP] for name in table.names)),
        "sites": sites,
        "coverage": [entry.to_json() for entry in run.coverage],
        "lost": run.lost,
    }


def _steps(table: Table) -> set[tuple[int, ...]]:
    """Attempt, rank and step of each row: a step that was flushed in its middle has two."""
    return set(zip(*(table.columns[name].tolist() for name in ("attempt", "rank", "step")), strict=True))


def _model(model: dict[str, Any]) -> str:
    count = model.get("parameters")
    known = f", {count:,} parameters" if isinstance(count, int) else ""
    return f"{model.get('class', 'unknown')}{known}"


def _site(run: Run, site: str) -> dict[str, Any]:
    lengths = run.lengths(site)
    return {
        "site": site,
        "cell": run.site(site).cell or "unknown cell",
        "curve": run.site(site).curve,
        "records": len(lengths),
        "sequences": int((run.rows(site) >= 0).sum(axis=1).max(initial=0)),
        "longest": int(lengths.max(initial=0)),
        "quantities": list(run.quantities(site)),
    }
