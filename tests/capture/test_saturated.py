"""What docs/exactness.md says of saturated units in float32: which of four numbers agree there, and which do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradscope

T, B, H, FEATURES = 12, 4, 16, 4
LAYERS: dict[str, type[nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def _measured(kind: str, bias: float, path: Path) -> dict[str, np.ndarray]:
    """Norms (T, B) of ∂L/∂x_t of a layer whose pre-activations are near ``bias``, taken in four ways."""
    torch.manual_seed(0)
    module = LAYERS[kind](FEATURES, H)
    with torch.no_grad():
        module.bias_ih_l0.fill_(bias)
    x = torch.randn(T, B, FEATURES)

    def of_autograd(module: nn.Module, x: torch.Tensor) -> np.ndarray:
        given = x.requires_grad_()
        return torch.linalg.vector_norm(
            torch.autograd.grad(module(given)[0][-1].sum(), given)[0].double(), dim=2
        ).numpy()

    found = {"torch": of_autograd(module, x.clone())}
    with gradscope.record(module, path, every=1, samples=None, quantities=["hidden", "input"]) as recorder:
        module(x)[0][-1].sum().backward()
        recorder.step()
    found["recorded"] = gradscope.open_run(path).array("model/l0", "input")[0].T[::-1]
    taken = gradscope.snapshot(module, lambda: module(x)[0][-1].sum())["model/l0"]
    found["snapshot"] = torch.linalg.vector_norm(taken.input, dim=2).numpy()
    found["float64"] = of_autograd(module.double(), x.double())
    return found


@pytest.mark.parametrize("bias", [0.0, 8.0, 10.0])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_record_is_what_torch_computes_in_float32_saturated_or_not(kind: str, bias: float, tmp_path: Path) -> None:
    found = _measured(kind, bias, tmp_path / "run")
    held = found["torch"] > 1e-30  # below, torch's own numbers lose their digits
    assert held.sum() >= 2 * B
    # The slope of a saturated unit, 1 - h², has few digits itself.
    np.testing.assert_allclose(found["recorded"][held], found["torch"][held], rtol=1e-3 if bias else 1e-4)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("bias", [8.0, 10.0, 20.0])
def test_a_snapshot_of_gated_layers_is_close_to_the_model_in_float64(kind: str, bias: float, tmp_path: Path) -> None:
    found = _measured(kind, bias, tmp_path / "run")
    np.testing.assert_allclose(found["snapshot"], found["float64"], rtol=1e-3)


def test_a_snapshot_of_an_rnn_knows_no_more_than_the_states_that_were_stored(tmp_path: Path) -> None:
    found = _measured("RNN", 20.0, tmp_path / "run")
    assert not found["torch"].any()
    assert not found["recorded"].any()
    assert not found["snapshot"].any()
    assert found["float64"][-1].all()


@pytest.mark.parametrize(("kind", "bias"), [("GRU", 20.0), ("LSTM", 10.0)])
def test_a_record_and_a_snapshot_of_saturated_units_part_without_bound(kind: str, bias: float, tmp_path: Path) -> None:
    found = _measured(kind, bias, tmp_path / "run")
    assert (found["recorded"][0] < 1e-6 * found["snapshot"][0]).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_away_from_saturation_all_four_agree(kind: str, tmp_path: Path) -> None:
    found = _measured(kind, 0.0, tmp_path / "run")
    for name in ("torch", "recorded", "snapshot"):
        np.testing.assert_allclose(found[name], found["float64"], rtol=1e-4, err_msg=name)
