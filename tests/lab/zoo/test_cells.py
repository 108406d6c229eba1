from __future__ import annotations

import pytest
import torch
from torch import nn

from gradscope.errors import SettingError
from gradscope.lab.zoo.cells import LRU, CoupledLSTM, MinGRU, PeepholeLSTM

CELLS = [PeepholeLSTM, CoupledLSTM, MinGRU, LRU]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", CELLS)
def test_forward_is_step_after_step(make):
    cell, x = make(3, 6), torch.randn(4, 5, 3)
    output, final = cell(x)
    assert output.shape == (4, 5, 6)
    state = cell.initial_state(x)
    for t in range(5):
        state = cell.step(x[:, t], state)
        torch.testing.assert_close(output[:, t], state[0] if cell.has_cell_state else state, rtol=0, atol=0)
    torch.testing.assert_close(final, state, rtol=0, atol=0)


@pytest.mark.parametrize("make", CELLS)
def test_a_sequence_can_be_continued_from_its_state(make):
    cell, x = make(3, 6), torch.randn(2, 7, 3)
    whole, _ = cell(x)
    first, state = cell(x[:, :3])
    second, _ = cell(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=0)


def test_peephole_without_peepholes_is_torchs_lstm():
    cell, reference = PeepholeLSTM(3, 5), nn.LSTM(3, 5, batch_first=True)
    with torch.no_grad():
        for peephole in (cell.peephole_i, cell.peephole_f, cell.peephole_o):
            peephole.zero_()
        reference.weight_ih_l0.copy_(cell.from_input.weight)
        reference.weight_hh_l0.copy_(cell.from_hidden.weight)
        reference.bias_ih_l0.copy_(cell.from_input.bias)
        reference.bias_hh_l0.zero_()
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(cell(x)[0], reference(x)[0], rtol=1e-12, atol=1e-12)


def final_cell_and_start(cell, x, h, c):
    c = c.clone().requires_grad_()
    _, (_, c_end) = cell(x, (h, c))
    return c_end, c


def test_peephole_scalar_cell_path_has_its_closed_form():
    # i = 0: c_t = f_t c_{t-1} with f_t = sigmoid(p c_{t-1} + b), so dc_T/dc_0 = prod [f + c f (1 - f) p].
    cell = PeepholeLSTM(1, 1)
    p, b, steps = 0.7, 1.5, 60
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.peephole_f.fill_(p)
        cell.from_input.bias.copy_(torch.tensor([-1e4, b, 0.0, 0.0]))
    c_end, c_start = final_cell_and_start(cell, torch.zeros(1, steps, 1), torch.zeros(1, 1), torch.full((1, 1), 0.9))
    (gradient,) = torch.autograd.grad(c_end.sum(), c_start)
    expected, c = 1.0, 0.9
    for _ in range(steps):
        f = 1 / (1 + torch.exp(torch.tensor(-(p * c + b))).item())
        expected *= f + c * f * (1 - f) * p
        c *= f
    assert gradient.item() == pytest.approx(expected, rel=1e-12)


def test_coupled_gate_on_the_zero_trajectory_has_its_closed_form():
    # c stays 0 where the candidate is 0: A = diag(1 - i) + diag(i) W_g diag(o).
    cell, hidden, lags = CoupledLSTM(2, 5), 5, 12
    with torch.no_grad():
        cell.from_input.bias[hidden : 2 * hidden] = 0
    i, _, o = cell.from_input.bias.detach().chunk(3)
    i, o = torch.sigmoid(i), torch.sigmoid(o)
    w_g = cell.from_hidden.weight.detach()[hidden : 2 * hidden]
    jacobian = torch.diag(1 - i) + torch.diag(i) @ w_g @ torch.diag(o)
    # From c_0 with h_0 = o * tanh(c_0): the state that the previous step would have left.
    c = torch.zeros(1, hidden, requires_grad=True)
    _, (_, c_end) = cell(torch.zeros(1, lags, 2), (o * torch.tanh(c), c))
    g = torch.randn(1, hidden)
    (gradient,) = torch.autograd.grad(c_end, c, g)
    torch.testing.assert_close(gradient, g @ torch.linalg.matrix_power(jacobian, lags), rtol=1e-12, atol=1e-14)


def test_mingru_forgets_by_the_product_of_one_minus_z():
    cell, x = MinGRU(3, 4), torch.randn(1, 9, 3)
    h = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(cell(x, h)[1].sum(), h)
    z = torch.sigmoid(cell.from_input(x)[..., :4])
    torch.testing.assert_close(gradient, (1 - z).prod(1), rtol=1e-12, atol=0)


def test_lru_is_a_complex_diagonal_recurrence_inside_its_ring():
    cell, x = LRU(3, 8, radius=(0.5, 0.9)), torch.randn(2, 6, 3)
    eigenvalues = torch.exp(torch.complex(-torch.exp(cell.log_decay), torch.exp(cell.log_phase)))
    assert ((eigenvalues.abs() >= 0.5) & (eigenvalues.abs() <= 0.9)).all()
    scale = torch.sqrt(1 - eigenvalues.abs() ** 2)
    b = torch.complex(*cell.from_input.weight.chunk(2, 0))
    state = torch.zeros(2, 4, dtype=torch.complex128)
    for t in range(6):
        state = eigenvalues * state + scale * (x[:, t].to(torch.complex128) @ b.T)
    torch.testing.assert_close(cell(x)[1], torch.cat([state.real, state.imag], -1), rtol=1e-12, atol=1e-12)


def test_lru_needs_an_even_size():
    with pytest.raises(SettingError, match="even"):
        LRU(3, 5)
