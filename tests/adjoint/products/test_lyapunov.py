from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gradscope.adjoint.products.lyapunov import lyapunov_exponents
from gradscope.diagnostics.lyapunov import lyapunov_exponents as from_jacobians
from gradscope.errors import SettingError
from tests.adjoint.linearized import linearize, one_layer

DOUBLE = torch.float64


def _network(kind: type[nn.RNNBase], steps: int = 400, batch: int = 2, size: int = 5, spread: float = 0.5):  # type: ignore[no-untyped-def]
    module = kind(2, size, dtype=DOUBLE)
    nn.init.normal_(module.weight_hh_l0, std=spread)
    return linearize(one_layer(module, torch.randn(steps, batch, 2, dtype=DOUBLE)))


def _linear(eigenvalues: Tensor, steps: int):  # type: ignore[no-untyped-def]
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=DOUBLE))[0]
    module = nn.RNN(1, size, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.copy_(basis * eigenvalues @ basis.t())
    return linearize(one_layer(module, torch.zeros(steps, 1, 1, dtype=DOUBLE)))


@pytest.mark.parametrize("qr_every", [1, 5])
def test_symmetric_linear_network_has_the_logarithms_of_its_eigenvalues(qr_every: int) -> None:
    eigenvalues = torch.tensor([1.1, -0.8, 0.6, 0.45], dtype=DOUBLE)
    maps, order = _linear(eigenvalues, 300)
    found = lyapunov_exponents(maps, order, warmup=200, qr_every=qr_every)
    torch.testing.assert_close(found[0], eigenvalues.abs().log(), rtol=0, atol=1e-13)


def test_tanh_of_2h_contracts_at_its_fixed_point() -> None:
    module = nn.RNN(1, 1, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.fill_(2.0)
    h0 = torch.full((1, 1, 1), 0.5, dtype=DOUBLE)
    maps, order = linearize(one_layer(module, torch.zeros(300, 1, 1, dtype=DOUBLE), h0))
    h = 0.5
    for _ in range(200):
        h = math.tanh(2 * h)
    found = lyapunov_exponents(maps, order, warmup=200).item()
    assert found == pytest.approx(math.log(2 * (1 - h * h)), abs=1e-13)
    assert found == pytest.approx(-1.793529, abs=5e-7)


def test_an_lstms_exponents_are_those_of_its_cell_not_of_h_alone() -> None:
    forget = torch.tensor([0.95, 0.9, 0.7], dtype=DOUBLE)
    module = nn.LSTM(1, 3, dtype=DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[3:6] = forget.logit()
        module.bias_ih_l0[6:9] = 1.0
    maps, order = linearize(one_layer(module, torch.zeros(1200, 1, 1, dtype=DOUBLE)))
    found = lyapunov_exponents(maps, order, warmup=600)[0]
    torch.testing.assert_close(found[:3], forget.log(), rtol=0, atol=1e-12)
    assert bool(found[3:].isneginf().all())


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_exponents_add_up_to_the_mean_logarithm_of_the_determinant(kind: type[nn.RNNBase]) -> None:
    maps, order = _network(kind, steps=60)
    determinant = torch.stack([torch.linalg.slogdet(maps.jacobian(t))[1] for t in range(10, 60)]).mean(0)
    found = lyapunov_exponents(maps, order, warmup=10).sum(1)
    torch.testing.assert_close(found, determinant, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_exponents_equal_those_of_explicit_jacobians(kind: type[nn.RNNBase]) -> None:
    maps, order = _network(kind, steps=700, batch=1)
    found = lyapunov_exponents(maps, order, 3, warmup=400)[0]
    dense = (maps.jacobian(t)[0].numpy() for t in range(700))
    expected = torch.from_numpy(from_jacobians(dense, warmup=400, seed=7).exponents[:3].copy())
    # Other random tangents: what is left of them after the warm-up falls off exponentially.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_qr_every_few_steps_changes_no_leading_exponent() -> None:
    maps, order = _network(nn.GRU)
    every, few = (lyapunov_exponents(maps, order, 3, warmup=50, qr_every=n) for n in (1, 10))
    torch.testing.assert_close(few, every, rtol=0, atol=1e-10)


def test_a_shorter_sequence_has_the_exponents_it_has_alone() -> None:
    module = nn.GRU(2, 4, dtype=DOUBLE)
    x = torch.randn(60, 2, 2, dtype=DOUBLE)
    both, order = linearize(one_layer(module, x, lengths=torch.tensor([60, 33])))
    alone, its_order = linearize(one_layer(module, x[:33, 1:]))
    for qr_every in (1, 4):
        found = lyapunov_exponents(both, order, warmup=7, qr_every=qr_every)[1]
        expected = lyapunov_exponents(alone, its_order, warmup=7, qr_every=qr_every)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_3000_steps_of_fast_decay_do_not_underflow() -> None:
    eigenvalues = torch.tensor([0.3, 0.03], dtype=DOUBLE)
    maps, order = _linear(eigenvalues, 3000)
    found = lyapunov_exponents(maps, order, warmup=100)
    torch.testing.assert_close(found[0], eigenvalues.log(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 20}, "warm-up of 20 steps leaves nothing of a sequence of 20"),
        ({"warmup": -1}, "warm-up"),
        ({"k": 6}, "state size 5"),
        ({"k": 0}, "state size 5"),
        ({"qr_every": 11}, "between 1 and 10"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    maps, order = _network(nn.RNN, steps=20)
    with pytest.raises(SettingError, match=message):
        lyapunov_exponents(maps, order, **arguments)  # type: ignore[arg-type]
