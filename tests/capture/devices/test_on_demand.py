"""Probes, and training in mixed precision, on a device that computes for the user alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gradscope
from tests.capture.devices.models import FEATURES, LENGTHS, B, H, T
from tests.capture.devices.standin import device

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: nn.RNN(FEATURES, H),
    "GRU of two layers": lambda: nn.GRU(FEATURES, H, num_layers=2),
    "LSTM batch first": lambda: nn.LSTM(FEATURES, H, batch_first=True),
    "LSTM with projection": lambda: nn.LSTM(FEATURES, H, proj_size=2),
}
every_layer = pytest.mark.parametrize("name", LAYERS)

Measured = dict[str, Any]


def _on_both(layer: nn.Module, measure: Callable[[nn.Module, Tensor], Any]) -> tuple[Measured, Measured]:
    """Return what is measured on the CPU and on the device: the arrays of an answer by name."""
    torch.manual_seed(3)
    layer, x = layer.double(), torch.randn(T, B, FEATURES, dtype=torch.float64)
    expected = measure(layer, x)
    with device() as machine:
        found = measure(machine.model(layer), machine.tensor(x))
    return vars(found), vars(expected)


def _assert_same(found: Measured, expected: Measured) -> None:
    arrays = {name: value for name, value in expected.items() if isinstance(value, np.ndarray)}
    assert arrays
    for name, value in arrays.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


def _site(layer: nn.Module) -> str:
    return f"model/l{getattr(layer, 'num_layers', 1) - 1}"


@every_layer
def test_a_spectrum_is_the_cpus(name: str) -> None:
    layer = LAYERS[name]()
    _assert_same(*_on_both(layer, lambda model, x: gradscope.spectrum(model, x, site=_site(layer), samples=3)))


def test_the_spectrum_of_a_packed_batch_is_the_cpus() -> None:
    def run(model: Any, x: Tensor) -> Any:
        lengths = torch.tensor(LENGTHS, device="cpu")
        return gradscope.spectrum(model, lambda: model(pack_padded_sequence(x, lengths, enforce_sorted=False)))

    _assert_same(*_on_both(nn.GRU(FEATURES, H), run))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_the_spectrum_of_a_cell_is_the_cpus(kind: type[nn.Module]) -> None:
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(FEATURES, H)

        def forward(self, x: Tensor) -> None:
            state = None
            for x_t in x:
                state = self.cell(x_t, state)

    _assert_same(*_on_both(Unrolled(), lambda model, x: gradscope.spectrum(model, x, samples=3)))


@pytest.mark.parametrize("losses", ["(N,)", "(N, B)", "listed", "later"])
@every_layer
def test_source_and_target_are_the_cpus(name: str, losses: str) -> None:
    layer = LAYERS[name]()
    time = 1 if getattr(layer, "batch_first", False) else 0

    def run(model: nn.Module, x: Tensor) -> Any:
        def closure() -> Any:
            each = model(x)[0].transpose(0, time).pow(2).sum(2)
            if losses == "later":
                each = each.cumsum(0)
            return each if losses == "(N, B)" else list(each.sum(1)) if losses == "listed" else each.sum(1)

        return gradscope.source_target(model, closure, site=_site(layer), samples=3)

    found, expected = _on_both(layer, run)
    _assert_same(found, expected)
    assert found["per_step"] == expected["per_step"] == (losses != "later")


@every_layer
def test_clipping_at_every_timestep_is_the_cpus(name: str) -> None:
    layer = LAYERS[name]()

    def run(model: nn.Module, x: Tensor) -> Any:
        return gradscope.clip_whatif(
            model, lambda: model(x)[0].pow(2).sum(), thresholds=[0.1, float("inf")], site=_site(layer), samples=3
        )

    found, expected = _on_both(layer, run)
    _assert_same(found, expected)
    _assert_same(found["norms"], expected["norms"])


def test_mixed_precision_and_its_loss_scale_are_the_cpus(tmp_path: Path) -> None:
    def train(kind: str) -> Any:
        torch.manual_seed(3)
        model, x = nn.LSTM(FEATURES, H), torch.randn(T, B, FEATURES)
        if kind == "cpu":
            return _in_mixed_precision(model, x, kind, tmp_path / kind)
        with device(kind) as machine:
            return _in_mixed_precision(machine.model(model), machine.tensor(x), kind, tmp_path / kind)

    expected, found = train("cpu"), train("xpu")
    assert found.lost == expected.lost == {}
    for quantity in ("hidden", "cell", "input", "direct"):
        here, there = found.array("model/l0", quantity), expected.array("model/l0", quantity)
        assert there.shape[0] == 2
        np.testing.assert_allclose(here, there, rtol=2e-2, err_msg=quantity)


def _in_mixed_precision(model: nn.Module, x: Tensor, kind: str, run_dir: Path) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(kind, init_scale=1024.0)
    with gradscope.record(model, run_dir, optimizer=optimizer, every=2, samples=3):
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast(
                "cpu", dtype=torch.bfloat16
            ):  # also the stand-in's, whose tensors torch takes for CPU's
                loss = model(x)[0][-1].float().sum()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return gradscope.open_run(run_dir)
