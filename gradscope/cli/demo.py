"""``gradscope demo``."""

from __future__ import annotations

import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscope.cli.printing import numbers
from gradscope.cli.trainings import trainings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradscope.lab.demo.lines import Line

_WIDTH = 100


@click.command()
@trainings("gradscope-demo")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of sentences.")
def demo(out: Path, seed: int, quick: bool, jobs: int | None, as_json: bool) -> None:
    """Train recurrent networks on handwritten digits, recorded, and report.

    RNN, LSTM and GRU read 8x8 digits pixel by pixel: before training, as PyTorch initialises them and with their gates
    opened, over five seeds; through training; and the RNN under SGD at three clipping thresholds and none, over three
    seeds. Takes about two minutes on two cores and needs nothing but this package.
    """
    # Imported here: `gradscope demo --help` needs neither torch nor matplotlib.
    from gradscope.lab.demo.lines import line_of
    from gradscope.lab.demo.story import TITLE, tell_demo
    from gradscope.lab.demo.trainings import run_demo
    from gradscope.lab.jobs import usual_jobs
    from gradscope.report import build_report
    from gradscope.store import open_run

    chosen = jobs if jobs is not None else 1 if quick else usual_jobs()
    results = run_demo(out, quick=quick, seed=seed, jobs=chosen)
    click.echo("writing the report", err=True)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(open_run(out / "runs" / name)) for name in results}
        lines = [line_of(name, run, results[name]) for name, run in runs.items()]
        told = tell_demo(lines, runs)
        # In full only what was trained, one seed of each: the figures of the story hold the others.
        kept = [runs[line.name] for line in lines if line.group != "initial" and line.result.labels["seed"] == seed]
        paths = build_report(kept, out / "report", title=TITLE, told=told, shown=("comparison", "clipping"))
    if as_json:
        click.echo(numbers(paths))
        return
    said = "\n\n".join(textwrap.fill(words, _WIDTH) for words in told.opening)
    click.echo(f"{TITLE}\n\n{said}\n\n{_table(lines, seed)}")
    if quick:
        click.echo("\n--quick stops after a few steps: what was learnt, and at which threshold, says nothing yet.")
    click.echo(f"\nThe page:  {paths.index}\nFigures:   {paths.directory / 'figures'}\nNumbers:   {paths.summary}")


def _table(lines: Sequence[Line], seed: int) -> str:
    """A line per network, of the first seed: what arrives at the first pixel, and what was learnt."""
    from gradscope.lab.demo.lines import arriving
    from gradscope.words import number

    rows = [("first seed", "before", "after", "held-out accuracy")]
    for line in sorted(lines, key=lambda line: line.group == "initial"):
        if line.result.labels["seed"] == seed:
            before, after = (number(arriving(fit), 1) for fit in (line.first, line.late))
            learnt = "diverged" if line.accuracy != line.accuracy else f"{line.accuracy:.0%}"
            rows.append((line.title, before, *(("–", "–") if line.group == "initial" else (after, learnt))))
    shown = [f"{name:31}{before:>9}{after:>9}{learnt:>20}" for name, before, after, learnt in rows]
    return "\n".join([*shown, "before, after training: ‖∂L/∂x‖ at the first pixel over that at the last"])
