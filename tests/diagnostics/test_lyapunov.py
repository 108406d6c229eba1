import numpy as np
import pytest

from gradscope.diagnostics import lyapunov_exponents
from gradscope.errors import SettingError


def test_a_symmetric_map_has_the_logs_of_its_eigenvalues():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(8, 8))
    w = (a + a.T) / 8
    spectrum = lyapunov_exponents([w] * 600, warmup=400)
    expected = np.sort(np.log(np.abs(np.linalg.eigvalsh(w))))[::-1]
    np.testing.assert_allclose(spectrum.exponents, expected, atol=1e-10)


def test_the_map_tanh_2h_contracts_at_its_fixed_point():
    h, jacobians = 0.5, []
    for _ in range(300):
        h = np.tanh(2 * h)
        jacobians.append([[2 * (1 - h**2)]])
    # The Jacobian at h_{t+1} = tanh(2 h_t) is 2 (1 - h_{t+1}²).
    assert lyapunov_exponents(jacobians, warmup=100).exponents[0] == pytest.approx(-1.793529, abs=1e-6)


def test_the_sum_of_exponents_is_the_mean_log_determinant():
    jacobians = np.random.default_rng(0).normal(size=(50, 5, 5))
    spectrum = lyapunov_exponents(jacobians)
    assert spectrum.exponents.sum() == pytest.approx(np.log(np.abs(np.linalg.det(jacobians))).mean())
    assert spectrum.growth.shape == (50, 5)


def test_the_leading_exponents_do_not_depend_on_how_many_are_asked():
    jacobians = np.random.default_rng(0).normal(size=(400, 6, 6))
    full, leading = lyapunov_exponents(jacobians, warmup=50), lyapunov_exponents(jacobians, 2, warmup=50)
    np.testing.assert_allclose(leading.exponents, full.exponents[:2], atol=0.02)


def test_a_pinned_forget_gate_is_seen_in_the_joint_state():
    # c' = f c, h' = o tanh(c'): the exponent is ln f, though the Jacobian of h alone is zero.
    f, joint = 0.9, np.zeros((2, 2))
    joint[0, 0], joint[1, 0] = f, 0.5 * f
    spectrum = lyapunov_exponents([joint] * 200, warmup=20)
    assert spectrum.exponents[0] == pytest.approx(np.log(f))
    assert spectrum.exponents[1] < -30
    assert lyapunov_exponents([np.zeros((1, 1))] * 10).exponents[0] == -np.inf


@pytest.mark.parametrize(("diagonal", "dimension"), [([0.5, 0.4], 0.0), ([2.0, 1.5], 2.0), ([np.e, np.exp(-2.0)], 1.5)])
def test_the_kaplan_yorke_dimension_interpolates(diagonal, dimension):
    assert lyapunov_exponents([np.diag(diagonal)] * 100, warmup=50).dimension == pytest.approx(dimension, abs=1e-6)


@pytest.mark.parametrize(
    ("jacobians", "k", "warmup", "message"),
    [
        ([np.ones((2, 3))], None, 0, "square"),
        ([np.eye(2)], 3, 0, "between 1 and the state size 2"),
        ([np.eye(2)], None, 1, "after a warm-up of 1"),
        ([], None, 0, "no Jacobian"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(jacobians, k, warmup, message):
    with pytest.raises(SettingError, match=message):
        lyapunov_exponents(jacobians, k, warmup=warmup)
