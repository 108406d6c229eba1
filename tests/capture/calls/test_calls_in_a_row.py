"""A layer called several times in a row has the adjoints of one call over all timesteps, however long each call is."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.calls.watcher import uncollected

T, B, X, H = 12, 3, 2, 4
LENGTHS = {"one timestep": [1] * T, "windows": [3] * 4, "windows of other lengths": [5, 1, 1, 5], "one call": [T]}
QUANTITIES = ("hidden", "input", "gates")


class Model(nn.Module):
    """A layer that is called with the timesteps it is told."""

    def __init__(self, kind: str, layers: int, lengths: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = getattr(nn, kind)(X, H, num_layers=layers).double()
        self.lengths = lengths

    def forward(self, x: Tensor, state: Any) -> Tensor:
        outputs = []
        for part in x.split(self.lengths):
            output, state = self.layer(part, state)
            outputs.append(output)
        # The last states are used too, so that something arrives at them from outside.
        last = sum(s.sin().sum() for s in (state if isinstance(state, tuple) else (state,)))
        return torch.cat(outputs).pow(2).sum() + last


def _snapshot(kind: str, layers: int, lengths: list[int]) -> gradscope.Snapshot:
    model = Model(kind, layers, lengths)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, X, dtype=torch.float64, generator=generator)
    states = [torch.randn(layers, B, H, dtype=torch.float64, generator=generator) for _ in range(2)]
    return gradscope.snapshot(model, lambda: model(x, tuple(states) if kind == "LSTM" else states[0]))


@pytest.mark.parametrize("lengths", ["one timestep", "windows", "windows of other lengths"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_calls_in_a_row_have_the_numbers_of_one_call(kind: str, layers: int, lengths: str) -> None:
    found, whole = _snapshot(kind, layers, LENGTHS[lengths]), _snapshot(kind, layers, LENGTHS["one call"])
    assert found.sites == whole.sites
    for site in whole:
        names = (*QUANTITIES, "initial_hidden", *(("cell", "cell_carry", "initial_cell") if kind == "LSTM" else ()))
        for name in names:
            value, expected = getattr(found[site], name), getattr(whole[site], name)
            assert expected.abs().max() > 0
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(found[site].direct, whole[site].direct, rtol=1e-10, atol=1e-12)
        if kind == "LSTM":
            torch.testing.assert_close(found[site].adjoints.direct_cell, whole[site].adjoints.direct_cell)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was_found(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="inside"), uncollected():
            raise ValueError("inside")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
