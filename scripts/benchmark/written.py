"""A recorded step, by how a recurrence is written, and a training at an interval of the recorder's own choice.

A recorded step, one between recorded ones and the plain step of a twin take turns within every repetition, so that a
slow moment of the machine meets all of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradscope
from gradscope.capture.calls.searching import Search
from scripts.benchmark.models import CONFIGS, WRITTEN, Loss, Pair
from scripts.benchmark.peers import torchlens_pass
from scripts.benchmark.tables import cell, in_own_process, line

# Repetitions that are left out at the beginning of a row.
WARM_UP = 3


#: Those on which ``every="auto"`` is held to its budget.
FOR_AUTO = ("rnn", "lstm", "stepped", "loop")


#: Those that torchlens can follow, as torch makes a node of every operation there.
FOR_TORCHLENS = ("loop", "cell")


class Searching:
    """Add up the CPU time that looking for recurrences takes, at the beginning and the end of every backward pass."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __enter__(self) -> Searching:
        self._original = Search.begin, Search.end
        Search.begin, Search.end = map(self._timed, self._original)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Search.begin, Search.end = self._original  # type: ignore[method-assign]

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: Any) -> None:
            begin = time.process_time()
            try:
                method(*arguments)
            finally:
                self.spent += time.process_time() - begin

        return timed


def measure_written(
    way: str, repetitions: int, torchlens: bool = True, config: str | None = None, device: str = "cpu"
) -> dict[str, list[float]]:
    """Return what a recorded step of a recurrence costs that is written in this way.

    Of every repetition: the plain step in CPU seconds, the recorded step over it in CPU and in wall time, the share
    of the recorded step in which recurrences are looked for, and a step between recorded ones.
    """
    pair = Pair(way, config, device)
    found: dict[str, list[float]] = {name: [] for name in ("plain", "cpu", "wall", "search", "between")}
    with (
        tempfile.TemporaryDirectory() as folder,
        Searching() as searching,
        pair.record(Path(folder) / "run", every=3),
    ):
        for repetition in range(repetitions + WARM_UP):
            pair.next_length()
            searching.spent = 0.0
            recorded = pair.step(pair.model)
            spent = searching.spent
            plain, between = pair.step(pair.twin), pair.step(pair.model)
            pair.step(pair.model)  # at its end the recorder wakes up
            if repetition >= WARM_UP:
                found["plain"].append(plain[0])
                found["cpu"].append(recorded[0] / plain[0])
                found["wall"].append(recorded[1] / plain[1])
                found["search"].append(spent / recorded[0])
                found["between"].append(between[0] / plain[0])
    if (
        torchlens
        and device == "cpu"
        and way in FOR_TORCHLENS
        and (seconds := in_own_process("--trace", way, config or "c1")) is not None
    ):
        found["torchlens"] = [seconds / statistics.median(found["plain"])]
    return found


def traced(way: str, config: str) -> float | None:
    """Return the CPU seconds of one pass with torchlens: in a process of its own, for it leaves torch slower there."""
    pair = Pair(way, config)
    if (trace := torchlens_pass(Loss(pair.twin), pair.x)) is None:
        return None
    begin = time.process_time()
    trace()
    return time.process_time() - begin


def measure_auto(
    way: str, blocks: int, length: int = 30, config: str | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Return what a training of ``blocks`` times ``length`` steps costs with ``every="auto"``, all included.

    Over the twin, step by step in turn: each block in CPU and wall time, and the whole, with the flush at its end, from
    the first step on and from the second, for what torch does once at its beginning is no cost of recording.
    """
    pair = Pair(way, config, device)
    for _ in range(WARM_UP):
        pair.step(pair.twin)
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = pair.record(Path(folder) / "run", every="auto")
        pace, elsewhere = recorder._pace, [0.0]
        pace._clock = lambda: time.perf_counter() - elsewhere[0]  # stands still while the twin is trained
        for step in range(blocks * length):
            ours, twin = pair.step(pair.model), pair.step(pair.twin)
            elsewhere[0] += twin[1]
            times.append((ours, twin))
            if (step + 1) % length == 0:
                begin = time.process_time(), time.perf_counter()
                recorder.flush()
                spent = time.process_time() - begin[0], time.perf_counter() - begin[1]
                times[-1] = (ours[0] + spent[0], ours[1] + spent[1]), twin
        recorder.close()
        settings = gradscope.open_run(Path(folder) / "run").settings
    parts = [times[at : at + length] for at in range(0, len(times), length)]
    ratio = [[sum(ours[k] for ours, _ in part) / sum(twin[k] for _, twin in part) for part in parts] for k in (0, 1)]
    whole = [sum(ours[k] for ours, _ in times) / sum(twin[k] for _, twin in times) for k in (0, 1)]
    plain = statistics.median(twin[0] for _, twin in times)
    return {"plain": plain, "cpu": ratio[0], "wall": ratio[1], "whole": whole, "every": settings["chosen_every"]}


WRITTEN_COLUMNS = (
    *("written as", "(B, T, H, I)", "plain step", "recorded, CPU time", "target", "recorded, wall time"),
    *("share of the search", "target", "between recorded steps", "torchlens", "repetitions"),
)


AUTO_COLUMNS = (
    *("written as", "(B, T, H, I)", "plain step", "every", "all steps, CPU time", "target", "all steps, wall time"),
    *("blocks of 30 steps, CPU time", "blocks"),
)


def written_row(way: str, found: dict[str, list[float]], config: str | None = None) -> str:
    of = WRITTEN[way]
    search = statistics.median(found["search"])
    shape = f"({', '.join(map(str, CONFIGS[config or of.config]))})"
    cells = [of.name, shape, f"{statistics.median(found['plain']) * 1e3:.1f} ms"]
    cells += [cell(found["cpu"]), f"{of.ratio:.2f}", cell(found["wall"]), f"{search:.1%}", f"{of.share:.0%}"]
    cells += [cell(found["between"]), cell(found.get("torchlens")), str(len(found["cpu"]))]
    return line(cells)


def auto_row(way: str, found: dict[str, Any], config: str | None = None) -> str:
    of = WRITTEN[way]
    shape = f"({', '.join(map(str, CONFIGS[config or of.config]))})"
    cells = [of.name, shape, f"{found['plain'] * 1e3:.1f} ms", str(found["every"])]
    cells += [f"{found['whole'][0]:.3f}", "1.02", f"{found['whole'][1]:.3f}", cell(found["cpu"])]
    return line([*cells, str(len(found["cpu"]))])
