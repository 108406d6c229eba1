"""``gradscope watch``: follow a run in the terminal while it grows."""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscope.cli.completing import RunPath
from gradscope.legible import legible
from gradscope.words import clip_sentence, counted, number, percent, sentence, signed

if TYPE_CHECKING:
    from gradscope.reading.watching import Arrival, News

#: More sites than this are counted, not shown.
_MAX_SITES = 4
#: A terminal keeps no more recorded steps than this, however tall it is.
_MAX_ROWS = 200


@click.command()
@click.argument("run", type=RunPath())
@click.option("--quantity", help="hidden, cell, input ...; by default what describes each site.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS", help="Between two looks.")  # fmt: skip  # noqa: E501
@click.pass_context
def watch(ctx: click.Context, run: Path, quantity: str | None, interval: float) -> None:
    """Follow a run while it grows: every recorded step, what clipping did, and the answer so far.

    RUN is a run directory or a packed file. Ends when nobody writes the run any more, or with Ctrl-C; the training is
    not held up. Where the output is no terminal, a line is printed for each recorded step.
    """
    # Imported here: a mistyped option should not wait for HDF5 and pandas.
    from gradscope.reading.watching import Watch
    from gradscope.store.growing import changes

    watched = Watch(run, quantity)
    shown = _Screen(run.resolve().name) if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else _Lines()
    for _ in changes([run], interval):
        shown.add(watched.look())
        sys.stdout.flush()
    if not _answer(run, quantity):
        click.echo(
            f"gradscope: the end of {str(run)!r} is missing: its process died, or writes from another machine. "
            f"`gradscope repair {run}` seals it.",
            err=True,
        )
        ctx.exit(1)


def _answer(path: Path, quantity: str | None) -> bool:
    """Print the answer of the whole run, as a report gives it; return whether the run is sealed."""
    from gradscope.reading.facts import gather
    from gradscope.store import open_run

    with open_run(path) as run:
        click.echo(f"\n{legible(run.name)}: {counted(run.n_records, 'record')}")
        for facts in gather([run], quantity):
            said = (*facts.remarks, *(one.sentence for one in facts.answers), *map(clip_sentence, facts.clips))
            click.echo("\n".join(map(legible, said)))
        return run.sealed


class _Lines:
    """A line for each recorded step, for a file or a program."""

    def add(self, news: News) -> None:
        """Print what came."""
        if news.earlier:
            click.echo(counted(news.earlier, "earlier recorded step"))
        for arrival in news.arrivals:
            click.echo(legible(_line(arrival)))


class _Screen:
    """The last recorded steps, and what the last of them says, drawn over themselves."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._arrivals: deque[Arrival] = deque(maxlen=_MAX_ROWS)
        self._count = self._height = 0

    def add(self, news: News) -> None:
        """Draw what is known now, within the terminal."""
        self._arrivals.extend(news.arrivals)
        self._count += news.earlier + len(news.arrivals)
        width, height = shutil.get_terminal_size()
        said = self._said(width - 1)[: max(0, height // 2 - 2)]
        room = max(1, height - len(said) - 3)
        head = f"{self._name}: {counted(self._count, 'recorded step')}"
        lines = [head, *map(_line, list(self._arrivals)[-room:]), *said]
        # Up to where it began, and clear from there on.
        above = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        click.echo(above + "\n".join(_cut(line, width) for line in lines), color=True)
        self._height = len(lines)

    def _said(self, width: int) -> list[str]:
        if not self._arrivals:
            return []
        fits = self._arrivals[-1].fits[:_MAX_SITES]
        said = [sentence(fit, legible(f"{site} ({quantity})")) for site, quantity, fit in fits]
        return ["", *(line for one in said for line in textwrap.wrap(one, max(20, width)))]


def _line(arrival: Arrival) -> str:
    """A recorded step in one line."""
    parts = [f"step {arrival.step:>5}"]
    if arrival.attempt > 1:
        parts.append(f"attempt {arrival.attempt}")
    if not math.isnan(arrival.loss):
        parts.append(f"loss {number(arrival.loss)}")
    if arrival.calls:
        parts.append(f"clipped {percent(arrival.clipped)} of {counted(arrival.calls, 'call')}")
    for site, quantity, fit in arrival.fits[:_MAX_SITES]:
        reach = f"{number(fit.reach)} at lag {fit.last_lag}" if fit.last_lag is not None else "nothing finite"
        rate = "" if math.isnan(fit.rate) else f", {signed(fit.rate)} per step"
        parts.append(f"{site} ({quantity}): {reach}{rate}, {fit.verdict}")
    if len(arrival.fits) > _MAX_SITES:
        parts.append(f"{len(arrival.fits) - _MAX_SITES} more sites")
    return "  ".join(parts)


def _cut(line: str, width: int) -> str:
    line = legible(line)
    return line if len(line) < width else line[: max(1, width - 2)] + "…"
