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
    """The runs as they count, for the options that were given."""
    from gradscope.reading import Choice
    from gradscope.reading.counted import read_run

    return [read_run(run, Choice(**choice)) for run in runs]
