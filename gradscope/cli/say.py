"""What a command prints: a run may come from a stranger, and its names must not steer the terminal."""

from __future__ import annotations

import click

from gradscope.legible import legible


def say(text: object, *, err: bool = False) -> None:
    """Print lines, with what cannot be seen written as an escape."""
    click.echo("\n".join(map(legible, str(text).split("\n"))), err=err)
