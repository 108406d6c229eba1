"""``gradscope repair``: recover what a damaged run still holds."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gradscope.cli.completing import RunPath
from gradscope.cli.say import say


@click.command()
@click.argument("run", type=RunPath())
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_context
def repair(ctx: click.Context, run: Path, as_json: bool) -> None:
    """Recover what a damaged run still holds.

    Seals the journal of a process that died, restores checksums, and sets damaged files aside under a name ending in
    .damaged; nothing unread is deleted. A run that is being written is left alone.

    Exits with 1 when something was lost.
    """
    from gradscope import store

    report = store.repair(run)
    if as_json:
        done = {"run": str(run), "recovered": report.recovered, "actions": report.actions, "lost": report.lost}
        say(json.dumps(done, indent=2))
    else:
        for line in report.actions or [f"{run}: nothing to repair"]:
            say(line)
        for line in report.lost:
            say(f"lost: {line}")
    if report.lost:
        ctx.exit(1)
