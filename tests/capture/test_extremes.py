"""Gradients at the ends of what numbers hold, and beyond: recorded, measured and flagged for what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from tests.unrolled import unroll

DOUBLE = torch.float64
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def _recorded(module: nn.Module, closure: Callable[[], Tensor], path: Path, quantities: Any) -> gradscope.Run:
    with gradscope.record(module, path, every=1, samples=None, quantities=quantities) as recorder:
        closure().backward()
        recorder.step()
    run = gradscope.open_run(path)
    assert run.lost == {}
    return run


def _norms(values: Tensor) -> np.ndarray:
    """Norms over the last axis as logarithms to base 10, whatever their size."""
    top = values.abs().amax(-1, keepdim=True)
    rest = torch.linalg.vector_norm(values / top.masked_fill(top == 0, 1.0), dim=-1)
    return (rest.log10() + top[..., 0].log10()).numpy()


def _fading(kind: str) -> tuple[nn.RNNBase, Tensor]:
    """A float64 layer through which a gradient falls below 1e-200 within 300 steps, but not to 0."""
    torch.manual_seed(0)
    module = LAYERS[kind](2, 6, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.4)
        if kind != "RNN":
            module.bias_ih_l0.fill_(-1.5)  # gates that keep little
    return module, torch.randn(300, 2, 2, dtype=DOUBLE)


@pytest.mark.parametrize("kind", LAYERS)
def test_curves_on_demand_do_not_end_where_squares_underflow(kind: str) -> None:
    module, x = _fading(kind)
    reference = unroll(module, x)
    reference.differentiate(reference.output[-1].pow(2).sum())
    truth = reference.sites["l0"].gradients
    assert _norms(truth["hidden"][0]).max() < -165, "beyond what squares in float64 hold"
    curves = gradscope.clip_whatif(module, lambda: module(x)[0][-1].pow(2).sum(), [float("inf")], samples=None)
    matrix = gradscope.source_target(module, lambda: module(x)[0][-1:].pow(2).sum(2), samples=None)
    for quantity, per_sequence in (("hidden", matrix.hidden_per_sequence), ("cell", matrix.cell_per_sequence)):
        if per_sequence is not None:
            expected = _norms(truth[quantity])
            by_lag = curves.norms[quantity][0].T[::-1]
            np.testing.assert_allclose(np.log10(by_lag), expected, atol=1e-9)
            np.testing.assert_allclose(np.log10(per_sequence[0]), expected, atol=1e-9)


def test_curves_on_demand_do_not_end_where_squares_overflow() -> None:
    module = nn.RNN(1, 3, nonlinearity="relu", dtype=DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(100 * torch.eye(3))
        module.bias_ih_l0.fill_(1e-200)
    x = torch.zeros(101, 1, 1, dtype=DOUBLE)
    lags = np.arange(101)

    def closure() -> Tensor:
        return module(x)[0][-1].sum()

    expected = 2 * lags + np.log10(np.sqrt(3))
    found = gradscope.clip_whatif(module, closure, [float("inf")]).curves[0, 0]
    np.testing.assert_allclose(np.log10(found), expected, rtol=1e-12)
    matrix = gradscope.source_target(module, lambda: module(x)[0][-1:].sum(2)).hidden[0]
    np.testing.assert_allclose(np.log10(matrix[::-1]), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}], ids=["two layers", "both ways"])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_falls_below_the_smallest_number_is_not_called_zero(
    kind: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, x = LAYERS[kind](2, 6, **options).to(dtype), torch.randn(600, 3, 2, dtype=dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.mul_(0.1 if "weight_hh" in name else 1.0)
            if kind != "RNN" and "bias" in name:
                weight.fill_(-1.0)

    def closure() -> Tensor:
        """A loss on the step that each direction processes last."""
        output, _ = module(x)
        return output[-1, :, :6].sum() + output[0, :, 6:].sum()

    run = _recorded(module, closure, tmp_path / "run", "all")
    for site in run.sites:
        for quantity in ("hidden", "cell", "cell_carry", "input", "recurrent", "cell_path", "weight"):
            if quantity not in run.quantities(site):
                continue
            flags = run.norms(site, quantity)["flag"]
            assert (flags == "below-normal").sum() > 100, (site, quantity)
            # Nothing comes through the recurrence to the last step.
            assert (flags == "zero").sum() <= (3 if quantity in ("recurrent", "cell_carry") else 0), (site, quantity)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
def test_a_gradient_that_ends_at_a_dead_unit_is_zero(dtype: torch.dtype, tmp_path: Path) -> None:
    """A ReLU layer that is pushed below 0 at step 20: nothing passes there, whatever came before."""
    torch.manual_seed(0)
    module = nn.RNN(1, 4, nonlinearity="relu").to(dtype)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
        module.weight_hh_l0.copy_(0.9 * torch.eye(4))
    x = torch.ones(40, 2, 1, dtype=dtype)
    x[20] = -1000
    run = _recorded(module, lambda: module(x)[0][-1].sum(), tmp_path / "run", ["hidden", "input"])
    hidden, entering = run.norms("model/l0", "hidden"), run.norms("model/l0", "input")
    assert (hidden["flag"][hidden["lag"] >= 20] == "zero").all()
    assert (hidden["flag"][hidden["lag"] < 19] == "").all()
    assert (entering["flag"][entering["lag"] >= 19] == "zero").all()


@pytest.mark.parametrize("kind", ["layer", "cell"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
def test_a_relu_lets_a_gradient_through_a_nan_as_torch_does(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module: nn.Module
    module = nn.RNN(2, 4, nonlinearity="relu") if kind == "layer" else nn.RNNCell(2, 4, nonlinearity="relu")
    module.to(dtype)
    suffix = "_l0" if kind == "layer" else ""
    w_ih, w_hh, b_ih, b_hh = (getattr(module, f"{n}{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    x, ends = torch.randn(12, 2, 2, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    x[5, 0, 0] = float("nan")

    def closure() -> Tensor:
        if isinstance(module, nn.RNN):
            return (module(x)[0][-1] * ends).sum()
        h = torch.zeros(2, 4, dtype=dtype)
        for x_t in x:
            h = module(x_t, h)
        return (h * ends).sum()

    given, h, states = x.clone().requires_grad_(), torch.zeros(2, 4, dtype=dtype), []
    for x_t in given:
        h = torch.relu(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
        states.append(h)
    *hidden, entering = torch.autograd.grad((h * ends).sum(), [*states, given])
    assert all(bool(g[0].any()) for g in hidden[6:])
    site = gradscope.snapshot(module, closure)[next(iter(gradscope.snapshot(module, closure)))]
    exact = {"rtol": 1e-10, "atol": 0.0} if dtype == DOUBLE else {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(site.hidden, torch.stack(hidden).double(), **exact)
    torch.testing.assert_close(site.input, entering.double(), **exact)
    run = _recorded(module, closure, tmp_path / "run", ["hidden", "input"])
    for name, expected in (("hidden", torch.stack(hidden)), ("input", entering)):
        norms = torch.linalg.vector_norm(expected.double(), dim=2).numpy()
        np.testing.assert_allclose(run.array(run.sites[0], name)[0], norms.T[:, ::-1], rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_every_quantity_of_a_projected_float32_stack_is_recorded(layers: int, packed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.LSTM(3, 5, num_layers=layers, proj_size=2), torch.randn(7, 4, 3)
    lengths = torch.tensor([7, 5, 2, 1]) if packed else None

    def closure() -> Tensor:
        given = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, lengths)
        _, (h_n, c_n) = module(given)
        return h_n.sum() + c_n.sum()

    run = _recorded(module, closure, tmp_path / "run", "all")
    assert run.sites == tuple(f"model/l{layer}" for layer in range(layers))
    reference = unroll(module, x, lengths, detach_hidden=True)
    reference.differentiate(reference.h_n[-1].sum() + reference.c_n[-1].sum())
    found = run.array(f"model/l{layers - 1}", "cell_path")[0]
    expected = torch.linalg.vector_norm(reference.sites[f"l{layers - 1}"].gradients["cell"], dim=2)
    for b, length in enumerate([7, 5, 2, 1] if packed else [7] * 4):
        np.testing.assert_allclose(found[b, :length], expected[:length, b].flip(0).numpy(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_recorded_norm_has_a_sign(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = LAYERS[kind](2, 5).to(dtype), torch.randn(9, 3, 2, dtype=dtype)
    run = _recorded(module, lambda: -module(x)[0][3].sum(), tmp_path / "run", "all")
    for quantity in ("hidden", "cell", "cell_carry", "input", "gates", "direct", "recurrent", "cell_path", "weight"):
        if quantity in run.quantities("model/l0"):
            found = run.array("model/l0", quantity)
            assert (found == 0).any(), quantity
            assert not np.signbit(found).any(), quantity
