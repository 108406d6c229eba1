"""A click group that imports a command only when it is called, and maps gradscope's errors to exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from gradscope._version import __version__
from gradscope.cli.say import say
from gradscope.errors import GradscopeError

# What a shell reports for a program that died of SIGINT or SIGPIPE.
_INTERRUPTED = 128 + 2
_PIPE_CLOSED = 128 + 13


# Reading what was recorded elsewhere is of use without it, and it is most of what an installation weighs.
_TORCH = (
    "'gradscope {command}' trains networks and needs PyTorch, which is not installed. Install it with "
    "'python -m pip install torch', or as pytorch.org says for your device. report, plot, inspect, export, validate, "
    "pack and repair read recorded runs without it."
)


class Entry(NamedTuple):
    """Where a command lives (``module:attribute``) and its line in ``gradscope --help``."""

    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose commands are imported when called.

    Parameters
    ----------
    entries : mapping of str to Entry
        Command name to its home. Listing them (``--help``) imports none.
    """

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = dict(entries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.entries:
            return None
        module, _, attribute = self.entries[cmd_name].target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.ClickException(f"the command {cmd_name!r} is not part of gradscope {__version__}.") from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            # Imported here: only a mistyped command needs it.
            from difflib import get_close_matches

            close = get_close_matches(name, self.entries, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else f" Known: {', '.join(self.entries)}."
            ctx.fail(f"no such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe must surface here, not in the interpreter's shutdown
        except GradscopeError as error:
            say(f"gradscope: error: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            click.echo(f"gradscope: error: {_TORCH.format(command=ctx.invoked_subcommand)}", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            _discard_stdout()
            ctx.exit(_PIPE_CLOSED)
        except KeyboardInterrupt:
            say("gradscope: interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        return result


def _discard_stdout() -> None:
    # The reader is gone (`gradscope ... | head`): what is still buffered would fail again at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_main(entries: Mapping[str, Entry]) -> LazyGroup:
    """Build the ``gradscope`` command of these entries."""

    @click.group(
        cls=LazyGroup,
        entries=entries,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog="Exit codes: 0 fine, 1 the data or run is bad, 2 the command was wrong, 3 a verdict asked for by "
        "--fail-on was met.",
    )
    @click.version_option(__version__, prog_name="gradscope", message="%(prog)s %(version)s")
    def main() -> None:
        """How far back does the gradient reach, and what did clipping do to it?"""

    assert isinstance(main, LazyGroup)
    return main
