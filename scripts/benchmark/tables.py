"""What the tables have in common."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cell(values: list[float] | None) -> str:
    """Write the median of some ratios, with quartiles where there are enough."""
    if not values:
        return "–"
    if len(values) < 4:
        return f"{statistics.median(values):.3f}"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.2f}–{high:.2f})"


def line(cells: Sequence[str]) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(cells) + " |"


def begin_table(columns: Sequence[str]) -> None:
    """Print the head of a table."""
    print("\n" + line(columns) + "\n|" + "---|" * len(columns), flush=True)


def processor() -> str:
    """Return what the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_own_process(*arguments: str) -> Any:
    """Return what `scripts/bench` measures in a process of its own."""
    command = [sys.executable, "-m", "scripts.benchmark", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
