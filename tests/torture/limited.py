"""Commands in children of their own, with what each has cost: seconds of processor, memory, and the paths it touched.

A server that has imported everything once forks for each job: starting Python anew costs a second. No thread runs in
the server, and torch is never loaded there.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

#: What a command may cost at most.
SECONDS, BYTES = 10.0, 1 << 30
#: A child that has had no processor time for so long waits for something that never comes.
HANGS = 30.0
_SHOWN = 20_000
_CRASHED = 70


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (minus the signal that killed it), and what it cost and touched."""

    code: int
    seconds: float
    peak: int
    out: str
    err: str
    touched: list[str]

    @property
    def fault(self) -> str:
        """What no command may do; empty where it did none of it."""
        if self.code == -signal.SIGALRM:
            return "hangs"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        if self.code == _CRASHED or "Traceback (most recent call last)" in self.err:
            return f"traceback: {self.err.strip().splitlines()[-1][:200]}"
        if "Warning: " in self.err:
            return f"warning: {self.err.strip()[:200]}"
        if self.seconds > SECONDS:
            return f"{self.seconds:.0f} s"
        if self.peak > BYTES:
            return f"{self.peak / 2**30:.1f} GiB"
        return ""


def command(*arguments: str | Path, watched: Path | None = None) -> dict[str, Any]:
    """``gradscope ARGUMENTS``; what it touches under ``watched`` is told."""
    return {"command": list(map(str, arguments)), "watched": str(watched or "")}


def read(path: Path, watched: Path | None = None, *, shown: bool = False) -> dict[str, Any]:
    """Everything of a run through the Python face; the first line of ``out`` is a digest of all numbers."""
    return {"read": str(path), "watched": str(watched or ""), "shown": shown}


class Children:
    """The server, as long as the block lasts."""

    def __enter__(self) -> Children:
        self._scratch = tempfile.TemporaryDirectory(prefix="limited-")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "default"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        environment.pop("GRADSCOPE_BUDGET", None)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.limited", self._scratch.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._scratch.cleanup()

    def do(self, job: dict[str, Any]) -> Ended:
        """One job: that of `command` or `read`."""
        return self._do(job)

    def together(self, jobs: list[dict[str, Any]]) -> list[Ended]:
        """Several jobs in one child, which costs a tenth; alone, each, where together they did what none may do.

        Seconds are their own, the peak is that of all.
        """
        whole = self._do({"jobs": jobs, "watched": ""})
        each = [Ended(**{**json.loads(line), "peak": whole.peak}) for line in whole.out.splitlines()]
        if whole.code != 0 or len(each) != len(jobs) or whole.peak > BYTES:
            return [self._anew(job) for job in jobs]
        return [self._anew(job) if one.fault else one for job, one in zip(jobs, each, strict=True)]

    def _anew(self, job: dict[str, Any]) -> Ended:
        """Once more, without what the first time has written: nothing that exists is overwritten."""
        arguments = job.get("command", ())
        if "-o" in arguments:
            written = Path(arguments[arguments.index("-o") + 1])
            if written.is_dir():
                shutil.rmtree(written)
            else:
                written.unlink(missing_ok=True)
        return self._do(job)

    def _do(self, job: dict[str, Any]) -> Ended:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        told = json.loads(self._server.stdout.readline())
        return Ended(**told)


# --- the server ------------------------------------------------------------------------------------------------------


def serve(scratch: Path) -> None:
    """Fork for each line of stdin, answer with a line."""
    _import_all()
    for line in sys.stdin:
        job = json.loads(line)
        if "call" in job:  # once, not in every child
            importlib.import_module(job["call"].partition(":")[0])
        sys.stdout.write(json.dumps(_run(job, scratch)) + "\n")
        sys.stdout.flush()


def _import_all() -> None:
    import pkgutil

    from gradscope.cli import COMMANDS

    for name in ("inspect", "validate", "export", "report", "plot", "pack", "repair"):
        importlib.import_module(COMMANDS[name].target.partition(":")[0])
    for package in ("plots", "reading", "report", "store", "diagnostics"):
        home = importlib.import_module(f"gradscope.{package}")
        for module in pkgutil.iter_modules(home.__path__):
            importlib.import_module(f"gradscope.{package}.{module.name}")
    assert "torch" not in sys.modules


def _run(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    names = {name: scratch / name for name in ("out", "err", "touched")}
    for path in names.values():
        path.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _child(job, names)
    status, used, killed = _wait(child)
    code = os.waitstatus_to_exitcode(status)
    return {
        "code": -signal.SIGALRM if killed else code,
        "seconds": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss * 1024,
        **_texts(names),
    }


def _wait(child: int) -> tuple[int, resource.struct_rusage, bool]:
    """How it ended, what it used, and whether it had to be killed: it waited for something that never came."""
    pause, last, since = 0.002, -1, time.monotonic()
    killed = False
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            return status, used, killed
        now = _ticks(child)
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > HANGS and not killed:
            killed = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _ticks(process: int) -> int:
    """Processor time it has had: on a loaded machine a child that wants to run gets some all the same."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _child(job: dict[str, Any], names: dict[str, Path]) -> None:
    code = _CRASHED
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if "jobs" in job:
            with open(names["out"], "w") as told:
                for one in job["jobs"]:
                    told.write(json.dumps(_one_of_several(one, names["out"].parent)) + "\n")
            code = 0
        else:
            code = _redirected(job, names)
    except BaseException:
        _trace(names["err"])
    finally:
        os._exit(code)


def _trace(path: Path) -> None:
    import traceback

    with open(path, "a") as file:
        traceback.print_exc(file=file)


def _one_of_several(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    names = {name: scratch / f"one-{name}" for name in ("out", "err", "touched")}
    for path in names.values():
        path.write_bytes(b"")
    began = time.process_time()
    try:
        code = _redirected(job, names)
    except BaseException:
        _trace(names["err"])
        code = _CRASHED
    return {"code": code, "seconds": time.process_time() - began, **_texts(names)}


def _texts(names: dict[str, Path]) -> dict[str, Any]:
    return {
        "out": names["out"].read_text("utf-8", "replace"),
        "err": names["err"].read_text("utf-8", "replace")[-_SHOWN:],
        "touched": sorted(set(names["touched"].read_text("utf-8", "replace").splitlines()))[:10],
    }


def _redirected(job: dict[str, Any], names: dict[str, Path]) -> int:
    for descriptor, name in ((1, "out"), (2, "err")):
        target = os.open(names[name], os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        os.dup2(target, descriptor)
        os.close(target)
    if job.get("watched"):
        _watch(job["watched"], os.open(names["touched"], os.O_WRONLY | os.O_APPEND))
    try:
        return carry_out(job)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _watched.clear()


#: Path and descriptor of the watch that is on; a hook cannot be taken off again.
_watched: list[tuple[str, int]] = []


def _watch(watched: str, told: int) -> None:
    """Write down every path below ``watched`` that Python opens, lists, changes or removes."""
    if not getattr(_watch, "on", False):
        sys.addaudithook(_hook)
        _watch.on = True  # type: ignore[attr-defined]
    _watched[:] = [(watched, told)]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event.startswith(("open", "os.", "sqlite3.connect", "shutil.")):
        watched, told = _watched[0]
        for value in arguments:
            if isinstance(value, (str, bytes)) and watched in os.fsdecode(value):
                os.write(told, f"{event} {os.fsdecode(value)!a}\n".encode())


def carry_out(job: dict[str, Any]) -> int:
    """Do a job, here; returns its exit code."""
    from gradscope.errors import GradscopeError

    if "command" in job:
        from gradscope.cli import main

        try:
            main(job["command"], prog_name="gradscope")
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return 0
    if "call" in job:
        module, _, function = job["call"].partition(":")
        getattr(importlib.import_module(module), function)(*job["with"])
        return 0
    try:
        print(digest(Path(job["read"])))
        if job["shown"]:
            import gradscope

            run = gradscope.open_run(job["read"])
            print(repr(run), str(run), run._repr_html_())
    except GradscopeError as error:
        print(f"gradscope: error: {error}", file=sys.stderr)
        return 1
    return 0


def digest(path: Path) -> str:
    """Of every number and word of a run, as Python gets them."""
    import hashlib

    import gradscope
    from gradscope.store import describe

    run = gradscope.open_run(path)
    said = hashlib.sha256()
    for view in (run, run.apart):
        described = {key: value for key, value in describe(view).items() if key not in ("path", "name", "sealed")}
        said.update(json.dumps(described, sort_keys=True).encode())
        for site in view.sites:
            said.update(repr(view.site(site)).encode())
            _add(said, view.records(site))
            for values in (view.lengths(site), view.rows(site)):
                said.update(values.tobytes())
            for dataset in view.datasets(site):
                said.update(view.array(site, dataset).tobytes())
        for table in (view.steps(), view.clips(), view.parameters()):
            _add(said, table)
    return said.hexdigest()


def _add(said: Any, table: Any) -> None:
    said.update(repr(list(table.columns)).encode())
    for column in range(table.shape[1]):
        said.update(repr(table.iloc[:, column].tolist()).encode())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
