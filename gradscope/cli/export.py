"""``gradscope export``: a run's numbers as CSV."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gradscope.cli.completing import RunPath, SiteName
from gradscope.cli.say import say
from gradscope.legible import cells


@click.command()
@click.argument("run", type=RunPath())
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write every table there; must not exist. By default RUN-csv here.")  # fmt: skip  # noqa: E501
@click.option(
    "--table",
    type=click.Choice(["norms", "records", "steps", "clips", "parameters"]),
    help="Print this table instead.",
)
@click.option("--site", type=SiteName(), help="With --table norms or records: which site, where there are several.")
@click.option("--quantity", help="With --table norms: hidden, cell, gates ...; by default what describes the site.")
def export(run: Path, out: Path | None, table: str | None, site: str | None, quantity: str | None) -> None:
    """Write a run's numbers as CSV: every table into a directory, or one to stdout.

    RUN is a run directory or a packed file.
    """
    if out is not None and table is not None:
        raise click.UsageError("give either -o DIR for every table, or --table NAME for one on stdout.")
    if site and table not in ("norms", "records"):
        raise click.UsageError("--site goes with --table norms or --table records.")
    if quantity and table != "norms":
        raise click.UsageError("--quantity goes with --table norms.")
    # Imported here: a mistyped option should not wait for HDF5 and pandas.
    from gradscope import store

    opened = store.open_run(run)
    if table is None:
        for path in store.export(opened, out or Path(f"{opened.name}-csv")):
            say(path)
    else:
        cells(store.table(opened, table, site, quantity)).to_csv(sys.stdout, index=False, na_rep="nan")
