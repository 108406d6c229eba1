"""Runs that somebody made on purpose, against every command that reads one.

Each must be refused in gradscope's own words or read, within 10 s and 1 GiB, with nothing outside it touched and, but
for `repair`, nothing in it changed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.torture import crafted_arrays, crafted_journals, crafted_paths, crafted_texts
from tests.torture.limited import Children, command, read
from tests.torture.outcome import Outcome
from tests.torture.strange import Bases, Make

PROMISE = "A run from a stranger costs a reading command at most 10 s and 1 GiB, and nothing outside it"


class Case(NamedTuple):
    """A bad run: its name, what makes it, and where it begins."""

    name: str
    make: Make
    base: str


def cases() -> list[Case]:
    """All of them, those that cost least to make first."""
    found = [
        Case(f"{module.__name__.rpartition('crafted_')[2]}: {name}", make, base)
        for module in (crafted_paths, crafted_texts, crafted_arrays, crafted_journals)
        for name, make, base in module.cases()
    ]
    assert len({case.name for case in found}) == len(found)
    return found


Command = Callable[[Path, Path, Path], dict[str, Any]]


def _out(name: str, *arguments: str) -> Command:
    return lambda run, out, watched: command(*arguments, run, "-o", out / name, watched=watched)


def _plain(*arguments: str) -> Command:
    return lambda run, out, watched: command(*arguments, run, watched=watched)


#: Every way in which a run is read; `repair` last, for it changes one.
COMMANDS: dict[str, Command] = {
    "open_run": lambda run, out, watched: read(run, watched, shown=True),
    "inspect": _plain("inspect"),
    "validate": _plain("validate"),
    "export": _out("csv", "export"),
    "export --table norms": _plain("export", "--table", "norms"),
    "plot decay": _out("decay.png", "plot", "decay"),
    "report": _out("report", "report"),
    "pack": _out("packed.h5", "pack"),
    "repair": _plain("repair"),
}
#: Of names of cases that take seconds to make.
_COSTLY = ("thousand", "million", "gibi", "megabytes", "chain", "zeros", "never written", "PB")
#: Those that tell most in the least time.
QUICK = ("open_run", "validate", "repair")


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Try every case with every command; ``count`` cases, spread over all kinds, with the quick ones."""
    every = [case for case in cases() if count is None or not any(word in case.name for word in _COSTLY)]
    chosen = every if count is None else every[:: max(1, len(every) // count)][:count]
    commands = list(COMMANDS) if count is None else list(QUICK)
    outcome = Outcome(PROMISE, 0)
    with Children() as children:
        bases = Bases(scratch / "bases")
        for case in chosen:
            outcome.fell_short += [f"{case.name}: {what}" for what in attempt(case, children, bases, scratch, commands)]
            outcome.tries += len(commands)
    return outcome


def attempt(case: Case, children: Children, bases: Bases, scratch: Path, commands: Iterable[str]) -> Iterator[str]:
    """What one case did that none may do."""
    place = scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    run_dir, outside, out = place / "run", place / "outside", place / "out"
    shutil.copytree(bases.get(case.base), run_dir, symlinks=True)
    shutil.copytree(bases.get("sealed"), outside)
    (outside / "attempt-1/rank-0/.segment-00009.h5.7.tmp").write_text("somebody's")
    target = case.make(run_dir, outside) or run_dir
    out.mkdir()
    before, behind = snapshot(run_dir), snapshot(outside)
    reading = [name for name in commands if name != "repair"]
    yield from _faults(reading, children, target, out, outside)
    if snapshot(run_dir) != before:
        yield "reading changed the run"
    if "repair" in commands:
        yield from _faults(["repair"], children, target, out, outside)
    if snapshot(outside) != behind:
        yield "changed what is outside"
    shutil.rmtree(place, ignore_errors=True)


def _faults(names: list[str], children: Children, target: Path, out: Path, outside: Path) -> Iterator[str]:
    for name, ended in zip(names, children.together([COMMANDS[n](target, out, outside) for n in names]), strict=True):
        if ended.fault:
            yield f"{name}: {ended.fault}"
        elif ended.code not in (0, 1, 2):
            yield f"{name}: exit code {ended.code}"
        if ended.touched:
            yield f"{name}: touched {ended.touched[0]}"


def snapshot(folder: Path) -> str:
    """Names, kinds, sizes and times of everything below a directory, links not followed."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.update(f"{path} {status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode())
    return found.hexdigest()
