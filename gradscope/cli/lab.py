"""``gradscope lab``: experiments that come with gradscope."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gradscope.cli.elsewhere import elsewhere
from gradscope.cli.printing import numbers
from gradscope.cli.trainings import trainings

if TYPE_CHECKING:
    from gradscope.report import ReportPaths
    from gradscope.report.telling import Story


_WIDTH = 96


@click.group()
def lab() -> None:
    """Experiments that come with gradscope."""


@lab.command()
@trainings("gradscope-lecture")
@elsewhere
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of sentences.")
def lecture(
    out: Path, seed: int, quick: bool, jobs: int | None, dask: str | None, slurm: bool, slurm_option: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """From the plain network to the GRU, on real data: what textbooks say, put to the measurement.

    Fourteen networks learn the monthly sunspot numbers and handwritten digits, ten seeds each; their gradients are
    measured exactly before and after, and each statement is confirmed, refined, refuted or left open by numbers that
    were fixed beforehand. Takes about ten minutes on two cores.
    """
    # Imported here: `gradscope lab --help` needs neither torch nor matplotlib.
    from gradscope.lab.engines import engine_of
    from gradscope.lab.jobs import usual_jobs
    from gradscope.lab.lecture.chapters import tell
    from gradscope.lab.lecture.trainings import run_lecture
    from gradscope.report import build_report
    from gradscope.store import open_run

    chosen = jobs if jobs is not None else 1 if quick else usual_jobs()
    with engine_of(out, dask, slurm, slurm_option, jobs) as engine:
        results, kept = run_lecture(out, seed=seed, quick=quick, jobs=chosen, engine=engine)
    click.echo("writing the report", err=True)
    runs = [open_run(path) for path in kept]
    try:
        told = tell(results, runs, brief=quick)
        paths = build_report(runs, out / "report", title="From the plain network to the GRU", told=told)
    except BaseException:
        shutil.rmtree(out / "report", ignore_errors=True)
        raise
    finally:
        for run in runs:
            run.close()
    click.echo(numbers(paths) if as_json else _findings(told, paths))


@lab.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--quick", is_flag=True, help="Small and few networks: to see it work, not to learn from it.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of sentences.")
def replicate(names: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """Published experiments, measured again: the paper's statement, our figure, agree or not, and by how much.

    Without NAME, lists them. Each takes a few minutes on one core; settings that differ from the paper's are named.
    """
    from gradscope.lab.replications import PAPERS, named

    if not names:
        width = max(map(len, PAPERS))
        click.echo("\n".join(f"{name:<{width}}  {what}" for name, (_, what) in PAPERS.items()))
        return
    chosen = [named(name) for name in dict.fromkeys(names)]
    found = [paper(quick=quick) for paper in chosen]
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=1))
    else:
        click.echo("\n\n\n".join(one.words() for one in found))


def _findings(told: Story, paths: ReportPaths) -> str:
    """What was found for every statement, then where to look."""
    said = [
        f"{claim.statement}\n{textwrap.indent(textwrap.fill(claim.found, _WIDTH), '    ')}" for claim in told.claims
    ]
    return "\n".join([*said, "", f"The page:  {paths.index}", f"Numbers:   {paths.summary}"])
