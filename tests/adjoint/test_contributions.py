"""Weight contributions and agreement over the batch, at any size, against the outer products formed one by one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from gradscope.adjoint import Adjoints, Order, Trajectory, Weights, cell_path, consistency, weight_contribution

DOUBLE = torch.float64
T, H = 3, 5


def _site(delta: Tensor, state: Tensor, reverse: bool = False, scale: Tensor | None = None) -> Adjoints:
    order = Order(delta.shape[0], delta.shape[1], None, reverse)
    return Adjoints(order, None, trajectory=Trajectory(state, state), gates_hh=delta, scale=scale)


def _exactly(delta: Tensor, state: Tensor) -> np.ndarray:
    """‖Σ_b δ_b ⊗ h_b‖ in rational arithmetic, as exponent of 2 and rest: a float would not hold it."""
    found = []
    for rows in zip(delta.double().tolist(), state.double().tolist(), strict=True):
        total = Fraction(0)
        for i in range(delta.shape[2]):
            for j in range(state.shape[2]):
                total += sum(Fraction(d[i]) * Fraction(h[j]) for d, h in zip(*rows, strict=True)) ** 2
        shift = (total.denominator.bit_length() - total.numerator.bit_length()) // 2 if total else 0
        squared = total * Fraction(4) ** shift
        found.append(np.ldexp(float(squared) ** 0.5, -shift))
    return np.array(found)


@pytest.mark.parametrize("batch", [1, 2, 8, 30])
@pytest.mark.parametrize(
    ("adjoint", "state"), [(1.0, 1.0), (1e-170, 1.0), (1e-300, 1e-3), (1e120, 1e100), (1e-200, 1e200)]
)
def test_the_norm_of_a_contribution_has_its_digits_at_any_size(adjoint: float, state: float, batch: int) -> None:
    torch.manual_seed(0)
    delta, before = adjoint * torch.randn(T, batch, H, dtype=DOUBLE), state * torch.randn(T, batch, 4, dtype=DOUBLE)
    found = weight_contribution(_site(delta, before))
    assert found is not None
    np.testing.assert_allclose(found.numpy(), _exactly(delta, before), rtol=1e-13)


def test_sequences_of_very_different_size_do_not_hide_each_other() -> None:
    """The first sequence's adjoint is large, but it starts from a zero state: all there is comes from the second."""
    torch.manual_seed(0)
    delta, before = torch.randn(T, 2, H, dtype=DOUBLE), torch.randn(T, 2, 4, dtype=DOUBLE)
    delta[:, 1] *= 1e-250
    before[:, 0] = 0
    found = weight_contribution(_site(delta, before))
    assert found is not None
    np.testing.assert_allclose(found.numpy(), _exactly(delta, before), rtol=1e-13)


@pytest.mark.parametrize("left", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("size", [1.0, 1e-200])
def test_where_sequences_cancel_what_is_left_keeps_the_digits_it_can(left: float, size: float) -> None:
    torch.manual_seed(0)
    delta, before = torch.randn(T, 1, H, dtype=DOUBLE), torch.randn(T, 1, 4, dtype=DOUBLE)
    delta, before = size * torch.cat((delta, -delta), 1), torch.cat((before, before * (1 + left)), 1)
    found = weight_contribution(_site(delta, before))
    assert found is not None
    # The products themselves are rounded at 1e-16 of what cancels; Gram products would lose twice the digits.
    np.testing.assert_allclose(found.numpy(), _exactly(delta, before), rtol=1e-15 / left)


def test_the_scale_of_a_walk_is_divided_out_in_either_direction() -> None:
    torch.manual_seed(0)
    delta, before = torch.randn(T, 4, H), torch.randn(T, 4, 4)
    scale = torch.tensor([2.0**900, 2.0**3, 2.0**-40], dtype=DOUBLE)[:, None, None]
    expected = _exactly(delta, before) / scale.flatten().numpy()
    for reverse in (False, True):
        found = weight_contribution(_site(delta, before, reverse, scale))
        assert found is not None
        np.testing.assert_allclose(found.numpy(), expected[::-1] if reverse else expected, rtol=1e-13)


def test_no_gradient_contributes_nothing_and_an_infinite_one_is_not_hidden() -> None:
    delta, before = torch.zeros(T, 2, H, dtype=DOUBLE), torch.ones(T, 2, 4, dtype=DOUBLE)
    delta[1, 0, 0], delta[2, 0, 0] = float("inf"), float("nan")
    found = weight_contribution(_site(delta, before))
    assert found is not None
    assert found[0] == 0.0
    assert not found[1:].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("exponent", [-40, -30, 0, 30])
def test_agreement_does_not_depend_on_the_size_of_the_adjoints(exponent: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    directions = torch.randn(T, 4, H, dtype=DOUBLE)
    sizes = 10.0 ** torch.tensor([exponent, exponent / 2, 0.0, 5.0], dtype=DOUBLE)[:, None]
    units = (directions / directions.norm(dim=2, keepdim=True)).numpy()
    cosines = np.einsum("tbi,tci->tbc", units, units)
    expected = (cosines.sum((1, 2)) - 4) / 12
    tolerance = 1e-13 if dtype == DOUBLE else 1e-6 if exponent > -40 else 1e-3  # float32's own smallest numbers
    np.testing.assert_allclose(consistency((sizes * directions).to(dtype)).numpy(), expected, atol=tolerance)


def test_vectors_that_are_zero_or_not_finite_do_not_count_towards_agreement() -> None:
    delta = torch.ones(1, 4, H, dtype=DOUBLE)
    delta[0, 1], delta[0, 2, 0], delta[0, 3, 0] = 0.0, float("inf"), float("nan")
    assert consistency(delta).isnan().all()  # one is left
    assert consistency(torch.cat((delta, 3 * delta[:, :1]), 1)).tolist() == [pytest.approx(1.0)]


def test_the_cell_path_takes_direct_gradients_in_another_type_than_the_weights() -> None:
    """A layer below gets its direct gradient in float64 while its own walk ran in float32."""
    torch.manual_seed(0)
    hidden, projection = torch.randn(T, 2, 4), torch.randn(4, H)
    activations, cell = torch.rand(T, 2, 4, H), torch.randn(T, 2, H)
    trajectory = Trajectory(hidden, hidden, activations, cell, cell)
    weights = Weights(torch.randn(4 * H, 3), torch.randn(4 * H, 4), w_hr=projection)
    direct = torch.randn(T, 2, 4, dtype=DOUBLE)
    site = Adjoints(Order(T, 2, None, False), hidden, direct, trajectory, weights)
    found = cell_path(site)
    assert found is not None
    expected = torch.zeros(2, H, dtype=DOUBLE)
    for t in reversed(range(T)):
        out, tanh = activations[t, :, 3].double(), cell[t].double().tanh()
        expected = expected + (direct[t] @ projection.double()) * out * (1 - tanh * tanh)
        torch.testing.assert_close(found[t], expected, rtol=1e-6, atol=1e-7)
        expected = expected * activations[t, :, 1].double()
