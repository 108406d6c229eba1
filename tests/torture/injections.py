"""A fault at any function beside a training: told once, counted, and the training is what it would have been.

Which functions there are is not typed: small trainings are run under a profiler, and every function of the library that
they reach is made to raise, at its first and last call during the training, at its first call while recording begins
and while it ends. A function that torch or the script itself calls is where the guard stands: what is below it fails.

``python -m tests.torture.injections CASES RESULTS SCRATCH`` tries some in one process.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

import gradscope
from gradscope.capture import guard
from gradscope.capture.training.telling import GradscopeWarning
from gradscope.errors import GradscopeError
from tests import remains
from tests.torture.outcome import Outcome
from tests.torture.trainings import TRAININGS, without

KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (RuntimeError, OSError, MemoryError)}
PHASES = ("begin", "train", "close")
PROMISE = "an internal error stays inside (function x moment x kind)"
_PACKAGE = Path(gradscope.__file__).parent
_WATCHED = tuple(str(_PACKAGE / name) + os.sep for name in ("capture", "adjoint", "store"))
#: Parts of a function that are functions only before Python 3.12.
_PARTS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
#: Frames that stand between a function and who calls it.
_BETWEEN = (contextlib.__file__, os.path.join(os.path.dirname(torch.__file__), "utils", "_contextlib.py"))
#: What `entry` returns; where a wrapper of ours calls it, it is that wrapper's guard.
_GUARD = guard.entry(nn.Identity().forward, "").__code__
_REPOSITORY = Path(__file__).parents[2]
#: So many tries in a row may take one process, and so long each at most.
_IN_A_ROW, _SECONDS = 100, 60.0
#: What differs then: another try in the same process would not be the same.
_REMAINS = ("hooks", "patches", "threads", "signal")


@dataclass(frozen=True)
class Case:
    """One fault: in which training, function, phase and call of it."""

    training: str
    function: str
    phase: str
    call: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} in {self.training}: call {self.call} of {self.function} ({self.phase})"


@dataclass
class Said:
    """What a training came to."""

    digest: str = ""
    phase: str = ""
    warnings: list[str] = field(default_factory=list)
    begun: bool = True
    ended: bool = False


class Probe:
    """Counts calls by function and phase, and raises at one of them."""

    def __init__(self, case: Case | None = None) -> None:
        self.case, self.phase, self.fired = case, "", False
        self.calls: dict[tuple[str, str], int] = {}
        self._names: dict[CodeType, str] = {}
        self._lock = threading.Lock()
        self._line = int(case.function.rpartition(":")[2]) if case is not None else 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not self.phase or (self._line and code.co_firstlineno != self._line):
            return
        if not code.co_filename.startswith(_WATCHED) or code.co_name in _PARTS:
            return
        name = self._name(code)
        if self.case is not None and (name != self.case.function or self.phase != self.case.phase or self.fired):
            return
        if _is_entry(frame):
            return
        with self._lock:
            number = self.calls[name, self.phase] = self.calls.get((name, self.phase), 0) + 1
            if self.case is None or number != self.case.call or self.fired:
                return
            self.fired = True
        raise KINDS[self.case.kind]("injected")

    def _name(self, code: CodeType) -> str:
        if code not in self._names:
            path = Path(code.co_filename).relative_to(_PACKAGE).with_suffix("")
            called = getattr(code, "co_qualname", code.co_name)  # with its class from Python 3.11 on
            self._names[code] = f"{'.'.join(path.parts)}:{called}:{code.co_firstlineno}"
        return self._names[code]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this thread and those that are started meanwhile."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]


def _is_entry(frame: FrameType) -> bool:
    """Whether a function is called by torch, the script or the interpreter, or is the guard: nothing is above it."""
    if frame.f_code is _GUARD:
        return True
    above = frame.f_back
    while above is not None and above.f_code.co_filename in _BETWEEN:
        above = above.f_back
    # By its globals: torch's own function may run code of ours.
    return above is None or not str(above.f_globals.get("__name__", "")).startswith("gradscope.")


def train(name: str, run: Path | None, probe: Probe) -> Said:
    """Run one training, recorded unless ``run`` is None."""
    said = Said()

    @contextlib.contextmanager
    def recording(model: nn.Module, **settings: Any) -> Iterator[Any]:
        probe.phase = "begin"
        try:
            recorder = gradscope.record(model, run, **settings)  # type: ignore[arg-type]
        except GradscopeError:
            said.begun, probe.phase = False, ""
            yield None
            return
        probe.phase = "train"
        with recorder:
            yield recorder
            probe.phase = "close"
        probe.phase = ""

    torch.manual_seed(0)
    left = TRAININGS[name](without if run is None else recording)
    said.digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in left)).hexdigest()
    return said


def attempt(case: Case, digest: str, whole: dict[str, Any], scratch: Path) -> list[str] | None:
    """Inject one fault; say what fell short, None where the call was not reached."""
    run, probe = scratch / "run", Probe(case)
    before = remains.snapshot(scratch)
    fell_short = []
    with warnings.catch_warnings(record=True) as told, contextlib.redirect_stderr(io.StringIO()) as stderr:
        warnings.simplefilter("always")
        if case.kind == "MemoryError":  # and it cannot even be said
            warnings.simplefilter("error", GradscopeWarning)
            stderr.close()
        filters = list(warnings.filters)
        said = Said()
        try:
            with probe.watching():
                said = train(case.training, run, probe)
        except BaseException as error:
            fell_short.append(f"{type(error).__name__} reached the training: {error}")
        if warnings.filters != filters:
            fell_short.append("a warning filter stayed")
    if not probe.fired:
        remove(run)
        return None
    if not fell_short and said.digest != digest:
        fell_short.append("the training was changed")
    own = [str(one.message) for one in told if issubclass(one.category, GradscopeWarning)]
    own = [one for one in own if "steps are counted from" not in one]
    told.clear()
    if said.begun and run.exists():
        fell_short += _of_run(run, whole, own if case.kind != "MemoryError" else None)
    elif run.exists() or own:
        fell_short.append(f"nothing was begun, but {own or run} stayed")
    remove(run)
    fell_short += remains.settled(before, scratch)
    return fell_short


def _of_run(run: Path, whole: dict[str, Any], told: list[str] | None) -> list[str]:
    """Say what is wrong with a run and what was told of it; ``told`` is None where nothing could be shown."""
    try:
        found, problems = contents(run), gradscope.store.validate(run)
    except Exception as error:
        return [f"the run cannot be read: {type(error).__name__}: {error}"]
    missing = {key: (found[key], count) for key, count in whole.items() if key != "lost" and found[key] != count}
    fell_short = [f"validate: {problem}" for problem in problems]
    if told != [] and missing.keys() == {"sealed"}:
        return fell_short  # what cannot be sealed now is sealed by `gradscope repair`
    if missing and not found["lost"]:
        fell_short.append(f"silently missing (found, whole): {missing}")
    if told is not None and len(told) != 1 and (missing or found["lost"] or told):
        fell_short.append(f"told {len(told)} times: {told}")
    return fell_short


def contents(run: Path) -> dict[str, Any]:
    """What is in a run, as far as a fault may take it away."""
    opened = gradscope.open_run(run)
    sites = {site: len(opened.records(site)) for site in opened.sites}
    return {
        "records": opened.n_records,
        "site records": sum(sites.values()),
        "steps": len(opened.steps()),
        "scalars": int(opened.steps().notna().to_numpy().sum()),
        "clips": len(opened.clips()),
        "sealed": opened.sealed,
        "lost": sum(opened.lost.values()),
    }


def remove(run: Path) -> None:
    """Remove what a training left on the disk."""
    import shutil

    shutil.rmtree(run, ignore_errors=True)


def _prepared(name: str, scratch: Path) -> tuple[str, dict[str, Any], Probe]:
    """Run a training without and with a recorder, both twice: what is imported at first use is there then."""
    probe = Probe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        digest = train(name, None, probe).digest
        for _ in range(2):
            remove(scratch / "whole")
            probe = Probe()
            with probe.watching():
                again = train(name, scratch / "whole", probe)
        assert again.digest == digest
        whole = contents(scratch / "whole")
        assert gradscope.store.validate(scratch / "whole") == []
    remove(scratch / "whole")
    return digest, whole, probe


def cases(scratch: Path, trainings: Sequence[str] = tuple(TRAININGS)) -> list[Case]:
    """Return every function that the trainings reach x moment, with the kinds in turn; where first reached."""
    found: dict[tuple[str, str, str], Case] = {}
    for training in trainings:
        _, _, probe = _prepared(training, scratch)
        for (function, phase), count in probe.calls.items():
            for moment, call in (("first", 1), ("last", count)):
                if moment == "first" or (phase == "train" and count > 1):
                    found.setdefault((function, phase, moment), Case(training, function, phase, call, ""))
    kinds = list(KINDS)
    return [replace(case, kind=kinds[number % len(kinds)]) for number, case in enumerate(found.values())]


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Try them all, or ``count`` of them evenly spread; so many in a process of their own."""
    every = cases(scratch)
    chosen = every if count is None else every[:: max(1, len(every) // count)][:count]
    tries, fell_short = tried(chosen, scratch)
    return Outcome(PROMISE, tries, fell_short)


def tried(chosen: Sequence[Case], scratch: Path) -> tuple[int, list[str]]:
    """Try cases in processes of their own; return how many were reached, and a sentence for each that fell short."""
    left = sorted(chosen, key=lambda case: case.training)
    tries, fell_short = 0, []
    while left:
        results = _in_process(left[:_IN_A_ROW], scratch)
        if not results:
            results = [["the process ended"]]
        for case, found in zip(left, results, strict=False):
            tries += found is not None
            if found:
                fell_short.append(f"{case}: {'; '.join(found)}")
        left = left[len(results) :]
    return tries, fell_short


def _in_process(chosen: Sequence[Case], scratch: Path) -> list[Any]:
    """Return what fell short of each case that the process got to."""
    given, results, place = scratch / "cases.json", scratch / "results.jsonl", scratch / "tried"
    given.write_text(json.dumps([asdict(case) for case in chosen]))
    remove(place)
    place.mkdir()
    results.write_text("")
    command = [sys.executable, "-m", "tests.torture.injections", str(given), str(results), str(place)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        seconds = _SECONDS + 10 * len(chosen)
        subprocess.run(command, cwd=_REPOSITORY, timeout=seconds, stdout=subprocess.DEVNULL, check=False)
    return [json.loads(line) for line in results.read_text().splitlines()]


def _try_all(given: str, results: str, place: str) -> None:
    """Try cases one by one, up to the first that leaves something behind which would harm the next."""
    scratch = Path(place)
    torch.set_num_threads(1)
    prepared: dict[str, tuple[str, dict[str, Any]]] = {}
    for raw in json.loads(Path(given).read_text()):
        case = Case(**raw)
        if case.training not in prepared:
            prepared[case.training] = _prepared(case.training, scratch)[:2]
            gc.collect()
            gc.freeze()  # for good: what is looked at is what comes after
        found = attempt(case, *prepared[case.training], scratch)
        with open(results, "a") as file:
            file.write(json.dumps(found) + "\n")
        if any(one.startswith(_REMAINS) for one in found or ()):
            os._exit(0)


if __name__ == "__main__":
    _try_all(*sys.argv[1:])
