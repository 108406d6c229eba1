"""A disk that is full, fails, is not there, or on which somebody changes the files of a run that is being written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeError, RunError
from gradscope.store import beginning, open_run, repair
from tests.torture import filetrace
from tests.torture.nursery import Nursery
from tests.torture.outcome import Outcome

PROMISE = "a full, failing, missing or changed disk: training untouched, one warning with a remedy, the loss counted"

_STEPS = 24
#: The step before which the trouble begins.
_MID = 9
_KIB = 1024
_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768, 896, 1024)
_LARGER_SIZES = (1152, 1280, 1536, 1792, 2048, 2560, 3072, 4096)
_ERRORS = ("EIO", "ENOSPC", "EMFILE", "EROFS", "EDQUOT")
_WHEN = ("begin", "mid", "once", "close")
#: What an error refuses.
_REFUSED = {
    "EMFILE": {"open", "create"},
    "ENOSPC": {"write", "create", "mkdir", "sync"},
    "EDQUOT": {"write", "create", "mkdir"},
    "EIO": {"write", "sync", "read"},
    "EROFS": {"write", "create", "mkdir", "truncate", "unlink", "rename"},
}


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Train in every state, or in ``count`` of them, and once without gradscope."""
    outcome = Outcome(PROMISE, 0)
    states = everything()
    if count is not None:
        random.Random(0).shuffle(states)
    with Nursery("tests.torture.disk", command=mounting()) as nursery:
        plain = _trained(scratch / "plain", "plain", "", nursery)
        for kind, detail in states[:count]:
            at = scratch / f"{kind}-{detail}"
            outcome.tries += 1
            found = _trained(at, kind, detail, nursery)
            if wrong := shortfall(found, plain):
                outcome.fell_short.append(f"{kind} {detail}: {wrong}")
            else:
                shutil.rmtree(at, ignore_errors=True)
    return outcome


def everything() -> list[tuple[str, str]]:
    """Every state: its kind, and which of it."""
    full = "tmpfs" if mounting() is not None else "file size"
    return [
        *((full, str(size)) for size in (*_SIZES, *_LARGER_SIZES)),
        *((error, when) for error in _ERRORS for when in _WHEN),
        *(("file size", f"{size}") for size in (300, 500)),
        *(("descriptors", when) for when in ("begin", "mid", "close")),
        *(("changed", name) for name in _CHANGES),
    ]


def mounting() -> list[str] | None:
    """How to start a process that may mount; None where nobody may."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        done = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    except OSError:
        return None
    return command if done.returncode == 0 else None


def _trained(at: Path, kind: str, detail: str, nursery: Nursery) -> dict[str, Any]:
    at.mkdir()
    code = nursery.call("train", at, kind, detail, said=at / "said", seconds=120)
    with contextlib.suppress(OSError):
        return {"code": code, **json.loads((at / "told").read_text())}
    return {"code": code, "said": (at / "said").read_text()[-500:]}


def shortfall(found: dict[str, Any], plain: dict[str, Any]) -> str | None:
    """How a training falls short of what one without gradscope is, and of telling what it lost."""
    if found["code"] or "told" not in found:
        return f"it ended with {found['code']}: {found.get('said')}"
    if found["left"]:
        return f"left behind: {found['left']}"
    remedies = [remedy[:20] for remedy in beginning._REMEDIES.values()]
    told = found["told"]
    if found["refused"]:
        return None if any(remedy in found["refused"] for remedy in remedies) else f"no remedy: {found['refused']}"
    if found["weights"] != plain["weights"]:
        return "other weights"
    if len(told) > 1:
        return f"{len(told)} warnings: {told}"
    if found["whole"]:
        return None
    if not told:
        return f"no warning, and {found['records']} of {_STEPS} records, lost {found['lost']}"
    if not any(remedy in told[0] for remedy in remedies):
        return f"no remedy: {told[0]}"
    if found["sealed"] and found["records"] + found["lost"] < _STEPS:
        return f"sealed as if nothing were missing: {found['records']} records, {found['lost']} counted as lost"
    return None


# --- in a child ------------------------------------------------------------------------------------------------------


def warm() -> None:
    """Import what a training needs, torch's compiler among it, before there are children."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        _train(Path(scratch, "place"), _Trouble(Path(scratch), "", stack), False)


def train(at: str, kind: str, detail: str) -> int:
    """Train where something is the matter with the disk, and tell what came of it."""
    here = Path(at)
    found: dict[str, Any] = {"refused": "", "left": []}
    descriptors, threads = _descriptors(), threading.active_count()
    with ExitStack() as stack, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trouble = _TROUBLES.get(kind, _Trouble)(here, detail, stack)
        try:
            found["weights"] = _train(here / "place", trouble, kind == "plain")
        except RunError as error:
            trouble.end()
            found["refused"] = str(error)
            found["left"] = sorted(path.name for path in (here / "place").rglob("*"))
        trouble.end()
        found["told"] = [str(one.message) for one in told]
        if kind != "plain" and not found["refused"]:
            found |= _kept(trouble.where)
    if _descriptors() != descriptors:
        found["left"].append(f"{_descriptors() - descriptors} descriptors")
    if threading.active_count() != threads:
        found["left"].append("a thread")
    (here / "told").write_text(json.dumps(found))
    return 0


def _train(place: Path, trouble: _Trouble, plain: bool) -> str:
    torch.manual_seed(0)
    model = nn.LSTM(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    place.mkdir(exist_ok=True)
    trouble.at("begin")
    recorder = None if plain else gradscope.record(model, trouble.given, optimizer=optimizer, every=1)
    for step in range(_STEPS):
        if step == _MID:
            trouble.at("mid")
        optimizer.zero_grad()
        model(torch.randn(60, 8, 3))[0].square().sum().backward()
        optimizer.step()
        if recorder is not None and step % 3 == 2:
            recorder.flush()
    trouble.at("close")
    if recorder is not None:
        recorder.close()
    raw = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    return hashlib.sha256(raw).hexdigest()


def _kept(run: Path) -> dict[str, Any]:
    """What can be read of a run, now and once it is repaired."""
    kept: dict[str, Any] = {"records": 0, "lost": 0, "sealed": False}
    try:
        with open_run(run) as opened:
            kept |= {"records": opened.n_records, "lost": sum(opened.lost.values()), "sealed": opened.sealed}
            if opened.n_records:
                steps = opened.records("model/l0")["step"].tolist()
                kept["records"] = len(set(steps)) if len(set(steps)) == len(steps) else -1
    except GradscopeError as error:
        kept["error"] = str(error)
    kept["whole"] = kept["sealed"] and kept["records"] == _STEPS and not kept["lost"]
    with contextlib.suppress(GradscopeError):
        repair(run)
    return kept


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class _Trouble:
    """None, as it is."""

    def __init__(self, here: Path, detail: str, stack: ExitStack) -> None:
        self.here, self.detail, self.stack = here, detail, stack
        #: Where the run is, and as what the script gives it.
        self.where = self.given = here / "place/run"
        self.prepare()

    def prepare(self) -> None:
        """Before anything is there."""

    def at(self, moment: str) -> None:
        """At ``begin``, ``mid`` or ``close``."""

    def end(self) -> None:
        """The disk is well again."""


class _Mounted(_Trouble):
    """A file system of a size."""

    def prepare(self) -> None:
        place = self.here / "place"
        place.mkdir()
        options = f"size={int(self.detail) * _KIB}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
        self.stack.callback(subprocess.run, ["umount", str(place)], check=True)


class _FileSize(_Trouble):
    """No file may grow beyond a size."""

    def at(self, moment: str) -> None:
        if moment == "begin":
            self._limit(int(self.detail) * _KIB)

    def end(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class _Descriptors(_Trouble):
    """No more files may be opened."""

    def prepare(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def at(self, moment: str) -> None:
        if moment == self.detail:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, self._limits[1]))
        elif moment == "close":  # what was wrong is over
            self.end()

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)


class _Refused(_Trouble):
    """The disk answers with an error, from a moment on or once."""

    number = 0

    def prepare(self) -> None:
        self._active = False
        self.stack.enter_context(filetrace.FileTrace(self.here / "place", self._refuse))

    def at(self, moment: str) -> None:
        self._active |= moment == ("mid" if self.detail == "once" else self.detail)

    def end(self) -> None:
        self._active = False

    def _refuse(self, op: filetrace.Op) -> int:
        if not self._active or op.kind not in _REFUSED[self.name]:
            return 0
        self._active = self.detail != "once"
        return int(getattr(errno, self.name))

    name = ""


class _Changed(_Trouble):
    """Somebody changes the files in mid-run."""

    def prepare(self) -> None:
        if self.detail.startswith("the working directory"):
            self.stack.callback(os.chdir, os.getcwd())
            (self.here / "place").mkdir()
            os.chdir(self.here / "place")
            self.given = Path("run")

    def at(self, moment: str) -> None:
        if moment == "mid":
            _CHANGES[self.detail](self.where, self.where / "attempt-1/rank-0/journal.sqlite")


def _overwrite(path: Path, start: float, size: int) -> None:
    with open(path, "r+b") as file:
        file.seek(int(start * path.stat().st_size))
        file.write(random.Random(0).randbytes(size))


def _become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def _become_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (a)")


def _lead_elsewhere(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.symlink_to("elsewhere")


#: Takes the run's directory and its journal.
_CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "the run is removed": lambda run, _: shutil.rmtree(run),
    "the run is moved": lambda run, _: run.rename(run.with_name("moved")),
    "the run is a link": lambda run, _: _lead_elsewhere(run),
    "the directory of the rank is a file": lambda _, journal: _become_file(journal.parent),
    "the journal is removed": lambda _, journal: journal.unlink(),
    "the journal is cut to nothing": lambda _, journal: os.truncate(journal, 0),
    "the journal is cut in half": lambda _, journal: os.truncate(journal, journal.stat().st_size // 2),
    "the journal begins with noise": lambda _, journal: _overwrite(journal, 0.0, 4096),
    "the journal has noise within": lambda _, journal: _overwrite(journal, 0.6, 16384),
    "the journal is a directory": lambda _, journal: _become_directory(journal),
    "the journal is another database": lambda _, journal: _become_database(journal),
    "the rollback journal is removed": lambda _, journal: Path(f"{journal}-journal").unlink(),
    "the rollback journal is a directory": lambda _, journal: _become_directory(Path(f"{journal}-journal")),
    "the name of a segment is taken": lambda _, journal: (journal.parent / "segment-00001.h5").mkdir(),
    "the working directory changes": lambda run, _: os.chdir(run.parents[1]),
}

_TROUBLES: dict[str, type[_Trouble]] = {
    "tmpfs": _Mounted,
    "file size": _FileSize,
    "descriptors": _Descriptors,
    "changed": _Changed,
    **{error: type(f"_{error}", (_Refused,), {"name": error}) for error in _ERRORS},
}
