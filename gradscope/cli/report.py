"""``gradscope report``: runs to one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradscope.cli.completing import RunPath
from gradscope.cli.printing import numbers
from gradscope.cli.say import say
from gradscope.cli.which import opened, which_records
from gradscope.words import counted

if TYPE_CHECKING:
    from gradscope.report import ReportPaths

#: Seconds between two pages: drawing one takes some seconds of a processor that the training may want.
_INTERVAL = 30.0


@click.command()
@click.argument("runs", nargs=-1, required=True, type=RunPath(), metavar="RUN...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Written there; must not exist or be empty.")  # fmt: skip  # noqa: E501
@click.option("--title", default="", help="Heading of the page.")
@click.option("--quantity", help="hidden, cell, input ...; by default what describes each site.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of sentences.")
@click.option(
    "--fail-on",
    type=click.Choice(["vanishing", "exploding"]),
    multiple=True,
    help="Exit with 3 when a site has this verdict at the end of training. May be repeated.",
)
@click.option("--watch", is_flag=True, help="Write it anew as records arrive, until nobody writes the runs any more.")
@click.option("--interval", type=click.FloatRange(min=1), metavar="SECONDS", help="With --watch: between two pages, 30 by default.")  # fmt: skip  # noqa: E501
@which_records
@click.pass_context
def report(
    ctx: click.Context, runs: tuple[Path, ...], out: Path, title: str, quantity: str | None, as_json: bool,
    fail_on: tuple[str, ...], watch: bool, interval: float | None, **choice: int | None,
) -> None:  # fmt: skip
    """Turn recorded runs into one HTML page with figures, tables and numbers.

    RUN is a run directory or a packed file. Several are compared.
    """
    if interval is not None and not watch:
        raise click.UsageError("--interval goes with --watch.")
    # Imported here: a mistyped option should not wait for matplotlib.
    from gradscope.reading.facts import advice_of_all, clipping_lines
    from gradscope.report import build_report
    from gradscope.report.build import check_free

    check_free(out)
    if watch:
        written = _follow(runs, out, interval or _INTERVAL, choice, title=title, quantity=quantity)
    else:
        written = build_report(opened(runs, **choice), out, title=title, quantity=quantity)
    if as_json:
        say(numbers(written))
    else:
        for found in written.facts:
            for line in found.remarks:
                say(f"{found.name}: {line}")
            for said in found.answers:
                say(f"{found.name}: {said.sentence}")
            for why in () if found.answers else found.silent.values():
                say(f"{found.name}: no answer: {why}")
            for line in clipping_lines(found):
                say(f"{found.name}: {line}")
            for line in found.what_now:
                say(f"{found.name}: what now (clipping): {line}")
        for line in advice_of_all(written.facts):
            say(line)
        say(f"report: {written.index}")
    met = sorted(written.verdicts.intersection(fail_on))
    if met:
        say(f"gradscope: --fail-on met: {', '.join(met)}", err=True)
        ctx.exit(3)


def _follow(
    runs: Sequence[Path], out: Path, interval: float, choice: Mapping[str, int | None], **asked: Any
) -> ReportPaths:
    """Write the report whenever a run has changed; return the last."""
    from gradscope.errors import EmptyRunError
    from gradscope.report import build_report
    from gradscope.store.growing import changes

    written = None
    for last in changes(runs, interval):
        try:
            written = build_report(opened(runs, **choice), out, replace=written is not None, **asked)
        except EmptyRunError:
            if last:
                raise
            say("gradscope: nothing recorded yet", err=True)
            continue
        records = sum(found.n_records for found in written.facts)
        say(f"gradscope: {written.index} written at {counted(records, 'record')}", err=True)
    assert written is not None  # the last look is at something, or raises
    return written
