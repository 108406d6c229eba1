"""``gradscope report``: runs to one page."""

from __future__ import annotations

import json
from pathlib import Path

import click

from gradscope.cli.say import say
from gradscope.cli.which import opened, which_records


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
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
@which_records
@click.pass_context
def report(
    ctx: click.Context, runs: tuple[Path, ...], out: Path, title: str, quantity: str | None, as_json: bool,
    fail_on: tuple[str, ...], **choice: int | None,
) -> None:  # fmt: skip
    """Turn recorded runs into one HTML page with figures, tables and numbers.

    RUN is a run directory or a packed file. Several are compared.
    """
    # Imported here: a mistyped option should not wait for matplotlib.
    from gradscope.reading.facts import advice_of_all
    from gradscope.report import build_report
    from gradscope.report.build import check_free

    check_free(out)
    written = build_report(opened(runs, **choice), out, title=title, quantity=quantity)
    if as_json:
        numbers = json.loads(written.summary.read_text(encoding="utf-8"))
        say(json.dumps({"report": str(written.index), **numbers}, indent=2, sort_keys=True))
    else:
        for found in written.facts:
            for line in found.remarks:
                say(f"{found.name}: {line}")
            for said in found.answers:
                say(f"{found.name}: {said.sentence}")
            for line in found.what_now:
                say(f"{found.name}: what now (clipping): {line}")
        for line in advice_of_all(written.facts):
            say(line)
        say(f"report: {written.index}")
    met = sorted(written.verdicts.intersection(fail_on))
    if met:
        say(f"gradscope: --fail-on met: {', '.join(met)}", err=True)
        ctx.exit(3)
