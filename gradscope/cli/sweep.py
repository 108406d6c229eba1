"""``gradscope sweep``."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gradscope.cli.completing import CELLS, INITS, TASKS, Name, complete_list
from gradscope.cli.elsewhere import elsewhere

if TYPE_CHECKING:
    import pandas as pd

    from gradscope.lab.sweep.grid import Grid


class CommaList(click.ParamType):
    """``a,b,c``, each converted alone."""

    def __init__(self, one: str, convert_one: Callable[[str], Any], said: str = "") -> None:
        self.name, self._convert_one = f"{one},...", convert_one  # what --help shows, in capitals
        self._said = said or f"a {one}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        items = []
        for part in filter(None, (part.strip() for part in value.split(","))):
            try:
                items.append(self._convert_one(part))
            except ValueError:
                self.fail(f"{part!r} is not {self._said}", param, ctx)
        if len(set(items)) < len(items):
            self.fail(f"{value!r} names something twice", param, ctx)
        return tuple(items)


def _threshold(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


NAMES = CommaList("name", str)
LENGTHS = CommaList("length", int)
SEEDS = CommaList("seed", int)
THRESHOLDS = CommaList("threshold", _threshold, said="a positive threshold or 'none'")


@click.group(invoke_without_command=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory; an unfinished sweep goes on."
)
@click.option(
    "--task", type=Name(TASKS), default="digits", show_default=True, help=f"{', '.join(TASKS[:-1])} or {TASKS[-1]}."
)
@click.option("--length", type=LENGTHS, default=None, help="Sequence lengths  [default: the task's own]")
@click.option(
    "--cell",
    type=NAMES,
    default="rnn",
    show_default=True,
    help="rnn, rnn-relu, lstm, gru, peephole ...",
    shell_complete=complete_list((*CELLS, "window")),
)
@click.option(
    "--init",
    type=NAMES,
    default=None,
    help="default, orthogonal, forget1, chrono ...  [default: the task's]",
    shell_complete=complete_list(INITS),
)
@click.option("--clip", type=THRESHOLDS, default="none", show_default=True, help="Norm thresholds, e.g. none,0.1,1.")
@click.option("--seed", type=SEEDS, default="0,1,2,3,4", show_default=True, help="Of weights and batches.")
@click.option("--hidden", type=int, default=None, help="Units of a layer  [default: 64; 50 for temporal_order]")
@click.option("--steps", type=int, default=None, help="Optimizer steps  [default: 600]")
@click.option("--batch", type=int, default=64, show_default=True)
@click.option(
    "--optimizer", type=click.Choice(["adam", "sgd"]), help="[default: sgd where thresholds are compared, else adam]"
)
@click.option("--lr", type=float, default=None, help="Learning rate  [default: adam 0.003; sgd the task's own]")
@click.option("--every", type=int, default=20, show_default=True, help="Record one step in so many.")
@click.option("--samples", type=int, default=8, show_default=True, help="Sequences of a batch to record.")
@click.option("--quantity", help="Whose decay is shown: input, hidden, cell ...  [default: what describes each cell]")
@click.option("--jobs", type=int, default=None, help="Trainings at once  [default: 2, or 1 on one core]")
@elsewhere
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, a row per training.")
@click.pass_context
def sweep(
    ctx: click.Context, out: Path, jobs: int | None, as_json: bool, dask: str | None, slurm: bool,
    slurm_option: tuple[str, ...], **asked: Any,
) -> None:  # fmt: skip
    """Train cell x init x length x clip threshold x seed, each recorded; then report. Resumable.

    Axes take comma-separated values. Cut off, the same command goes on where it stopped; more values on an axis add to
    what is there. The two experiments on clipping, each in a few minutes on two cores:

        gradscope sweep -o clip-digits --task digits --clip none,0.1,0.5,1,5

        gradscope sweep -o clip-order --task temporal_order --clip none,0.1,0.5,1,5

    Thresholds are compared under SGD with momentum .9 unless asked otherwise: Adam divides a gradient by its size,
    which undoes most of what clipping does.

    On more machines than one: --dask, --slurm, or in a job array of your own 'cell --index I' behind these options, and
    'page' when they are done.
    """
    grid = _grid(asked)
    if ctx.invoked_subcommand is not None:
        if dask is not None or slurm or jobs is not None:
            raise click.UsageError(f"--jobs, --dask and --slurm are not for {ctx.invoked_subcommand}.")
        ctx.obj = _Asked(grid, out, as_json)
        return
    from gradscope.lab.engines import engine_of
    from gradscope.lab.jobs import usual_jobs
    from gradscope.lab.sweep.trials import run_sweep

    if jobs is not None and dask is not None:
        raise click.UsageError("--jobs is for this machine and for --slurm; Dask's workers decide themselves.")
    for cell, init in grid.left_out():
        click.echo(f"left out: init {init} is not meant for {cell}", err=True)
    with engine_of(out, dask, slurm, slurm_option, jobs) as engine:
        table = run_sweep(grid, out, jobs=usual_jobs() if jobs is None else jobs, engine=engine)
    _told(_Asked(grid, out, as_json), table)


@sweep.command()
@click.option("--index", type=click.IntRange(min=0), help="From 0, as a job array counts: $SLURM_ARRAY_TASK_ID, say.")
@click.pass_obj
def cell(asked: _Asked, index: int | None) -> None:
    """Train one cell of the sweep; without --index list them, and which are done.

    Cells may be trained at the same time, on any machines that share the directory.
    """
    from gradscope.lab.sweep.trials import cells_of, run_cell

    if index is not None:
        click.echo(run_cell(asked.grid, asked.out, index))
        return
    cells = cells_of(asked.grid, asked.out)
    if asked.as_json:
        click.echo(json.dumps([{"index": i, "name": name, "done": done} for i, (name, done) in enumerate(cells)]))
        return
    for i, (name, done) in enumerate(cells):
        click.echo(f"{i:>5}  {'done' if done else '    '}  {name}")


@sweep.command()
@click.pass_obj
def page(asked: _Asked) -> None:
    """Report the cells that are done; train nothing."""
    from gradscope.lab.sweep.trials import cells_of, done_table

    table = done_table(asked.grid, asked.out)
    if missing := len(cells_of(asked.grid, asked.out)) - len(table):
        click.echo(f"not done yet: {missing} of {missing + len(table)} cells; they are left out", err=True)
    _told(asked, table)


class _Asked(NamedTuple):
    """A sweep as the options describe it."""

    grid: Grid
    out: Path
    as_json: bool


def _grid(asked: dict[str, Any]) -> Grid:
    from gradscope.lab.sweep.grid import grid_for

    return grid_for(
        asked["task"],
        lengths=asked["length"] or (None,),
        cells=asked["cell"],
        inits=asked["init"],
        clips=asked["clip"],
        seeds=asked["seed"],
        hidden_size=asked["hidden"],
        steps=asked["steps"],
        batch_size=asked["batch"],
        optimizer=asked["optimizer"],
        learning_rate=asked["lr"],
        every=asked["every"],
        samples=asked["samples"],
        quantity=asked["quantity"],
    )


def _told(asked: _Asked, table: pd.DataFrame) -> None:
    """Write the page, and print what was found."""
    from gradscope.lab.sweep.trials import summary_table

    grid, out = asked.grid, asked.out
    found = _report(table, out, grid.quantity)
    if asked.as_json:
        click.echo(json.dumps(json.loads(table.to_json(orient="records")), indent=1))
        return
    click.echo(_shown(summary_table(table), grid.quantity))
    click.echo(f"\n{found}Every training: {out / 'results.csv'}")


def _report(table: pd.DataFrame, out: Path, quantity: str | None) -> str:
    """Write the report of the trainings in the table, in place of an earlier one; say what was found, and where."""
    from gradscope.lab.sweep.story import tell_sweep
    from gradscope.report import build_report
    from gradscope.store import open_run

    directory = out / "report"
    with ExitStack() as stack:
        there = [name for name in table["name"] if (out / "runs" / name).is_dir()]
        runs = {name: stack.enter_context(open_run(out / "runs" / name)) for name in there}
        if not runs:  # nothing recurrent was trained
            return ""
        click.echo("writing the report", err=True)
        told = tell_sweep(table, runs, quantity)
        shutil.rmtree(directory, ignore_errors=True)
        compared = "Clipping thresholds" if table["clip"].nunique(dropna=False) > 1 else "Trainings"
        title = f"{compared} on the task {table['task'].iloc[0]}"
        paths = build_report(list(runs.values()), directory, title=title, told=told, shown=())
    found = "\n\n".join("\n".join([chapter.title, *chapter.text]) for chapter in told.chapters)
    return f"{found}\n\nThe page:       {paths.index}\n"


def _shown(summary: pd.DataFrame, quantity: str | None) -> str:
    """Mean over the seeds, with its standard deviation."""
    from gradscope.words import given

    columns = {
        "cell": summary["cell"],
        "init": summary["init"],
        "length": summary["length"].astype(str),
        "clip": ["none" if math.isnan(clip) else given(clip) for clip in summary["clip"]],
        "seeds": summary["seeds"].astype(str),
        "diverged": summary["diverged"].astype(str),
        "held-out": [
            "-" if math.isnan(value) else f"{value:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
            for value, spread in zip(summary["value"], summary["spread"], strict=True)
        ],
        "rate start": [_rate(rate) for rate in summary["rate_early"]],
        "rate end": [_rate(rate) for rate in summary["rate_late"]],
    }
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    metric = summary["metric"].iloc[0]
    whose = f"gradient ({quantity})" if quantity else "gradient"
    return "\n".join([*lines, f"held-out: {metric}, mean ± sd over seeds; rate: log10 of the {whose} per step back"])


def _rate(value: float) -> str:
    from gradscope.report.view import signed

    return "-" if value is None or math.isnan(value) else signed(value)
