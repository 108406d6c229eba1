"""``gradscope sweep``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd


class CommaList(click.ParamType):
    """``a,b,c``, each converted alone."""

    def __init__(self, name: str, convert_one: Callable[[str], Any]) -> None:
        self.name, self._convert_one = name, convert_one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        items = []
        for part in filter(None, (part.strip() for part in value.split(","))):
            try:
                items.append(self._convert_one(part))
            except ValueError:
                self.fail(f"{part!r} is not {self.name}", param, ctx)
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


NAMES = CommaList("a name", str)
LENGTHS = CommaList("a length", int)
SEEDS = CommaList("a seed", int)
THRESHOLDS = CommaList("a positive threshold or 'none'", _threshold)


@click.command()
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory; an unfinished sweep goes on."
)
@click.option("--task", default="digits", show_default=True, help="digits, adding, temporal_order, copy or sunspots.")
@click.option("--length", type=LENGTHS, default=None, help="Sequence lengths  [default: the task's own]")
@click.option("--cell", type=NAMES, default="rnn", show_default=True, help="rnn, rnn-relu, lstm, gru, peephole ...")
@click.option(
    "--init", type=NAMES, default="default", show_default=True, help="default, orthogonal, forget1, chrono ..."
)
@click.option("--clip", type=THRESHOLDS, default="none", show_default=True, help="Norm thresholds, e.g. none,0.1,1.")
@click.option("--seed", type=SEEDS, default="0", show_default=True, help="Of weights and batches.")
@click.option("--hidden", type=int, default=64, show_default=True, help="Units of a layer.")
@click.option("--steps", type=int, default=300, show_default=True)
@click.option("--batch", type=int, default=64, show_default=True)
@click.option("--optimizer", type=click.Choice(["adam", "sgd"]), default="adam", show_default=True)
@click.option("--lr", type=float, default=None, help="Learning rate  [default: 0.003 for adam, 0.1 for sgd]")
@click.option("--every", type=int, default=10, show_default=True, help="Record one step in so many.")
@click.option("--samples", type=int, default=8, show_default=True, help="Sequences of a batch to record.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Trainings at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, a row per training.")
def sweep(out: Path, length: tuple[int, ...] | None, jobs: int, as_json: bool, **axes: Any) -> None:
    """Train cell x init x length x clip threshold x seed, each recorded; resumable.

    Axes take comma-separated values. Cut off, the same command goes on where it stopped; more values on an axis add to
    what is there. With Adam a threshold changes little, for Adam divides by the gradient's own size: compare thresholds
    with --optimizer sgd.

        gradscope sweep -o clipping --optimizer sgd --clip none,0.05,0.5,5 --seed 0,1,2 --jobs 2
    """
    from gradscope.lab.grid import Grid
    from gradscope.lab.sweep import run_sweep, summary_table
    from gradscope.lab.train import TrainSettings

    rate = axes["lr"] if axes["lr"] is not None else (0.003 if axes["optimizer"] == "adam" else 0.1)
    grid = Grid(
        task=axes["task"],
        lengths=length or (None,),
        cells=axes["cell"],
        inits=axes["init"],
        clips=axes["clip"],
        seeds=axes["seed"],
        hidden_size=axes["hidden"],
        settings=TrainSettings(axes["steps"], axes["batch"], axes["optimizer"], rate),
        every=axes["every"],
        samples=axes["samples"],
    )
    for cell, init in grid.left_out():
        click.echo(f"left out: init {init} is not meant for {cell}", err=True)
    table = run_sweep(grid, out, jobs=jobs)
    if as_json:
        click.echo(json.dumps(json.loads(table.to_json(orient="records")), indent=1))
        return
    click.echo(_shown(summary_table(table)))
    click.echo(
        f"\nEvery training: {out / 'results.csv'}\nTheir figures:  gradscope report {out / 'runs'}/* -o {out}-report"
    )


def _shown(summary: pd.DataFrame) -> str:
    """Mean over the seeds, with its standard deviation."""
    columns = {
        "cell": summary["cell"],
        "init": summary["init"],
        "length": summary["length"].astype(str),
        "clip": ["none" if math.isnan(clip) else f"{clip:g}" for clip in summary["clip"]],
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
    return "\n".join([*lines, f"held-out: {metric}, mean ± sd over seeds; rate: log10 of the gradient per step back"])


def _rate(value: float) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:+.4f}"
