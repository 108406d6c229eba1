"""The options of every command that trains what comes with gradscope and reports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def trainings(directory: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options; ``directory`` is where runs and report go by default."""
    options = (
        click.option("-o", "--out", type=click.Path(path_type=Path), default=Path(directory), show_default=True, help="Directory for runs and report; must not exist."),  # noqa: E501
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="First of the seeds of weights and batches."),  # noqa: E501
        click.option("--quick", is_flag=True, help="A few steps of each training: to see it work, not to learn from it."),  # noqa: E501
        click.option("--jobs", type=int, help="Trainings at once. Default: 2, or 1 on one core or with --quick."),
    )  # fmt: skip

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return added
