"""The table: every model of this package, by name."""

from __future__ import annotations

from tests.capture.recurrences import cells, decoders, kernels, loops, neurons, published
from tests.capture.recurrences.cases import CASES

FILES = (loops, cells, neurons, decoders, kernels, published)
__all__ = ["CASES", "FILES"]
