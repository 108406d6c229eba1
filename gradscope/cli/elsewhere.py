"""The options of every command that trains on other machines as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--dask", metavar="ADDRESS", help="Train on the workers of this Dask scheduler, tcp://host:8786."),
    click.option("--slurm", is_flag=True, help="Train as one job array of Slurm; --jobs says how many at once."),
    click.option("--slurm-option", multiple=True, metavar="KEY=VALUE", help="Of submitit: slurm_partition=short, timeout_min=120 ...  May be repeated."),  # noqa: E501
)  # fmt: skip


def elsewhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; :func:`gradscope.lab.engines.engine_of` makes an engine of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
