"""Networks whose adjoints are known in closed form, through ``gradscope.snapshot`` on ordinary ``torch.nn`` modules.

The relative error is taken per timestep, as the norm of the difference over the norm of the expected vector, so that
it means the same at lag 0 and at lag 99, where the adjoint may be 1e-20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import gradscope
from gradscope.capture import Snapshot
from tests.unrolled import unroll

T, B, H = 100, 3, 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
both_types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error over timesteps and sequences, each relative to its own expected norm."""
    size = torch.linalg.vector_norm(expected, dim=-1)
    assert bool((size > 0).all())
    return float((torch.linalg.vector_norm(found - expected, dim=-1) / size).max())


def _powers(start: Tensor, step: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """``start`` at the last timestep and ``step`` applied once more for every earlier one, (T, B, H)."""
    rows = [start]
    for _ in range(count - 1):
        rows.append(step(rows[-1]))
    return torch.stack(rows[::-1])


def _last_step(module: nn.RNNBase, x: Tensor, g: Tensor) -> Snapshot:
    """A loss that touches the last output only, with gradient ``g`` (B, H)."""
    return gradscope.snapshot(module, lambda: (module(x)[0][-1] * g).sum())


def _set(module: nn.RNNBase, **values: Tensor | float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.as_tensor(value))


def _gate(gate: int) -> slice:
    return slice(gate * H, (gate + 1) * H)


def _matrix(dtype: torch.dtype, radius: float = 0.95) -> Tensor:
    w = torch.randn(H, H, dtype=dtype)
    return w * radius / float(torch.linalg.eigvals(w.double()).abs().max())


# -- plain networks ---------------------------------------------------------------------------------------------------


@both_types
def test_a_linear_network_multiplies_the_gradient_by_its_matrix_at_every_step(dtype: torch.dtype) -> None:
    module = nn.RNN(H, H, bias=False, dtype=dtype)
    _set(module, weight_hh_l0=_matrix(dtype, 0.7))
    g, w = torch.randn(B, H, dtype=dtype), module.weight_hh_l0.detach().double()
    found = _last_step(module, torch.zeros(T, B, H, dtype=dtype), g)["model/l0"].hidden
    powers = torch.stack([g.double() @ torch.linalg.matrix_power(w, T - 1 - t) for t in range(T)])
    assert _relative_error(found, powers) < TOLERANCE[dtype]
    assert float(found[0].norm()) < 1e-10  # and it does vanish


@both_types
def test_an_orthogonal_matrix_keeps_the_norm(dtype: torch.dtype) -> None:
    module = nn.RNN(H, H, bias=False, dtype=dtype)
    _set(module, weight_hh_l0=torch.linalg.qr(torch.randn(H, H, dtype=torch.float64))[0])
    g = torch.randn(B, H, dtype=dtype)
    found = _last_step(module, torch.zeros(T, B, H, dtype=dtype), g)["model/l0"].hidden.norm(dim=2)
    torch.testing.assert_close(found, g.double().norm(dim=1).expand(T, B), rtol=TOLERANCE[dtype], atol=0.0)


@both_types
@pytest.mark.parametrize("alpha", [1.0, 0.99, 1.01])
def test_a_scaled_identity_gives_an_exact_power_law(alpha: float, dtype: torch.dtype) -> None:
    module = nn.RNN(H, H, nonlinearity="relu", dtype=dtype)
    _set(module, weight_hh_l0=alpha * torch.eye(H), bias_ih_l0=0.1, bias_hh_l0=0.0)
    g = torch.randn(B, H, dtype=dtype)
    found = _last_step(module, torch.zeros(T, B, H, dtype=dtype), g)["model/l0"].hidden
    stored = float(module.weight_hh_l0.detach()[0, 0])  # float32 rounds .99
    exponents = torch.arange(T - 1, -1, -1, dtype=torch.float64)
    assert _relative_error(found, stored ** exponents[:, None, None] * g.double()) < TOLERANCE[dtype]
    if alpha == 1.0:
        assert torch.equal(found, g.double().expand(T, B, H)), "bitwise constant"


@both_types
def test_a_known_pre_activation_gives_the_textbook_jacobian(dtype: torch.dtype) -> None:
    module = nn.RNN(H, H, bias=False, dtype=dtype)
    w = _matrix(dtype)
    _set(module, weight_hh_l0=w, weight_ih_l0=torch.eye(H))
    a = torch.randn(T, B, H, dtype=dtype)
    before = torch.cat((torch.zeros(1, B, H, dtype=dtype), torch.tanh(a[:-1])))
    g = torch.randn(B, H, dtype=dtype)
    found = _last_step(module, a - before @ w.t(), g)["model/l0"].hidden
    rows = [g.double()]
    for t in range(T - 1, 0, -1):
        jacobian = torch.diag_embed(1 - torch.tanh(a[t].double()) ** 2) @ w.double()
        rows.append(torch.einsum("bi,bij->bj", rows[-1], jacobian))
    assert _relative_error(found, torch.stack(rows[::-1])) < TOLERANCE[dtype]


@both_types
def test_every_step_contributes_alike_to_the_weight_gradient_of_a_scalar_linear_network(dtype: torch.dtype) -> None:
    # x_t = w x_{t-1}: dL/dw = T x0 w^(T-1), of which every timestep brings x0 w^(T-1).
    w, x0, steps = 0.97, 1.7, 50
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=dtype)
    _set(module, weight_hh_l0=w, weight_ih_l0=0.0)
    w, start = float(module.weight_hh_l0.detach()), torch.full((1, 1, 1), x0, dtype=dtype)

    def loss() -> Tensor:
        return module(torch.zeros(steps, 1, 1, dtype=dtype), start)[0][-1].sum()

    site = gradscope.snapshot(module, loss)["model/l0"]
    each = float(start) * w ** (steps - 1)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(site.weight, torch.full((steps,), each, dtype=torch.float64), rtol=tolerance, atol=0.0)
    assert float(site.weight.sum()) == pytest.approx(steps * each, rel=tolerance)
    states = float(start) * w ** torch.arange(steps, dtype=torch.float64)
    signed = site.gates[:, 0, 0] * states
    assert bool((signed > 0).all()), "contributions of one sign, so that their norms add up to the gradient"
    loss().backward()
    assert module.weight_hh_l0.grad is not None
    assert float(module.weight_hh_l0.grad) == pytest.approx(float(signed.sum()), rel=tolerance)


# -- gated networks ---------------------------------------------------------------------------------------------------


def _pinned_lstm(dtype: torch.dtype, forget_bias: float) -> nn.LSTM:
    module = nn.LSTM(H, H, dtype=dtype)
    _set(module, weight_hh_l0=0.0, bias_hh_l0=0.0)
    with torch.no_grad():
        module.weight_ih_l0[_gate(1)] = 0.0
        module.bias_ih_l0[_gate(1)] = forget_bias
    return module


def _cell_adjoint_at_the_end(module: nn.LSTM, x: Tensor, g: Tensor) -> Tensor:
    """g ⊙ o ⊙ (1 − tanh² c) at the last step of an LSTM without recurrent weights."""
    a = x.double() @ module.weight_ih_l0.detach().double().t() + module.bias_ih_l0.detach().double()
    i, f, candidate, o = a.chunk(4, 2)
    c = torch.zeros(B, H, dtype=torch.float64)
    for t in range(len(x)):
        c = torch.sigmoid(f[t]) * c + torch.sigmoid(i[t]) * torch.tanh(candidate[t])
    return g.double() * torch.sigmoid(o[-1]) * (1 - torch.tanh(c) ** 2)


@both_types
@pytest.mark.parametrize("forget", [0.5, 0.9, 0.99])
def test_a_pinned_forget_gate_alone_sets_the_decay_of_the_cell(forget: float, dtype: torch.dtype) -> None:
    module = _pinned_lstm(dtype, float(torch.logit(torch.tensor(forget))))
    f = torch.sigmoid(module.bias_ih_l0.detach()[_gate(1)].double())
    x, g = torch.randn(T, B, H, dtype=dtype), torch.randn(B, H, dtype=dtype)
    site = _last_step(module, x, g)["model/l0"]
    expected = _powers(_cell_adjoint_at_the_end(module, x, g), lambda row: row * f, T)
    assert _relative_error(site.cell, expected) < TOLERANCE[dtype]
    assert torch.equal(site.hidden[-1], g.double())
    assert not site.hidden[:-1].any(), "the adjoint of h is 0 before the last step while the cell's is not"


@both_types
def test_a_saturated_forget_gate_is_a_constant_error_carousel(dtype: torch.dtype) -> None:
    module = _pinned_lstm(dtype, 40.0)
    x, g = torch.randn(T, B, H, dtype=dtype), torch.randn(B, H, dtype=dtype)
    cell = _last_step(module, x, g)["model/l0"].cell
    assert torch.equal(cell, cell[-1].expand(T, B, H)), "bitwise constant"
    assert _relative_error(cell[-1], _cell_adjoint_at_the_end(module, x, g)) < TOLERANCE[dtype]


@both_types
@pytest.mark.parametrize("update", [0.5, 0.9, 0.99])
def test_a_pinned_update_gate_alone_sets_the_decay_of_a_gru(update: float, dtype: torch.dtype) -> None:
    module = nn.GRU(H, H, dtype=dtype)
    _set(module, weight_hh_l0=0.0, bias_hh_l0=0.0)
    with torch.no_grad():
        module.weight_ih_l0[_gate(1)] = 0.0
        module.bias_ih_l0[_gate(1)] = float(torch.logit(torch.tensor(update)))
    z = torch.sigmoid(module.bias_ih_l0.detach()[_gate(1)].double())
    g = torch.randn(B, H, dtype=dtype)
    found = _last_step(module, torch.randn(T, B, H, dtype=dtype), g)["model/l0"].hidden
    assert _relative_error(found, _powers(g.double(), lambda row: row * z, T)) < TOLERANCE[dtype]


def _at_zero_trajectory(module: nn.RNNBase, candidate: int) -> Iterator[Tensor]:
    """Silence the candidate's bias, then yield the constant value of every gate in float64."""
    with torch.no_grad():
        module.bias_ih_l0[_gate(candidate)] = 0.0
        module.bias_hh_l0[_gate(candidate)] = 0.0
    bias = (module.bias_ih_l0 + module.bias_hh_l0).detach().double()
    return (torch.sigmoid(bias[_gate(k)]) for k in range(len(bias) // H))


@both_types
def test_an_lstm_at_rest_has_the_jacobian_of_its_biases(dtype: torch.dtype) -> None:
    lags = 40
    module = nn.LSTM(H, H, dtype=dtype)
    _set(module, weight_hh_l0=torch.randn(4 * H, H) / H**0.5, bias_ih_l0=torch.randn(4 * H))
    i, f, _, o = _at_zero_trajectory(module, candidate=2)
    w_g = module.weight_hh_l0.detach()[_gate(2)].double()
    g = torch.randn(B, H, dtype=dtype)
    site = _last_step(module, torch.zeros(lags, B, H, dtype=dtype), g)["model/l0"]
    jacobian = torch.diag(f) + torch.diag(i) @ w_g @ torch.diag(o)
    cell = torch.stack([(g.double() * o) @ torch.linalg.matrix_power(jacobian, lags - 1 - t) for t in range(lags)])
    assert _relative_error(site.cell, cell) < TOLERANCE[dtype]
    assert _relative_error(site.hidden[:-1], (cell[1:] * i) @ w_g) < TOLERANCE[dtype]


@both_types
def test_a_gru_at_rest_has_the_jacobian_of_its_biases(dtype: torch.dtype) -> None:
    module = nn.GRU(H, H, dtype=dtype)
    _set(module, weight_hh_l0=torch.randn(3 * H, H) / H**0.5, bias_ih_l0=torch.randn(3 * H))
    r, z, _ = _at_zero_trajectory(module, candidate=2)
    w_n = module.weight_hh_l0.detach()[_gate(2)].double()
    g = torch.randn(B, H, dtype=dtype)
    found = _last_step(module, torch.zeros(T, B, H, dtype=dtype), g)["model/l0"].hidden
    jacobian = torch.diag(z) + torch.diag((1 - z) * r) @ w_n
    powers = torch.stack([g.double() @ torch.linalg.matrix_power(jacobian, T - 1 - t) for t in range(T)])
    assert _relative_error(found, powers) < TOLERANCE[dtype]


@both_types
def test_the_cell_path_is_the_product_of_the_forget_gates(dtype: torch.dtype) -> None:
    steps = 30
    module = nn.LSTM(5, H, dtype=dtype)
    x, g = torch.randn(steps, B, 5, dtype=dtype), torch.randn(B, H, dtype=dtype)
    found = _last_step(module, x, g)["model/l0"].cell_path
    reference = unroll(module, x, detach_hidden=True)
    reference.differentiate((reference.output[-1] * g.double()).sum())
    site = reference.sites["l0"]
    assert _relative_error(found, site.gradients["cell"]) < TOLERANCE[dtype]
    forget = torch.stack([torch.sigmoid(site.nodes["gates"][t].detach()[:, _gate(1)]) for t in range(steps)])
    products = torch.cat((forget.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, B, H, dtype=torch.float64)))
    assert _relative_error(found, found[-1] * products) < TOLERANCE[dtype]


# -- bounds -----------------------------------------------------------------------------------------------------------


class SigmoidCell(nn.Module):
    """h' = σ(W x + U h): a user's own cell, whose slope never exceeds ¼."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(inputs, size, dtype=torch.float64)
        self.recurrent = nn.Linear(size, size, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(self.from_input(x) + self.recurrent(h))


def _within_bound(hidden: Tensor, g: Tensor, w: Tensor, slope: float) -> bool:
    lags = torch.arange(len(hidden) - 1, -1, -1, dtype=torch.float64)
    bound = (slope * torch.linalg.matrix_norm(w.double(), 2)) ** lags
    # The slack covers the rounding of the norms, not of the bound.
    return bool((hidden.norm(dim=2) <= bound[:, None] * g.double().norm(dim=1) * (1 + 1e-9)).all())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 12),
    steps=st.integers(1, 40),
    scale=st.floats(0.05, 4.0),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
)
def test_no_network_exceeds_the_bound_of_its_largest_singular_value(
    seed: int, size: int, steps: int, scale: float, nonlinearity: str
) -> None:
    torch.manual_seed(seed)
    module = nn.RNN(3, size, nonlinearity=nonlinearity, dtype=torch.float64)
    _set(module, weight_hh_l0=scale * torch.randn(size, size))
    g = torch.randn(2, size, dtype=torch.float64)
    found = _last_step(module, torch.randn(steps, 2, 3, dtype=torch.float64), g)["model/l0"].hidden
    assert _within_bound(found, g, module.weight_hh_l0.detach(), slope=1.0)
    assert torch.equal(found[-1], g)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 8), steps=st.integers(3, 15), scale=st.floats(0.1, 8.0))
def test_no_sigmoid_network_exceeds_a_quarter_of_it_a_step(seed: int, size: int, steps: int, scale: float) -> None:
    torch.manual_seed(seed)
    cell = SigmoidCell(3, size)
    with torch.no_grad():
        cell.recurrent.weight.copy_(scale * torch.randn(size, size))
    x, g = torch.randn(steps, 2, 3, dtype=torch.float64), torch.randn(2, size, dtype=torch.float64)

    def loss() -> Tensor:
        h = torch.zeros(2, size, dtype=torch.float64)
        for x_t in x:
            h = cell(x_t, h)
        return (h * g).sum()

    found = gradscope.snapshot(cell, loss)["model"].hidden
    assert found.shape == (steps, 2, size)
    assert _within_bound(found, g, cell.recurrent.weight.detach(), slope=0.25)
