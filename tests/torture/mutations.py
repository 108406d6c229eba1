"""Files of runs with bytes changed by a seeded chance: an error in gradscope's own words, or the same numbers.

Journals, segments, segments whose SHA-256 was written anew, packed files, and what stands beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.errors import GradscopeError
from gradscope.store import open_run
from gradscope.store.part import RECORD_COLUMNS, SEQUENCE_COLUMNS, TABLES
from tests.torture.limited import Children, carry_out, command, read
from tests.torture.outcome import Outcome
from tests.torture.resum import sum_beside
from tests.torture.strange import JOURNAL, SEGMENT, Bases

PROMISE = "A changed byte anywhere in a run gives an error or the same numbers, never a traceback or a hang"
TRIES, SEED = 4_200, 20261126

Change = Callable[[bytearray, np.random.Generator], None]


def _flip(content: bytearray, random: np.random.Generator) -> None:
    content[_at(content, random)] ^= 1 << int(random.integers(8))


def _bytes(content: bytearray, random: np.random.Generator) -> None:
    for _ in range(int(random.integers(1, 21))):
        content[_at(content, random)] = int(random.integers(256))


def _digit(content: bytearray, random: np.random.Generator) -> None:
    """A digit becomes another: what keeps JSON well formed, and changes its numbers."""
    places = [k for k in range(len(content)) if 48 <= content[k] <= 57]
    if places:
        content[places[int(random.integers(len(places)))]] = 48 + int(random.integers(10))


def _high(content: bytearray, random: np.random.Generator) -> None:
    """The last byte of one of the float64 numbers."""
    content[_at(content, random) // 8 * 8 + 7 : _at(content, random) // 8 * 8 + 8] = bytes([int(random.integers(256))])


def _zeros(content: bytearray, random: np.random.Generator) -> None:
    start, size = _at(content, random), int(random.integers(1, 4097))
    content[start : start + size] = bytes(len(content[start : start + size]))


def _swap(content: bytearray, random: np.random.Generator) -> None:
    """Two stretches change places, as sectors that were written to the wrong ones."""
    size = int(random.choice([8, 64, 512, 4096]))
    a, b = (_at(content, random) // size * size for _ in range(2))
    first, second = content[a : a + size], content[b : b + size]
    if len(first) == len(second):
        content[a : a + size], content[b : b + size] = second, first


def _copy(content: bytearray, random: np.random.Generator) -> None:
    size = int(random.choice([1, 8, 64, 512, 4096]))
    a, b = _at(content, random), _at(content, random)
    piece = content[a : a + size]
    content[b : b + len(piece)] = piece[: len(content[b : b + len(piece)])]


def _cut(content: bytearray, random: np.random.Generator) -> None:
    del content[_at(content, random) :]


def _grow(content: bytearray, random: np.random.Generator) -> None:
    content += random.bytes(int(random.integers(1, 5000)))


CHANGES: tuple[Change, ...] = (_flip, _flip, _bytes, _digit, _digit, _high, _zeros, _swap, _copy, _cut, _grow)


def _at(content: bytearray, random: np.random.Generator) -> int:
    return int(random.integers(len(content)))


#: What is changed: the kind of run, the file in it, and what is done to its SHA-256.
TARGETS: dict[str, tuple[str, str, bool]] = {
    "journal": ("open", JOURNAL, False),
    "journal behind segments": ("both", JOURNAL, False),
    "journal of a torn commit": ("torn", JOURNAL, False),
    "rollback journal of a torn commit": ("torn", f"{JOURNAL}-journal", False),
    "segment": ("sealed", SEGMENT, False),
    "re-summed segment": ("sealed", SEGMENT, True),
    "segment before a journal": ("both", SEGMENT, True),
    "packed file": ("packed", "run.h5", False),
    "side file": ("sealed", f"{SEGMENT}.sha256", False),
    "rollback journal": ("open", f"{JOURNAL}-journal", False),
}
#: Journals and packed files are what went wrong before.
WEIGHTS = (6, 3, 2, 1, 3, 4, 3, 5, 1, 1)
#: Every fourth changed run is tried with one of these too.
COMMANDS = ("inspect", "validate", "repair", "export", "validate", "pack")
_EVERY = 4
_TOGETHER = 50
_FINE = ("refused", "same numbers", "done")


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Change and read; in ``fell_short`` each that gave other numbers, or what no command may do."""
    outcome = Outcome(PROMISE, 0)
    total = count or TRIES
    bases = Bases(scratch / "bases")
    for kind in {base for base, *_ in TARGETS.values()}:
        bases.get(kind)
    with Children() as children:
        for start in range(0, total, _TOGETHER):
            outcome.fell_short += _batch(children, scratch, start, min(start + _TOGETHER, total))
    outcome.tries = total
    return outcome


def _batch(children: Children, scratch: Path, start: int, stop: int) -> list[str]:
    """What went wrong from one number to another, in one child; in one each where that did what none may do."""
    ended = children.do({"call": "tests.torture.mutations:try_all", "with": [str(scratch), start, stop, SEED]})
    if ended.fault or ended.code != 0:
        if stop - start == 1:
            return [f"{start}, {describe(start)}: {ended.fault or ended.err[-200:]}"]
        return [what for number in range(start, stop) for what in _batch(children, scratch, number, number + 1)]
    return [f"{start}: {line}" for line in ended.out.splitlines() if line]


def describe(number: int) -> str:
    """What is changed in a number, and how."""
    name, change, _ = _choice(number, SEED)
    return f"{name}, {change.__name__.strip('_')}"


def _choice(number: int, seed: int) -> tuple[str, Change, np.random.Generator]:
    random = np.random.default_rng([seed, number])
    name = str(random.choice(list(TARGETS), p=np.array(WEIGHTS) / sum(WEIGHTS)))
    return name, CHANGES[int(random.integers(len(CHANGES)))], random


# --- in a child ------------------------------------------------------------------------------------------------------


def try_all(scratch: str, start: int, stop: int, seed: int) -> None:
    """Print a line for each number that went wrong."""
    home = Path(scratch)
    right = {base: _numbers(home / "bases" / base, base) for base in {base for base, *_ in TARGETS.values()}}
    for number in range(start, stop):
        name, change, random = _choice(number, seed)
        base, file, summed = TARGETS[name]
        place = home / "changed"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(home / "bases" / base, place / "run")
        _change(place / "run" / file, change, random, summed)
        path = place / "run" / file if base == "packed" else place / "run"
        jobs = [read(path)] + ([_command(number, path, place / "out")] if number % _EVERY == 0 else [])
        for job in jobs:
            kind = _class(job, right[base])
            if kind not in _FINE:
                print(f"{number}, {name}, {change.__name__.strip('_')}, {job.get('command', ['open_run'])[0]}: {kind}")


def _change(path: Path, change: Change, random: np.random.Generator, summed: bool) -> None:
    content = bytearray(path.read_bytes())
    if content:
        change(content, random)
    path.write_bytes(content)
    if summed:
        sum_beside(path)


def _command(number: int, path: Path, out: Path) -> dict[str, Any]:
    name = COMMANDS[number // _EVERY % len(COMMANDS)]
    return command(name, path, *(["-o", out] if name in ("export", "pack") else []))


def _class(job: dict[str, Any], right: str) -> str:
    """What became of one job: refused, done, the same numbers, or else."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            warnings.simplefilter("error")
            if "command" in job:
                code = carry_out(job)
                return {0: "done", 1: "refused", 2: "refused"}.get(code, f"exit code {code}")
            found = numbers(Path(job["read"]))
    except GradscopeError:
        return "refused"
    except BaseException as error:
        return f"traceback: {type(error).__name__}: {error} {told.getvalue()[-300:]}"
    return "same numbers" if found == right else "silently different numbers"


def _numbers(path: Path, kind: str) -> str:
    return numbers(path / "run.h5" if kind == "packed" else path)


def numbers(path: Path) -> str:
    """A digest of every number and word of a run, as its parts give them."""
    run = open_run(path)
    said = hashlib.sha256(repr(run.header).encode())
    for part in run.parts:
        for site in part.sites():
            said.update(repr((site, part.datasets(site), part.extent(site), part.gates(site))).encode())
            for name in (*RECORD_COLUMNS, *SEQUENCE_COLUMNS):
                said.update(part.column(site, name).tobytes())
            for dataset in part.datasets(site):
                said.update(part.recorded(site, dataset).tobytes())
                said.update(part.array(site, dataset).tobytes())
        for group in TABLES:
            table = part.table(group)
            said.update(repr(table.names).encode())
            for values in (*table.columns.values(), table.values):
                said.update(values.tobytes())
    return said.hexdigest()
