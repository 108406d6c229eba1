"""Which runs are near a path: for the message where there is none, and for a shell that completes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from gradscope.errors import RunNotFoundError
from gradscope.store.layout import looks_like_run

#: Folders below the first that are looked into, entries that are looked at, runs that are named.
_DEEP, _ENTRIES, _NAMED = 2, 2000, 3


def runs_near(path: Path) -> list[Path]:
    """Runs in and below the nearest folder of ``path`` that exists, those named most like it first.

    Two folders deep and 2000 entries at most are looked at: a path may lead anywhere. Nothing is opened.
    """
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    found = sorted(islice(runs_below(folder), _ENTRIES))
    likeness = {run: difflib.SequenceMatcher(None, run.name, path.name).ratio() for run in found}
    return sorted(found, key=lambda run: -likeness[run])


def no_run(path: Path, why: str = "") -> RunNotFoundError:
    """The error for a path that holds no run, with the runs nearby.

    Parameters
    ----------
    path : Path
    why : str
        What was found instead; by default that there is nothing.
    """
    near = [repr(str(run)) for run in runs_near(path)]
    more = f" (and {len(near) - _NAMED} more)" if len(near) > _NAMED else ""
    hint = f" Runs nearby: {', '.join(near[:_NAMED])}{more}." if near else ""
    return RunNotFoundError(f"{why or f'there is no run at {str(path)!r}.'}{hint}")


def runs_below(folder: Path) -> Iterator[Path]:
    """Run directories and packed files in a folder and in the two levels below it."""
    seen = iter(range(_ENTRIES))
    waiting = [(folder, 0)]
    while waiting:
        where, depth = waiting.pop(0)
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    if next(seen, None) is None:
                        return
                    path = where / entry.name
                    if looks_like_run(path):
                        yield path
                    elif depth < _DEEP and entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        waiting.append((path, depth + 1))
        except OSError:  # may not be read
            continue
