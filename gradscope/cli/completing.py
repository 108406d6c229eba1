"""What a shell completes: names of figures, styles and tasks, runs, and the sites of the runs on the line.

Nothing here says what exists: a wrong name goes on to what refuses it with the nearest ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

# Held to the registries by a test: these are imported at every TAB, and torch and matplotlib take seconds.
STYLES = ("aaai", "iclr", "icml", "icml2", "ieee", "ieee2", "jmlr", "neurips", "screen")
TASKS = ("digits", "adding", "temporal_order", "copy", "sunspots")
CELLS = ("rnn", "rnn-relu", "rnn-stacked", "rnn-bidirectional", "lstm", "gru", "peephole", "coupled", "mingru", "lru")
INITS = ("default", "forget1", "update1", "chrono", "orthogonal", "identity")

#: A completion is asked for at a keystroke.
_MOST = 200


class Name(click.ParamType):
    """A name out of several."""

    name = "text"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return among(self._known, incomplete)


class RunPath(click.Path):
    """A run directory or a packed file: the runs below what is typed, or any file where there are none."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from gradscope.store.nearby import runs_below

        typed = os.path.split(incomplete)[0]
        folder = Path(typed or ".")
        runs = sorted(os.path.join(typed, run.relative_to(folder)) for run in runs_below(folder))
        return among(runs, incomplete) or [CompletionItem(incomplete, type="file")]


class SiteName(click.ParamType):
    """A site of the runs that stand on the line."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from gradscope.errors import GradscopeError
        from gradscope.store import open_run
        from gradscope.store.layout import looks_like_run

        # Behind an option that still lacks its value, click leaves the arguments of the line as they were typed.
        given = [ctx.params.get(name) or () for name in ("runs", "sources", "run")]
        typed = [path for one in given for path in ((one,) if isinstance(one, Path) else one)]
        sites: dict[str, None] = {}
        for path in [*typed, *filter(looks_like_run, map(Path, ctx.args))]:
            try:
                with open_run(path) as run:
                    sites.update(dict.fromkeys(run.sites))
            except (GradscopeError, OSError):  # the command will say so
                continue
        return among(tuple(sites), incomplete)


def among(known: Sequence[str], incomplete: str) -> list[CompletionItem]:
    """The names that begin so, of a list separated by commas the last one."""
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in known if name.startswith(last)][:_MOST]


def complete_list(known: Sequence[str]) -> Any:
    """The ``shell_complete`` of an option that takes several names, separated by commas."""
    return lambda _ctx, _param, incomplete: among(known, incomplete)
