"""``gradscope record``: somebody's training script, unedited, recorded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from gradscope.cli.script import NoSuchModuleError, check_script, run_script, when_torch_is_imported
from gradscope.errors import RunExistsError, SettingError, UnknownNameError
from gradscope.schema import DEFAULT_QUANTITIES, QUANTITIES


class _Every(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


@click.command(context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS] [-m]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run directory; must not exist. Default: runs/<script>, or runs/<script>-2 and so on.",
)
@click.option(
    "--every",
    default=10,
    show_default=True,
    metavar="N|auto",
    type=_Every(min=1),
    help="Record one step in N; auto: as many as cost at most 2% of the training.",
)
@click.option("--samples", default="8", show_default=True, metavar="N|all", help="Sequences of each batch to record.")
@click.option(
    "--quantities",
    metavar="A,B",
    help=f"Of {', '.join(QUANTITIES)}; or all. Default: {','.join(DEFAULT_QUANTITIES)}.",
)
@click.option("--sites", metavar="A,B", help="Sites, module paths or patterns; default: every recurrent layer.")
@click.option("--tensors", is_flag=True, help="Keep the full tensors beside the norms.")
@click.option(
    "--durability", default="default", type=click.Choice(["default", "full"]), help="full: survives power cuts."
)
@click.option("--restart", is_flag=True, help="Add a new attempt to the run.")
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module, as for python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def record(
    out: Path | None, every: int | str, samples: str, script: str, arguments: tuple[str, ...], module: bool, **rest: Any
) -> None:
    """Run a training script as python would, with every recurrent layer of its models recorded.

    No edit is needed. Everything after SCRIPT belongs to the script. Steps are those of its optimizers. Models that
    work together (of different classes, or in one optimizer) share a run, with sites such as encoder.lstm/l0; a later
    training, or another model of the same class, gets a run of its own, RUN-2 beside RUN.
    """
    settings = _settings(every, samples, **rest)
    name = script.rpartition(".")[2] if module else check_script(script).stem
    run_dir = _run_dir(out, name, settings["restart"])
    watch = _Watch(run_dir, settings)
    when_torch_is_imported(watch.begin)
    try:
        status = run_script(script, arguments, module=module, finish=watch.finish)
    except NoSuchModuleError:
        watch.abandon()
        raise
    sys.exit(status)


class _Watch:
    """The launcher, once torch is there."""

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        self._run_dir, self._settings = run_dir, settings
        self._launcher: Any = None
        self._process = os.getpid()
        self._said: list[str] | None = None
        self._failure = "nothing was recorded: the script never imported torch"

    def begin(self) -> None:
        """Called inside the script's first import of torch, which it must not disturb."""
        try:
            from gradscope.capture.launcher import Launcher

            launcher = Launcher(self._run_dir, **self._settings)
            launcher.install()
            self._launcher = launcher
        except Exception as error:
            self._failure = f"nothing was recorded: {type(error).__name__}: {error}"

    def abandon(self) -> None:
        """Take the launcher away without a word: no script has run."""
        self._said = []
        if self._launcher is not None:
            self._launcher.finish()

    def finish(self) -> None:
        """Close the runs and say where they are, once."""
        if self._said is not None or os.getpid() != self._process:
            return
        self._said = []
        self._said = [self._failure] if self._launcher is None else self._launcher.finish()
        for line in self._said:
            click.echo(f"gradscope: {line}", err=True)


def _settings(every: int | str, samples: str, **rest: Any) -> dict[str, Any]:
    """Return the keywords of ``gradscope.record``; what can be wrong is wrong before the script runs."""
    if samples != "all" and not (samples.isascii() and samples.isdigit() and int(samples) > 0):
        raise SettingError(f"--samples must be a whole number of at least 1, or all, not {samples!r}")
    quantities, sites = _listed("--quantities", rest["quantities"]), _listed("--sites", rest["sites"])
    for name in quantities or ():
        if name not in QUANTITIES and quantities != ["all"]:
            raise UnknownNameError("quantity", name, QUANTITIES)
    number = None if samples == "all" else int(samples)
    return {**rest, "every": every, "samples": number, "quantities": quantities, "sites": sites}


def _listed(option: str, given: str | None) -> list[str] | None:
    if given is None:
        return None
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise SettingError(f"{option} is empty: nothing would be recorded")
    return names


def _run_dir(out: Path | None, name: str, restart: bool) -> Path:
    """Return an absolute path, for the script may change directory."""
    shared = int(os.environ.get("WORLD_SIZE", "1") or 1) > 1  # the other ranks may have made it already
    if out is None:
        out, number = Path("runs", name), 1
        while out.exists() and not (restart or shared):
            number += 1
            out = Path("runs", f"{name}-{number}")
    elif out.exists() and not (restart or shared):
        raise RunExistsError(f"{str(out)!r} exists already; choose another --out, remove it, or add --restart.")
    return out.absolute()
