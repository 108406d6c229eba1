"""``kill -9`` of whatever works on a run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from gradscope.store import RunWriter, pack, repair, sealer
from gradscope.store.locking import is_being_written
from tests.store.conftest import META, die, record, wait_until
from tests.torture.nursery import Nursery
from tests.torture.outcome import Outcome
from tests.torture.wholeness import shortfall

PROMISE = "`kill -9` of writing, sealing, packing or repairing: nothing flushed lost, nothing unreadable"

#: How often each is killed.
_KILLS = {"writing": 50, "sealing": 33, "packing": 25, "repairing": 25}
_RECORDS = 60

#: A sealing process that kills itself before its operation of a number.
_DYING = """
import os, sys
sys.path[:] = sys.argv[6:]
from pathlib import Path
from gradscope.store.sealing import main
from tests.torture.filetrace import FileTrace
left = [{operations}]
def die(op):
    if op.kind not in ("open", "read"):
        left[0] -= 1
        if left[0] < 0: os.kill(os.getpid(), 9)
    return 0
with FileTrace(Path({root!r}), die):
    main(*sys.argv[1:6])
if not left[0]: os.kill(os.getpid(), 9)  # before what it has to tell has left it
"""


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Kill each as often as `_KILLS` says, or ``count`` in all."""
    outcome = Outcome(PROMISE, 0)
    share = 1.0 if count is None else count / sum(_KILLS.values())
    chance = random.Random(0)
    with Nursery("tests.torture.kills") as nursery:
        for what, most in _KILLS.items():
            for trial in range(max(1, round(most * share))):
                at = scratch / f"{what}-{trial}"
                at.mkdir()
                outcome.tries += 1
                if wrong := _TRIALS[what](at, trial, nursery, chance):
                    outcome.fell_short.append(f"{what}, kill {trial}: {wrong}")
                else:
                    shutil.rmtree(at)
    return outcome


def _kill_writing(at: Path, trial: int, nursery: Nursery, chance: random.Random) -> str | None:
    """Most die within a flush or a seal, every fifth while it begins."""
    child = nursery.start("write", at / "run", 20_000 if trial % 2 else 1 << 26)
    flushed = at / "run.flushed"
    try:
        if trial % 5 != 4:
            wait_until(lambda: flushed.exists() and flushed.read_text().endswith("\n"))
        time.sleep(chance.uniform(0, 0.1))
    finally:
        os.kill(child, signal.SIGKILL)
        nursery.wait(child)
    told = flushed.read_text().split("\n")[:-1] if flushed.exists() else []
    wait_until(lambda: not _held(at / "run"))  # what seals lives on
    return shortfall(at / "run", int(told[-1]) + 1 if told else 0)


def _held(run: Path) -> bool:
    return any(is_being_written(rank) for rank in run.glob("attempt-*/rank-*"))


def write(run: str, seal_bytes: str) -> None:
    """Write records as fast as they come, and note in a file which are flushed."""
    noted = os.open(run + ".flushed", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    writer = RunWriter(run, META, seal_bytes=int(seal_bytes))
    for step in range(30_000):  # if nobody kills it, it ends
        writer.add_record(record(step))
        if step % 7 == 0:
            writer.flush()
            os.write(noted, b"%d\n" % step)


def _kill_sealing(at: Path, trial: int, nursery: Nursery, _chance: random.Random) -> str | None:
    code = nursery.call("write_with_dying_seal", at / "run", trial % 11)
    if code != 0:
        return f"exit code {code}"
    return shortfall(at / "run", 12, closed=True, untouched=True)


def write_with_dying_seal(run: str, operations: str) -> None:
    """Write and close a run, while the process that seals is killed."""
    dying = _DYING.format(operations=operations, root=run)
    with mock.patch.object(sealer, "_CODE", dying):
        writer = RunWriter(run, META, seal_bytes=1)
        for step in range(12):
            writer.add_record(record(step))
            writer.flush()
            if step % 3 == 2:
                wait_until(lambda: not writer._worker._sealer.running)
        writer.close()


def _kill_packing(at: Path, _trial: int, nursery: Nursery, chance: random.Random) -> str | None:
    _dead(at / "run")
    _kill(nursery, "pack_it", at, chance)
    out = at / "out.h5"
    if not out.exists():
        pack(at / "run", out)
    left = sorted(path.name for path in at.iterdir() if path.name not in {"run", "out.h5", "begun"})
    if left:
        return f"{left[0]} is left"
    return shortfall(out, _RECORDS, repairing=False) or shortfall(at / "run", _RECORDS)


def pack_it(at: str) -> None:
    """Pack a run."""
    Path(at, "begun").touch()
    pack(Path(at, "run"), Path(at, "out.h5"))


def _kill_repairing(at: Path, _trial: int, nursery: Nursery, chance: random.Random) -> str | None:
    _dead(at / "run")
    _kill(nursery, "repair_it", at, chance)
    return shortfall(at / "run", _RECORDS)


def repair_it(at: str) -> None:
    """Repair a run."""
    Path(at, "begun").touch()
    repair(Path(at, "run"))


def _dead(run: Path) -> None:
    writer = RunWriter(run, META)
    for step in range(_RECORDS):
        writer.add_record(record(step))
    writer.flush()
    die(writer)


def _kill(nursery: Nursery, what: str, at: Path, chance: random.Random) -> None:
    """Start something, and kill it at a moment of its life."""
    child = nursery.start(what, at)
    wait_until(lambda: (at / "begun").exists())
    time.sleep(chance.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)  # where it has ended, it waits to be asked about
    nursery.wait(child)


_TRIALS: dict[str, Callable[[Path, int, Nursery, random.Random], str | None]] = {
    "writing": _kill_writing,
    "sealing": _kill_sealing,
    "packing": _kill_packing,
    "repairing": _kill_repairing,
}
