from __future__ import annotations

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradscope.adjoint import Linearization
from gradscope.adjoint.products.jacobian import log_singular_values
from tests.adjoint.linearized import golden_call, jacobian_files, linearize, one_layer
from tests.golden_files import Golden

DOUBLE = torch.float64


def _products(maps: Linearization) -> list[Tensor]:
    """∂s_T/∂s_t for t = T − 1, T − 2, ..., 0 (zero-based), by plain matrix products."""
    found = [torch.eye(maps.size, dtype=DOUBLE).expand(maps.batch, -1, -1)]
    for t in range(maps.steps - 1, 0, -1):
        found.append(found[-1] @ maps.jacobian(t))
    return found


@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_products_of_jacobians_equal_reference(path: Path) -> None:
    golden = Golden.load(path)
    maps, _ = linearize(golden_call(golden))
    name = "jac_state" if "jac_state" in golden.data else "jac_hT_ht"
    torch.testing.assert_close(torch.stack(_products(maps)[::-1]), golden.tensor(name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_singular_values_equal_reference(path: Path) -> None:
    golden = Golden.load(path)
    maps, order = linearize(golden_call(golden))
    values = log_singular_values(maps, order).exp()
    torch.testing.assert_close(values.flip(0), golden.tensor("jac_sv"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_pushing_tangents_is_the_transpose_of_pulling_cotangents(path: Path) -> None:
    maps, _ = linearize(golden_call(Golden.load(path)))
    tangents, cotangents = torch.randn(2, maps.batch, 7, maps.size, dtype=DOUBLE)
    forward = (maps.push(5, tangents) * cotangents).sum(-1)
    backward = (tangents * maps.pull(5, cotangents)).sum(-1)
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_jacobian_of_ten_steps_equals_autograd_on_torchs_own_cell(kind: str) -> None:
    cell = getattr(nn, kind)(3, 4, dtype=DOUBLE)
    module = getattr(nn, kind.removesuffix("Cell"))(3, 4, dtype=DOUBLE)
    module.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x = torch.randn(10, 1, 3, dtype=DOUBLE)
    maps, _ = linearize(one_layer(module, x))

    def run(state: Tensor) -> Tensor:
        given = tuple(state[None].split(4, dim=1)) if kind == "LSTMCell" else state[None]
        for step in x:
            given = cell(step, given)
        return torch.cat(given, 1)[0] if kind == "LSTMCell" else given[0]

    dense = torch.autograd.functional.jacobian(run, torch.zeros(maps.size, dtype=DOUBLE))
    torch.testing.assert_close(_products(maps)[-1][0] @ maps.jacobian(0)[0], dense, rtol=1e-11, atol=1e-14)


def test_values_far_apart_equal_arbitrary_precision() -> None:
    module = nn.LSTM(2, 6, dtype=DOUBLE)
    nn.init.normal_(module.weight_hh_l0, std=0.7)
    steps = 120
    maps, order = linearize(one_layer(module, torch.randn(steps, 1, 2, dtype=DOUBLE)))
    found = log_singular_values(maps, order, [steps - 1])[0, 0]
    with mpmath.workdps(900):
        product = mpmath.eye(maps.size)
        for t in range(steps - 1, 0, -1):
            product = product * mpmath.matrix(maps.jacobian(t)[0].tolist())
        expected = [float(mpmath.log(value)) for value in mpmath.svd_r(product, compute_uv=False)]
    assert expected[0] - expected[-1] > 150 * math.log(10)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)


def test_3000_steps_of_a_linear_recurrence_do_not_underflow() -> None:
    eigenvalues = torch.tensor([0.98, -0.9, 0.9, 0.5, 0.05, 1.01], dtype=DOUBLE)
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE))[0]
    module = nn.RNN(1, 6, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.copy_(basis * eigenvalues @ basis.t())
    maps, order = linearize(one_layer(module, torch.zeros(3000, 1, 1, dtype=DOUBLE)))
    lags = [0, 1, 100, 2999]
    expected = torch.tensor(lags)[:, None] * eigenvalues.abs().log().sort(descending=True).values
    assert float(expected.min()) < 10 * math.log(1e-308)
    torch.testing.assert_close(log_singular_values(maps, order, lags)[:, 0], expected, rtol=1e-12, atol=1e-10)


def test_lstm_with_pinned_forget_gate_keeps_the_cell_and_destroys_the_hidden_state() -> None:
    module = nn.LSTM(1, 4, dtype=DOUBLE)
    forget = torch.tensor([0.9, 0.8, 0.5, 0.99], dtype=DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[4:8] = forget.logit()
    maps, order = linearize(one_layer(module, torch.zeros(50, 2, 1, dtype=DOUBLE)))
    found = log_singular_values(maps, order, [40])[0]
    # c stays 0, so h_T follows c_T with slope o = 1/2: each column of the Jacobian is f^40 (1/2, 1).
    expected = 40 * forget.log().sort(descending=True).values + 0.5 * math.log(1.25)
    torch.testing.assert_close(found[:, :4], expected.expand(2, -1), rtol=1e-12, atol=0)
    assert torch.equal(found[:, 4:], torch.full((2, 4), float("-inf"), dtype=DOUBLE))


def test_identity_relu_network_has_every_singular_value_one_at_every_lag() -> None:
    module = nn.RNN(1, 5, nonlinearity="relu", dtype=DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(torch.eye(5))
        module.bias_ih_l0.fill_(0.1)
    maps, order = linearize(one_layer(module, torch.zeros(200, 1, 1, dtype=DOUBLE)))
    found = log_singular_values(maps, order)
    torch.testing.assert_close(found, torch.zeros(200, 1, 5, dtype=DOUBLE), rtol=0, atol=1e-12)


def test_dead_relu_units_are_zeros_not_rounding_errors() -> None:
    module = nn.RNN(1, 6, nonlinearity="relu", dtype=DOUBLE)
    with torch.no_grad():
        module.bias_ih_l0.copy_(torch.tensor([5.0, 5, 5, 5, -5, -5]))
        module.weight_hh_l0.copy_(torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE))[0] * 0.9)
    maps, order = linearize(one_layer(module, torch.zeros(30, 1, 1, dtype=DOUBLE)))
    found = log_singular_values(maps, order, [20])[0, 0]
    alive = [0, 1, 2, 3]
    block = module.weight_hh_l0.detach()[alive][:, alive]
    # The first of the products still sees the dead units' own states; the last leaves only what lives.
    product = torch.linalg.matrix_power(block, 19) @ module.weight_hh_l0.detach()[alive]
    torch.testing.assert_close(found[:4].exp(), torch.linalg.svdvals(product), rtol=1e-9, atol=0)
    assert bool(found[4:].isneginf().all())


def test_a_shorter_sequence_has_the_values_it_has_alone_and_nan_beyond() -> None:
    module = nn.GRU(2, 5, dtype=DOUBLE)
    x = torch.randn(9, 2, 2, dtype=DOUBLE)
    both, order = linearize(one_layer(module, x, lengths=torch.tensor([9, 4])))
    alone, its_order = linearize(one_layer(module, x[:4, 1:]))
    found = log_singular_values(both, order)
    torch.testing.assert_close(found[:4, 1:], log_singular_values(alone, its_order), rtol=1e-10, atol=1e-10)
    assert bool(found[4:, 1].isnan().all())
    assert bool(found[:, 0].isfinite().all())
