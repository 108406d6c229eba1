import numpy as np
import pytest

from gradscope.diagnostics import one_step_ratio
from gradscope.errors import SettingError


def test_an_orthogonal_recurrence_preserves_the_norm_at_every_step():
    w = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    adjoint, norms = np.ones(8), []
    for _ in range(30):
        norms.append(np.linalg.norm(adjoint))
        adjoint = adjoint @ w
    omega = one_step_ratio(norms)
    assert np.isnan(omega[0])
    np.testing.assert_allclose(omega[1:], 0, atol=1e-24)


def test_both_readings_of_the_papers_equations():
    norms = 0.9 ** np.arange(10)
    np.testing.assert_allclose(one_step_ratio(norms)[1:], 0.1**2)
    np.testing.assert_allclose(one_step_ratio(norms, squared_norms=True)[1:], (0.81 - 1) ** 2)


def test_the_direct_gradient_does_not_count_as_transported():
    # Halved by each step, topped up by a direct gradient of the same direction: the total looks preserved.
    hidden, recurrent = np.ones((2, 5)), np.full((2, 5), 0.5)
    np.testing.assert_allclose(one_step_ratio(hidden, recurrent)[:, 1:], 0.25)
    np.testing.assert_allclose(one_step_ratio(hidden)[:, 1:], 0)


def test_a_vanished_norm_has_no_ratio():
    assert np.isnan(one_step_ratio([1.0, 0.0, 0.0])[2])


def test_a_norm_below_the_normal_numbers_has_no_ratio():
    # A run marks such norms with the smallest number there is: their ratio would read 1.
    assert np.isnan(one_step_ratio([1e-300, 5e-324, 5e-324])[1:]).all()


def test_shapes_must_agree():
    with pytest.raises(SettingError, match="one shape"):
        one_step_ratio(np.ones(4), np.ones(5))
