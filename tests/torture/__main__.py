"""Try every promise of docs/reliability.md at length: ``scripts/torture``.

Each part is a module here with ``run(scratch, count=None) -> Outcome``: ``scratch`` is an empty directory of its own,
``count`` bounds the tries, None is all of them. Exits with 1 where anything fell short.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.torture.outcome import Outcome, table

#: In the order of the table.
PARTS = (
    "crashes",
    "power",
    "kills",
    "signals",
    "disk",
    "injections",
    "concurrency",
    "crafted",
    "mutations",
    "names",
)
#: How many of a part's sentences are shown.
_SHOWN = 20


def parts() -> list[str]:
    """The parts that exist."""
    here = Path(__file__).parent
    return [name for name in PARTS if (here / f"{name}.py").is_file()]


def attempt(part: str, scratch: Path, count: int | None = None) -> Outcome:
    """Run one part; where it breaks itself, that is what fell short."""
    scratch.mkdir()
    try:
        outcome: Outcome = importlib.import_module(f"tests.torture.{part}").run(scratch, count)
    except Exception as error:
        traceback.print_exc()
        return Outcome(part, 0, [f"{part} itself failed: {type(error).__name__}: {error}"])
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    chosen = options.only or parts()
    if options.jobs == 1:
        found = [_tried(part, options) for part in chosen]
    else:
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(partial(_tried_elsewhere, options=options), chosen))
    outcomes = [Outcome(one["promise"], one["tries"], one["fell_short"]) for one in found]
    print(json.dumps(found, indent=2) if options.json else table(outcomes))
    return int(any(outcome.fell_short or not outcome.tries for outcome in outcomes))


def _tried(part: str, options: argparse.Namespace) -> dict[str, Any]:
    _say(f"{part} ...")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-", dir=options.scratch, ignore_cleanup_errors=True) as scratch:
        outcome = attempt(part, Path(scratch) / part, options.count)
    seconds = time.monotonic() - begun
    _say(f"{part}: {outcome.tries:,} tries in {seconds:.0f} s, {len(outcome.fell_short)} fell short")
    for sentence in outcome.fell_short[:_SHOWN]:
        _say(f"  {sentence}")
    return {"part": part, **asdict(outcome), "seconds": round(seconds, 1)}


def _tried_elsewhere(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own, which says on stderr how it gets on."""
    command = [sys.executable, "-m", "tests.torture", "--json", "--only", part]
    for name in ("count", "scratch"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        told: list[dict[str, Any]] = json.loads(ended.stdout)
    except ValueError:
        return {"part": part, **asdict(Outcome(part, 0, [f"{part} ended with {ended.returncode} and told nothing"]))}
    return told[0]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/torture", description="Try every promise of docs/reliability.md.")
    parser.add_argument("--only", nargs="+", choices=parts(), metavar="PART", help=f"of {', '.join(parts())}")
    parser.add_argument("--count", type=int, help="tries of each part (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="parts tried beside each other, each in a process")
    parser.add_argument("--json", action="store_true", help="everything that fell short, for a program")
    parser.add_argument("--scratch", help="directory to work in (default: the system's for temporary files)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
