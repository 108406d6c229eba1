"""Norms over the whole range of their type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.adjoint.magnitude import largest, norms


@given(st.lists(st.floats(-44, 38), min_size=1, max_size=20), st.integers(0, 2**31))
def test_float32_norms_equal_those_in_float64_at_any_exponent(exponents: list[float], seed: int) -> None:
    directions = torch.randn(len(exponents), 7, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)
    x = (directions.double() * 10.0 ** torch.tensor(exponents, dtype=torch.float64)[:, None]).float()
    expected = np.linalg.norm(x.double().numpy(), axis=1)
    np.testing.assert_allclose(norms(x).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("exponent", [-300, -200, 0, 150, 200, 300])
def test_float64_norms_do_not_underflow_or_overflow_with_their_squares(exponent: int) -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) * 10.0**exponent
    np.testing.assert_allclose(norms(x).numpy(), [5 * 10.0**exponent, 0.0], rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    x = torch.tensor([[float("inf"), 1.0], [float("nan"), 1.0], [1.0, 0.0]], dtype=dtype)
    found = norms(x)
    assert found[0] == float("inf")
    assert found[1].isnan()
    assert found[2] == 1.0


def test_the_largest_magnitude_counts_negative_values_and_shows_a_nan() -> None:
    x = torch.tensor([[-3.0, 1.0], [0.0, float("nan")]])
    assert largest(x)[0] == 3.0
    assert largest(x)[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_norm_of_zeros_has_no_sign(zero: float, dtype: torch.dtype) -> None:
    for size in range(1, 40):  # the sign that vectorised extrema give depends on the length
        x = torch.full((3, size), zero, dtype=dtype)
        assert not torch.signbit(norms(x)).any()
        assert not torch.signbit(largest(x)).any()
