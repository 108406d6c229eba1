"""Exact cases of the zoo's own cells, measured through their adapters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.lab.zoo.cells import CoupledLSTM, PeepholeLSTM

# Float32 carries one rounding per step; the replay itself runs in float64.
types = pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])


@types
def test_peephole_with_a_closed_input_gate(dtype: torch.dtype, rtol: float) -> None:
    """With i = 0 and one unit, ∂c_T/∂c_t is the product over s > t of f_s + c_{s−1} f_s (1 − f_s) p, 60 steps."""
    torch.manual_seed(0)
    cell = PeepholeLSTM(1, 1)
    p, bias = 0.75, 2.0  # exact in float32, too
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.peephole_f.fill_(p)
        cell.from_input.bias.copy_(torch.tensor([-1e4, bias, 0.0, 0.0]))  # i = σ(−1e4) = 0 exactly
    cell = cell.to(dtype)
    start = (torch.zeros(1, 1, dtype=dtype), torch.full((1, 1), 0.8125, dtype=dtype))
    snapshot = gradscope.snapshot(cell, lambda: cell(torch.zeros(1, 60, 1, dtype=dtype), start)[1][1].sum())["model"]

    c, factors = 0.8125, []
    for _ in range(60):
        f = 1 / (1 + torch.exp(torch.tensor(-(bias + p * c), dtype=torch.float64)).item())
        factors.append(f + c * f * (1 - f) * p)
        c *= f
    expected = torch.tensor(factors, dtype=torch.float64).flip(0).cumprod(0).flip(0)
    torch.testing.assert_close(snapshot.cell[:-1, 0, 0], expected[1:], rtol=rtol, atol=0)
    assert snapshot.cell[-1].item() == 1.0


@types
def test_coupled_gate_on_the_zero_trajectory(dtype: torch.dtype, rtol: float) -> None:
    """∂c_t = (g ⊙ o) A^(T−t) with A = diag(1 − i) + diag(i) W_g diag(o), 40 lags, H = 16."""
    torch.manual_seed(0)
    size, steps = 16, 41
    cell = CoupledLSTM(1, size)
    with torch.no_grad():
        cell.from_input.bias[size : 2 * size] = 0.0  # the candidate's, so that c stays 0
    cell = cell.to(dtype)
    g = torch.randn(size, dtype=dtype)

    def loss() -> Tensor:
        return cell(torch.zeros(1, steps, 1, dtype=dtype))[0][0, -1] @ g

    snapshot = gradscope.snapshot(cell, loss)["model"]
    bias = cell.from_input.bias.detach().double()
    i, o = torch.sigmoid(bias[:size]), torch.sigmoid(bias[2 * size :])
    w_g = cell.from_hidden.weight.detach().double()[size : 2 * size]
    transition = torch.diag(1 - i) + torch.diag(i) @ w_g @ torch.diag(o)
    row = g.double() * o
    for t in range(steps - 1, -1, -1):
        difference = (snapshot.cell[t, 0] - row).norm() / row.norm()
        assert difference < rtol, f"step {t}"
        row = row @ transition


class Window(nn.Sequential):
    """A fully connected network over a window (B, T)."""


def test_the_input_gradient_of_the_fully_connected_baseline_is_its_curve() -> None:
    """Linear–Tanh–Linear–Tanh–Linear over the window: ∂L/∂x_t by hand from the weight matrices."""
    torch.manual_seed(0)
    body = Window(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    gradscope.register_adapter(Window, time_axis=1)
    model = nn.Sequential(body)
    x = torch.randn(5, 12, dtype=torch.float64)
    found = gradscope.snapshot(model, lambda: model(x).sum(), sites=["0"])["0"].input
    first = torch.tanh(x @ body[0].weight.T + body[0].bias)
    second = torch.tanh(first @ body[2].weight.T + body[2].bias)
    back = (body[4].weight * (1 - second**2)) @ body[2].weight * (1 - first**2) @ body[0].weight
    torch.testing.assert_close(found[:, :, 0].T, back.detach(), rtol=1e-12, atol=1e-15)
