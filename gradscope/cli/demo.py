"""``gradscope demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gradscope.lab.train import TrainResult
    from gradscope.report import ReportPaths


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
def demo(out: Path, seed: int, quick: bool) -> None:
    """Train five recurrent networks on handwritten digits, recorded, and report.

    A tanh RNN, an LSTM, the LSTM with forget bias 1 and with chrono initialisation, and a GRU read 8x8 digits pixel by
    pixel; then the RNN is trained by plain SGD at three clipping thresholds and none. Takes two to four minutes on two
    cores and needs nothing but this package.
    """
    # Imported here: `gradscope demo --help` needs neither torch nor matplotlib.
    from gradscope.lab.demo import run_demo
    from gradscope.report import build_report
    from gradscope.store import open_run

    results = run_demo(out, quick=quick, seed=seed)
    click.echo("writing the report", err=True)
    runs = [open_run(out / "runs" / name) for name in results]
    try:
        paths = build_report(runs, out / "report", title="Gradient flow in five networks that read digits")
    except BaseException:
        shutil.rmtree(out / "report", ignore_errors=True)
        raise
    finally:
        for run in runs:
            run.close()
    click.echo(_headlines(results, paths))
    click.echo(f"\nThe page:  {paths.index}\nFigures:   {paths.directory / 'figures'}\nNumbers:   {paths.summary}")


def _headlines(results: dict[str, TrainResult], paths: ReportPaths) -> str:
    """One line per training: what it learnt, and how much of the gradient reaches the first timestep."""
    head = f"{'':20}{'held-out':>9}  {'of the gradient at the last step, what reaches the furthest step back':}"
    lines = [
        head,
        f"{'training':20}{'accuracy':>9}  {'steps back':>10}  {'first record':>12}  {'end':>9}  verdict at the end",
    ]
    for facts in paths.facts:
        result = results[facts.name]
        accuracy = "diverged" if result.diverged is not None else f"{result.final.metric:.1%}"
        for said in facts.answers:
            reach = f"{said.late.last_lag or 0:>10}  {said.early.reach:>12.1e}  {said.late.reach:>9.1e}"
            lines.append(f"{facts.name:20}{accuracy:>9}  {reach}  {said.late.verdict}")
    return "\n".join(lines)
