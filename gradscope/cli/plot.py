"""``gradscope plot``: one figure of one or more runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from gradscope.cli.completing import STYLES, Name, RunPath, SiteName
from gradscope.cli.say import say
from gradscope.cli.which import opened, which_records
from gradscope.errors import RunExistsError, SettingError
from gradscope.plots import PLOTS


@click.command()
@click.argument("kind", type=Name(tuple(PLOTS)))
@click.argument("sources", nargs=-1, required=True, type=RunPath(), metavar="RUN...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Ends in .pdf, .svg, .png or .pgf; the data go to the CSV of the same name.")  # fmt: skip  # noqa: E501
@click.option("--style", type=Name(STYLES), default="neurips", show_default=True, help=f"Paper width: {', '.join(STYLES)}.")  # fmt: skip  # noqa: E501
@click.option("--force", is_flag=True, help="Replace FILE and its CSV where they exist.")
@click.option("--site", type=SiteName(), multiple=True, help="Only this site. May be repeated.")
@click.option("--quantity", help="hidden, cell, input ...; by default what describes each site.")
@click.option("--step", help="A recorded step, or first, early, late, last, all.")
@click.option("--metric", help="A logged scalar; in a map also reach: what arrives at the first input.")
@click.option("--rows", help="map: the setting down, a label of the runs, cell, init or threshold.")
@click.option("--columns", help="map: the setting across.")
@click.option("--target", type=int, multiple=True, help="connectivity: the loss at this step; by default the last. May be repeated.")  # fmt: skip  # noqa: E501
@click.option("--tokens", help="connectivity: what stands at each step, separated by commas.")
@click.option("--horizon", type=float, help="Mark the first lag where the gradient is below this fraction.")
@click.option("--absolute", is_flag=True, help="Norms themselves, not relative to lag 0.")
@which_records
def plot(
    kind: str, sources: tuple[Path, ...], out: Path, style: str, force: bool, site: tuple[str, ...],
    quantity: str | None, step: str | None, metric: str | None, rows: str | None, columns: str | None,
    target: tuple[int, ...], tokens: str | None, horizon: float | None, absolute: bool, **choice: int | None,
) -> None:  # fmt: skip
    """Draw one figure. KIND is one of

    \b
    story          the gradient at each input before training, then by threshold, and the loss
    decay          the gradient against lag, a line per run and site
    training       the same through training, early to late
    norms          gradient norm and threshold, and the loss
    clipping       what any clipping threshold would have done
    comparison     parameters, loss and half-life per run
    gates          gate adjoints against lag
    timescales     how long each unit retains
    weight         contribution of each timestep to the weight gradient
    learning       training and held-out loss
    sweep_loss, sweep_metric, norm_distribution    runs at several thresholds
    map            a number over two settings, with intervals over seeds

    From what was measured on demand and saved by its .save(path), an .npz:

    \b
    spectrum       singular values of the Jacobian against lag
    lyapunov       all exponents, a line per file
    dynamics       exponent and condition through training, from files saved with step=
    source_target  which state each loss depends on
    connectivity   which input steps, or tokens, the loss at a step looks at
    whatif         the decay if the adjoint were clipped at every timestep

    RUN is a run directory or a packed file. Every kind, and evidence of the lecture, is drawn from the CSV beside its
    figure as well: in the style of another paper, say.
    """
    from gradscope import plots
    from gradscope.plots import figures
    from gradscope.plots.saving import csv_bytes
    from gradscope.plots.sources import is_data, table_of
    from gradscope.plots.style import preset
    from gradscope.reading.select import left_out_words

    module = plots.load(kind)
    preset(style)
    if out.exists() and not force:
        raise _exists(out)
    selected = {
        "site": list(site) or None, "quantity": quantity, "step": _step(step), "metric": metric, "rows": rows,
        "columns": columns, "targets": list(target) or None, "tokens": None if tokens is None else tokens.split(","),
    }  # fmt: skip
    look: dict[str, Any] = {"horizon": horizon, "relative": False if absolute else None}
    readings: list[Any] = []
    if any(map(is_data, sources)):
        data = table_of(module, sources, _accepted(module.table, selected, kind))
    elif not getattr(module, "FROM_RUNS", True):
        raise SettingError(f"the figure {kind!r} is not drawn from a recording: it needs {module.NEEDS}.")
    else:
        readings = opened(sources, **choice)
        data = module.table(readings, **_accepted(module.table, selected, kind))
    for line in left_out_words(data):
        say(line, err=True)
    table = out.with_suffix(".csv")
    # The figure may be wanted in a second format, or come from this very file.
    if not force and table.exists() and table.read_bytes() != csv_bytes(data):
        raise _exists(table)
    drawer = figures.drawer(module)
    for path in figures.write(module, data, out, style=style, runs=readings, **_accepted(drawer, look, kind)):
        say(path)


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(f"{path} exists already; choose another -o, or replace it with --force.")


def _step(step: str | None) -> int | str | None:
    from gradscope.reading import PARTS

    if step is None or step in PARTS:
        return step
    try:
        return int(step)
    except ValueError:
        raise SettingError(f"--step takes a number or one of {', '.join(PARTS)}, not {step!r}.") from None


def _accepted(function: Any, given: dict[str, Any], kind: str) -> dict[str, Any]:
    """The options that were given; refuses one that this figure does not have rather than ignore it."""
    given = {name: value for name, value in given.items() if value is not None}
    known = inspect.signature(function).parameters
    for name in given:
        if name not in known:
            option = "absolute" if name == "relative" else name
            raise SettingError(f"--{option} does not apply to the figure {kind!r}.")
    return given
