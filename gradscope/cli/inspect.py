"""``gradscope inspect``: what a run holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gradscope.cli.completing import RunPath
from gradscope.cli.say import say
from gradscope.legible import legible
from gradscope.words import counted


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RunPath(), metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, one object per run in a list.")
def inspect(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show what a run holds: sites, quantities, records, what was missed and what was lost.

    RUN is a run directory, also while it grows, or a packed file.
    """
    # Imported here: a mistyped option should not wait for HDF5.
    from gradscope.store import describe, open_run

    described = [describe(open_run(run)) for run in runs]
    if as_json:
        say(json.dumps(described, indent=2))
        return
    say("\n\n".join("\n".join(map(legible, _lines(one))) for one in described))


_APART = {
    "dropped": "whose gradient was zeroed",
    "other": "of another loss or for attribution",
    "evaluation": "that evaluated a closure once more",
}


def _lines(run: dict[str, Any]) -> Iterator[str]:
    yield f"{run['name']}  ({'sealed' if run['sealed'] else 'open: still growing, or its process died'})"
    for label in ("created", "model", "torch", "attempts", "ranks"):
        yield f"  {label + ':':<12}{run[label]}"
    steps = run["recorded_steps"]
    span = f" of steps {steps[0]} to {steps[1]}" if steps else ""
    logged = f"scalars of {counted(run['steps'], 'step')} and {counted(run['clips'], 'clipping call')}"
    yield f"  {'records:':<12}{run['records']}{span}; {logged}"
    if run["apart"]:
        apart = ", ".join(f"{count} {_APART.get(role, role)}" for role, count in run["apart"].items())
        yield f"  {'apart:':<12}records of passes that fed no update: {apart}"
    yield f"  {'scalars:':<12}{', '.join(run['scalars']) or 'none'}"
    yield "  sites:" if run["sites"] else "  sites:      none has a record"
    for site in run["sites"]:
        yield (
            f"    {site['site']}  {site['cell']}, {counted(site['records'], 'record')} of up to "
            f"{counted(site['sequences'], 'sequence')}, {counted(site['longest'], 'step')}: "
            f"{', '.join(site['quantities'])}"
        )
    missed = [entry for entry in run["coverage"] if entry["status"] != "recorded"]
    for entry in missed:
        yield f"  {entry['status']}: {entry['site']} ({counted(entry['count'], 'record')}): {entry['reason']}"
    for reason, count in run["lost"].items():
        yield f"  lost: {count}: {reason}"
