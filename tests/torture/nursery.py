"""A process that has imported what its children need and forks one for each call: imports outlast short lives."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

#: What the returncode of a child that did not end is.
HANGS = 999


class Nursery:
    """Children that run a function of a module, as ``python -c`` would: they end, exit code and all, as scripts do.

    Parameters
    ----------
    module : str
        Its ``warm``, if it has one, is called first.
    environment : dict, optional
        Variables of the children.
    command : list of str, optional
        What the process is started by: ``["unshare", "-rm"]``.
    """

    def __init__(
        self, module: str, environment: dict[str, str] | None = None, command: list[str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [*(command or []), sys.executable, "-m", "tests.torture.nursery", module],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, function: str, *arguments: Any, said: Path | str = os.devnull) -> int:
        """Call a function in a child of its own; what it says goes to a file. Returns the child's id."""
        return int(self._ask([function, str(said), *map(str, arguments)]))

    def wait(self, child: int, seconds: float = 60.0) -> int:
        """Wait for a child's end; returns its exit code as `subprocess` has it, `HANGS` where it had to be killed."""
        return int(self._ask(["", str(child), str(seconds)]))

    def call(self, function: str, *arguments: Any, said: Path | str = os.devnull, seconds: float = 60.0) -> int:
        """Start a child and wait for its end."""
        return self.wait(self.start(function, *arguments, said=said), seconds)

    def _ask(self, words: list[str]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery has died with {self._process.wait()}")
        return answer


def main(module: str) -> None:
    """Answer requests until there are no more."""
    home = importlib.import_module(module)
    getattr(home, "warm", lambda: None)()
    for line in sys.stdin:
        function, first, *arguments = json.loads(line)
        if not function:
            print(end(int(first), float(arguments[0])), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _leave_the_pipes(first)
            sys.exit(getattr(home, function)(*arguments))
        print(child, flush=True)


def _leave_the_pipes(said: str) -> None:
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, said, _TO_SAY), (2, said, _TO_SAY)):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, stream)
        os.close(descriptor)


_TO_SAY = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def end(child: int, seconds: float) -> int:
    """Wait for a child of this process; returns its exit code, `HANGS` where it had to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


if __name__ == "__main__":
    main(sys.argv[1])
