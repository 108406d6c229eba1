"""The options of every command that reads records: which of them count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gradscope.reading import Reading

_OPTIONS = (
    click.option("--first-step", type=int, metavar="N", help="Nothing recorded before this step."),
    click.option("--last-step", type=int, metavar="N", help="Nothing recorded after this step."),
    click.option("--attempt", type=int, metavar="N", help="This attempt alone; by default a restarted training as it went on."),  # noqa: E501
    click.option("--rank", type=int, metavar="N", help="This process alone; by default the sequences of all."),
)  # fmt: skip


def which_records(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as keywords for :func:`opened`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def opened(runs: Sequence[Path], **choice: Any) -> list[Reading]:
    """The runs as they count, for the options that were given.

    Raises
    ------
    EmptyRunError
        The options leave nothing of any run.
    """
    from gradscope.reading import Choice
    from gradscope.reading.counted import read_run

    found = [read_run(run, Choice(**choice)) for run in runs]
    given = [f"--{name.replace('_', '-')} {value}" for name, value in choice.items() if value is not None]
    if given and not any(map(_holds, found)):
        _refuse(found, " ".join(given))
    return found


def _holds(reading: Reading) -> bool:
    """Whether anything is left: a record, or a step of which something is known."""
    return any(map(reading.counted, reading.sites)) or bool(len(reading.steps()) or len(reading.clips()))


def _refuse(readings: Sequence[Reading], given: str) -> None:
    """Say of which ranks, attempts and steps there are records."""
    from gradscope.errors import EmptyRunError

    tables = [reading.run.records(site) for reading in readings for site in reading.sites]
    there = [
        f"{column} {min(values)}" if len(values) == 1 else f"{column}s {min(values)} to {max(values)}"
        for column in ("rank", "attempt", "step")
        if (values := {int(value) for table in tables for value in table[column]})
    ]
    if there:  # else a run without records says more about itself
        raise EmptyRunError(f"nothing was recorded with {given}: there are records of {', '.join(there)}.")
