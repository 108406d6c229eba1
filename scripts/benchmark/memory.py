"""What recording keeps in memory: how it grows over many recorded steps, and the most that one step has."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope
from scripts.benchmark.models import KINDS, Net, Stepped
from scripts.benchmark.peers import Bench
from scripts.benchmark.tables import in_own_process


def memory(steps: int, warm_up: int = 500, how: str = "fixed") -> dict[str, Any]:
    """Return the growth of the resident set over ``steps`` recorded steps of a small model, in MB.

    ``how``: of one ``fixed`` length, a new one at each step (``lengths``), or called once a timestep (``stepped``).
    """
    torch.manual_seed(0)
    layer = nn.LSTM(8, 16)
    model = Net(Stepped(layer) if how == "stepped" else layer, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(100 if how == "lengths" else 20, 8, 8)
    sizes = []
    with (
        tempfile.TemporaryDirectory() as folder,
        gradscope.record(model, Path(folder) / "run", optimizer=optimizer, every=1),
    ):
        for step in range(steps + warm_up):
            optimizer.zero_grad()
            model(x[: 5 + step % 96] if how == "lengths" else x).pow(2).mean().backward()
            optimizer.step()
            if step in (warm_up - 1, steps + warm_up - 1):
                sizes.append(_resident())
    return {"how": how, "steps": steps, "growth_mb": sizes[1] - sizes[0]}


def peak(kind: str, variant: str) -> list[float]:
    """Return in MB, over what was resident before: after the forward pass, and the most during one step."""
    bench = Bench(kind, "c2", "cpu")
    optimizer = bench.optimizer(bench.model)
    memory(1, warm_up=1)  # what is imported at the first record is no cost of this one
    before = _resident()
    if variant != "plain":
        samples = None if variant == "full" else 8
        path = Path(bench.folder.name) / "run"
        bench.recorders.append(gradscope.record(bench.model, path, optimizer=optimizer, samples=samples))
    loss = bench.model(bench.x).pow(2).mean()
    kept = _resident() - before
    loss.backward()
    optimizer.step()
    most = _peak() - before
    bench.close()
    return [kept, most]


def peaks() -> dict[str, dict[str, list[float]]]:
    """Return :func:`peak` of every kind and variant, each in a process of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        for variant in ("plain", "samples8", "full"):
            found.setdefault(kind, {})[variant] = in_own_process("--peak", kind, variant)
    return found


def peak_table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "| layer | activations kept by the plain step | its peak | recorded, 8 sequences | recorded, whole batch |"
    ]
    lines.append("|---|---|---|---|---|")
    for kind, at in found.items():
        kept, most = at["plain"]
        more = [f"{at[variant][1] - most:+.0f} MB" for variant in ("samples8", "full")]
        lines.append(f"| {kind} | {kept:.0f} MB | {most:.0f} MB | {more[0]} | {more[1]} |")
    return "\n".join(lines)


def _resident() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def _peak() -> float:
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024
