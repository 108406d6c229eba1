"""A measurement leaves torch's tables of global hooks as they were, also when the user's code raises in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope

PROBES: dict[str, Callable[[nn.Module, Callable[[], Tensor]], Any]] = {
    "snapshot": lambda model, run: gradscope.snapshot(model, lambda: run().sum()),
    "spectrum": lambda model, run: gradscope.spectrum(model, run, exponents=0),
    "source_target": lambda model, run: gradscope.source_target(model, lambda: run().sum((1, 2))),
    "clip_whatif": lambda model, run: gradscope.clip_whatif(model, lambda: run().sum(), [0.1]),
}


def _tables() -> dict[str, dict[Any, Any]]:
    module = torch.nn.modules.module
    return {n: dict(t) for n, t in vars(module).items() if n.startswith("_global_") and isinstance(t, dict)}


@pytest.mark.parametrize("outcome", ["returns", "raises before the call", "raises after the call"])
@pytest.mark.parametrize("probe", PROBES)
def test_global_hook_tables_are_as_before(probe: str, outcome: str) -> None:
    model, x, entries = nn.LSTM(2, 3), torch.randn(5, 2, 2), []

    def run() -> Tensor:
        entries.append(sum(map(len, _tables().values())))
        if outcome == "raises before the call":
            raise KeyError("the user's own")
        output = model(x)[0]
        if outcome == "raises after the call":
            raise KeyError("the user's own")
        return output

    before = _tables()
    assert len(before) >= 3, "torch has renamed its tables"
    if outcome == "returns":
        PROBES[probe](model, run)
    else:
        with pytest.raises(KeyError, match="the user's own"):
            PROBES[probe](model, run)
    assert entries[0] > sum(map(len, before.values())), "a measurement watches with global hooks"
    assert _tables() == before
