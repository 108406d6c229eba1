"""``gradscope pack``: one file of a run."""

from __future__ import annotations

from pathlib import Path

import click

from gradscope.cli.completing import RunPath
from gradscope.cli.say import say


@click.command()
@click.argument("run", type=RunPath())
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Default: RUN.h5 beside the run. Must not exist.")  # fmt: skip  # noqa: E501
def pack(run: Path, out: Path | None) -> None:
    """Make one HDF5 file of a run, to share; attempts, ranks and what is not sealed yet included.

    Every command takes the file as it takes the directory; so does xarray.
    """
    from gradscope import store

    whole = run.resolve()  # "." has no name of its own
    say(store.pack(run, out or whole.with_name(f"{whole.name.removesuffix('.h5')}.h5")))
