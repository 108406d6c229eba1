"""``gradscope demo``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradscope.lab.demo.story import Line


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("gradscope-demo"),
    show_default=True,
    help="Directory for runs and report; must not exist.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and batches.")
@click.option("--quick", is_flag=True, help="A few steps of each training: to see it work, not to learn from it.")
@click.option("--jobs", type=int, help="Trainings at once. Default: 2, or 1 on one core or with --quick.")
def demo(out: Path, seed: int, quick: bool, jobs: int | None) -> None:
    """Train five recurrent networks on handwritten digits, recorded, and report.

    A tanh RNN, an LSTM, the LSTM with forget bias 1 and with chrono initialisation, and a GRU read 8x8 digits pixel by
    pixel; then the RNN is trained by SGD with momentum .9 at three thresholds and none. Takes two to three minutes on
    two cores and needs nothing but this package.
    """
    # Imported here: `gradscope demo --help` needs neither torch nor matplotlib.
    from gradscope.lab.demo.story import line_of, tell_demo
    from gradscope.lab.demo.trainings import run_demo
    from gradscope.lab.jobs import usual_jobs
    from gradscope.report import build_report
    from gradscope.store import open_run

    chosen = jobs if jobs is not None else 1 if quick else usual_jobs()
    results = run_demo(out, quick=quick, seed=seed, jobs=chosen)
    click.echo("writing the report", err=True)
    title = "Gradient flow in five networks that read digits"
    with ExitStack() as stack:
        runs = {name: stack.enter_context(open_run(out / "runs" / name)) for name in results}
        lines = [line_of(name, run, results[name]) for name, run in runs.items()]
        told = tell_demo(lines, runs)
        paths = build_report(
            list(runs.values()), out / "report", title=title, told=told, shown=("comparison", "clipping")
        )
    click.echo(_headlines(lines))
    click.echo(f"\n{told.opening[1]}")
    click.echo(f"\nThe page:  {paths.index}\nFigures:   {paths.directory / 'figures'}\nNumbers:   {paths.summary}")


def _headlines(lines: Sequence[Line]) -> str:
    """One line per training: what it learnt, and how much of the gradient reaches the first timestep."""
    from gradscope.lab.demo.story import reaching

    shown = [
        f"{'':20}{'held-out':>9}  of the gradient at the last timestep, what reaches the first:",
        f"{'training':20}{'accuracy':>9}  {'before':>8}  {'after':>8}  verdict before, after",
    ]
    for line in lines:
        reach = "  ".join(f"{reaching(fit):>8.1e}" for fit in (line.first, line.late))
        shown.append(f"{line.name:20}{line.accuracy:>9}  {reach}  {line.first.verdict}, {line.late.verdict}")
    return "\n".join(shown)
