"""What each short cut of recording is worth: a recorded step with it, without it, and the plain step, in turns.

A short cut is what gives the same numbers as the longer way behind it, sooner. It is switched off by putting the longer
way in its place.
"""

from __future__ import annotations

import inspect
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import gradscope
from gradscope.adjoint import magnitude, walk
from gradscope.capture.calls import (
    blocks,
    cells,
    continuing,
    fused,
    kept_gates,
    reduction,
    step_graph,
    step_nodes,
    stepping,
    watcher,
)
from gradscope.capture.calls.recurrences import memory
from gradscope.capture.calls.recurrences.find import find
from scripts.benchmark.models import CONFIGS, WRITTEN, Pair
from scripts.benchmark.tables import cell, line
from scripts.benchmark.written import WARM_UP


@dataclass(frozen=True)
class ShortCut:
    """A way around a longer way.

    Attributes
    ----------
    name : str
    ways : tuple of str
        Of ``WRITTEN``: where it is taken.
    code : tuple
        Modules, classes and functions that would go with it.
    off : callable
        Makes what puts the longer way in its place.
    """

    name: str
    ways: tuple[str, ...]
    code: tuple[Any, ...]
    off: Callable[[], Any]

    @property
    def lines(self) -> int:
        """Lines of source that would go with it."""
        return sum(len(inspect.getsource(part).splitlines()) for part in self.code)


def _nothing(*_: Any, **__: Any) -> None:
    """What a short cut returns that is not taken."""


@contextmanager
def _forgetting() -> Iterator[None]:
    """Let the kernel's workspace be compared anew at every size, as if none had been seen."""
    kept_gates._layouts.clear()
    kept_gates._compared.clear()
    yield


def _in_float64(original: Callable[..., Any]) -> Callable[..., Any]:
    def adjoints(self: Any, task: int, gradients: Any, layers: Any, scale: float, precise: bool, keep: Any) -> Any:
        return original(self, task, gradients, layers, scale, True, keep)

    return adjoints


SHORT_CUTS = {
    "kept gates": ShortCut(
        "gates and cell states that the LSTM's kernel keeps",
        ("lstm", "lengths", "deep", "whole"),
        (kept_gates,),
        lambda: mock.patch.object(fused, "kept_gates", _nothing),
    ),
    "layouts": ShortCut(
        "where they are, at another length by formula",
        ("lengths",),
        (kept_gates._expected, kept_gates._any_length),
        _forgetting,
    ),
    "step nodes": ShortCut(
        "adjoints that arrive at a node per timestep",
        ("gru", "deep gru"),
        (step_nodes, step_graph),
        lambda: mock.patch.object(watcher, "step_nodes", _nothing),
    ),
    "one node": ShortCut(
        "calls of one timestep: values that their node keeps",
        ("stepped",),
        (stepping.made_by_node, watcher.Watcher._goes_on, watcher.Watcher._took_step),
        lambda: mock.patch.object(watcher, "made_by_node", _nothing),
    ),
    "arriving at gates": ShortCut(
        "cells: gradients that arrive at the gates",
        ("cell",),
        (cells.gate_node, cells.multiplies, blocks),
        lambda: mock.patch.object(cells, "gate_node", _nothing),
    ),
    "handed on": ShortCut(
        "states that the very call before has left",
        ("cell", "stepped"),
        (continuing.Continuing.handed_on,),
        lambda: mock.patch.object(continuing.Continuing, "handed_on", _nothing),
    ),
    "memory": ShortCut(
        "what was found in a graph that is alike",
        ("loop",),
        (memory,),
        lambda: mock.patch.object(memory.Memory, "find", lambda self, graph: find(graph)),
    ),
    "float32": ShortCut(
        "replays in float32 with a floating scale",
        ("rnn", "lstm", "whole"),
        (walk.Walk._rescale, walk.Walk._scaled, fused.left_float32),
        lambda: mock.patch.object(fused.FusedCall, "adjoints", _in_float64(fused.FusedCall.adjoints)),
    ),
    "norms": ShortCut(
        "norms of float32 values without a copy in float64",
        ("lstm", "whole"),
        (magnitude.norms,),
        lambda: mock.patch.object(reduction, "norms", lambda x: magnitude._double_norms(x.double())),
    ),
    "blocks": ShortCut(
        "walking in blocks of 32 timesteps",
        ("lstm", "whole"),
        (walk.Walk.blocks,),
        lambda: mock.patch.object(walk, "BLOCK", 10**6),
    ),
}

COLUMNS = (
    "short cut",
    "lines",
    "written as",
    "(B, T, H, I)",
    "with it",
    "without",
    "worth, of a plain step",
    "repetitions",
)


def measure_worth(name: str, way: str, repetitions: int, config: str | None = None) -> dict[str, list[float]]:
    """Return a recorded step over the plain one in CPU time, with a short cut and without, one per repetition."""
    shortcut = SHORT_CUTS[name]
    pairs = [Pair(way, config) for _ in range(2)]
    found: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        recorders = [pair.record(Path(folder) / str(number), every=1) for number, pair in enumerate(pairs)]
        for repetition in range(repetitions + WARM_UP):
            for pair in pairs:
                pair.next_length()
            plain, _ = pairs[0].step(pairs[0].twin)
            with_it, _ = pairs[0].step(pairs[0].model)
            with shortcut.off():
                without, _ = pairs[1].step(pairs[1].model)
            if repetition >= WARM_UP:
                found["with"].append(with_it / plain)
                found["without"].append(without / plain)
        for recorder in recorders:
            recorder.close()
        _check_alike(*(gradscope.open_run(Path(folder) / str(number)) for number in range(2)))
    return found


def _check_alike(run: gradscope.Run, other: gradscope.Run) -> None:
    """Require that both ways recorded everything, and the same."""
    assert not run.lost, run.lost
    assert not other.lost, other.lost
    assert run.sites == other.sites
    for site in run.sites:
        for quantity in run.quantities(site):
            # Lengths may differ from record to record: what is not there is nan in both.
            np.testing.assert_allclose(run.array(site, quantity), other.array(site, quantity), rtol=1e-3, atol=1e-30)


def worth_row(name: str, way: str, found: dict[str, list[float]], config: str | None = None) -> str:
    """Write one row."""
    shortcut, of = SHORT_CUTS[name], WRITTEN[way]
    shape = f"({', '.join(map(str, CONFIGS[config or of.config]))})"
    worth = statistics.median(b - a for a, b in zip(found["with"], found["without"], strict=True))
    columns = [shortcut.name, str(shortcut.lines), of.name, shape, cell(found["with"]), cell(found["without"])]
    return line([*columns, f"{worth:+.2f}", str(len(found["with"]))])
