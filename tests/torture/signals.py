"""SIGTERM, SIGHUP and SIGINT at any moment of a training, with and without handlers of the script's own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope
from gradscope.store import open_run, validate
from tests.store.conftest import wait_until
from tests.torture.nursery import Nursery
from tests.torture.outcome import Outcome

PROMISE = "SIGTERM, SIGHUP and SIGINT: every record is there, the run sealed, the exit code the script's"

_SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
#: What the script does about a signal, and whether it says so before or after it begins to record.
_MANNERS = (
    ("nothing", "before"),
    ("leaves", "before"),
    ("leaves", "after"),
    ("remembers", "before"),
    ("remembers", "after"),
    ("flushes", "after"),
    ("closes", "after"),
    ("ignores", "before"),
)
#: Without a signal.
_STEPS = 100
_LEFT, _REMEMBERED, _TO_THE_END = 7, 3, 0


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Every signal in every manner, or ``count`` of them."""
    outcome = Outcome(PROMISE, 0)
    chance = random.Random(0)
    everything = [(name, *manner) for manner in _MANNERS for name in _SIGNALS]
    if count is not None:
        chance.shuffle(everything)
    with Nursery("tests.torture.signals") as nursery:
        for name, manner, when in everything[:count]:
            at = scratch / f"{name}-{manner}-{when}"
            at.mkdir()
            outcome.tries += 1
            if wrong := _interrupt(at, name, manner, when, nursery, chance):
                outcome.fell_short.append(f"{name}, the script {manner} (handler set {when}): {wrong}")
            else:
                shutil.rmtree(at)
    return outcome


def _interrupt(at: Path, name: str, manner: str, when: str, nursery: Nursery, chance: random.Random) -> str | None:
    child = nursery.start("train", at, name, manner, when, said=at / "said")
    noted = at / "noted"
    after = chance.randint(1, 40)
    try:
        wait_until(lambda: noted.exists() and noted.stat().st_size >= after)
        time.sleep(chance.uniform(0, 0.02))
    finally:
        os.kill(child, getattr(signal, name))
    code, wanted = nursery.wait(child), _code(name, manner)
    said = (at / "said").read_text()
    if code != wanted:
        return f"exit code {code}, not {wanted}: {said[-300:]}"
    if "Warning" in said or ("Error" in said and "KeyboardInterrupt" not in said):
        return f"it says {said[-300:]}"
    with open_run(at / "run") as found:
        steps = found.records("model/l0")["step"].tolist()
        if not found.sealed:
            return "the run is not sealed"
        if steps != list(range(len(steps))) or len(steps) < noted.stat().st_size or found.lost:
            return f"{len(steps)} records of {noted.stat().st_size} steps, lost: {found.lost}"
    return next(iter(validate(at / "run")), None)


def _code(name: str, manner: str) -> int:
    if manner == "nothing":
        return -getattr(signal, name)
    return {"leaves": _LEFT, "closes": _LEFT, "remembers": _REMEMBERED}.get(manner, _TO_THE_END)


def warm() -> None:
    """Import what a training needs, torch's compiler among it, before there are children."""
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        gradscope.record(model, Path(scratch, "run"), optimizer=optimizer, every=1),
    ):
        model(torch.randn(6, 3, 2))[0].sum().backward()
        optimizer.step()


def train(at: str, name: str, manner: str, when: str) -> int:
    """Train until a signal comes or its steps are over, and note each step by a byte."""
    number, seen = getattr(signal, name), []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup has started too

    def leave(*_: Any) -> None:
        sys.exit(_LEFT)

    def close(*_: Any) -> None:
        recorder.close()
        sys.exit(_LEFT)

    handlers: dict[str, Callable[..., Any]] = {
        "leaves": leave,
        "closes": close,
        "remembers": lambda *_: seen.append(1),
        "flushes": lambda *_: recorder.flush(),
    }
    if when == "before" and manner != "nothing":
        signal.signal(number, handlers.get(manner, signal.SIG_IGN))
    torch.manual_seed(0)
    model = nn.LSTM(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = gradscope.record(model, Path(at, "run"), optimizer=optimizer, every=1)
    if when == "after":
        signal.signal(number, handlers[manner])
    code = _TO_THE_END
    with open(Path(at, "noted"), "ab", buffering=0) as noted:
        for _ in range(_STEPS):
            optimizer.zero_grad()
            model(torch.randn(6, 3, 2))[0].sum().backward()
            optimizer.step()
            noted.write(b".")
            if seen:
                code = _REMEMBERED
                break
    return code
