"""``gradscope validate``: is a run whole and unaltered?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from gradscope.cli.completing import RunPath
from gradscope.cli.say import say


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RunPath(), metavar="RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.pass_context
def validate(ctx: click.Context, runs: tuple[Path, ...], as_json: bool) -> None:
    """Check that a run is whole and unaltered: checksums, structure, every number read once.

    RUN is a run directory or a packed file. Exits with 1 when there is a problem.
    """
    from gradscope import store

    found = [(run, store.validate(run)) for run in runs]
    if as_json:
        say(json.dumps([{"run": str(run), "problems": problems} for run, problems in found], indent=2))
    else:
        for run, problems in found:
            for line in problems or [f"{run}: whole and unaltered"]:
                say(line)
    if any(problems for _, problems in found):
        ctx.exit(1)
