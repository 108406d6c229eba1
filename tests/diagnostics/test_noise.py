import numpy as np
import pytest

from gradscope.diagnostics import noise_scale
from gradscope.errors import SettingError


def gradients(steps, batch, micro, dims=50, sigma=1.0, signal=0.5, seed=0):
    """Norms of micro-batch means and of the mean over all, of per-sequence gradients N(signal, sigma²)."""
    rng = np.random.default_rng(seed)
    each = signal + sigma * rng.normal(size=(steps, batch, dims))
    means = each.reshape(steps, batch // micro, micro, dims).mean(2)
    return np.linalg.norm(means, axis=-1), np.linalg.norm(each.mean(1), axis=-1)


def test_a_known_signal_and_noise_are_recovered():
    small, big = gradients(400, 32, 4)
    result = noise_scale(small, big, 4, 32)
    # |G|² = 50 * .25, tr(Σ) = 50, hence 4 sequences.
    assert result.signal == pytest.approx(12.5, rel=0.03)
    assert result.noise == pytest.approx(50, rel=0.03)
    assert result.scale == pytest.approx(4.0, rel=0.05)
    assert result.interval[0] < 4.0 < result.interval[1]


def test_the_two_equations_hold_exactly_for_expected_squares():
    g, s = 3.0, 24.0
    result = noise_scale([np.sqrt(g + s / 2)], [np.sqrt(g + s / 16)], 2, 16)
    assert (result.signal, result.noise) == (pytest.approx(g), pytest.approx(s))
    assert result.scale == pytest.approx(8.0)
    assert result.interval is None


def test_the_interval_covers_the_truth():
    covered = 0
    for seed in range(100):
        small, big = gradients(40, 16, 4, dims=20, seed=seed)
        low, high = noise_scale(small, big, 4, 16, resamples=300, seed=seed).interval
        covered += low <= 4.0 <= high
    assert 86 <= covered <= 100


def test_no_signal_gives_no_scale():
    result = noise_scale([2.0, 2.0], [0.5, 0.5], 1, 4)
    assert result.scale is None
    assert "lost in the noise" in result.reason


def test_a_signal_that_some_resamples_lose_has_an_open_interval():
    result = noise_scale([2.0, 2.0, 2.0], [0.5, 0.5, 1.9], 1, 4)
    assert result.interval[1] == np.inf
    assert result.interval[0] < result.scale


def test_steps_that_are_not_finite_are_left_out():
    clean = noise_scale([3.0, 3.1], [2.0, 2.1], 1, 4)
    dirty = noise_scale([3.0, np.inf, 3.1, 1.0], [2.0, 1.0, 2.1, np.nan], 1, 4)
    assert (dirty.scale, dirty.n_steps) == (pytest.approx(clean.scale), 2)
    assert noise_scale([np.nan], [1.0], 1, 4).scale is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1.0], [1.0], 4, 4), "small < big"), (([1.0, 2.0], [1.0], 1, 4), "one big-batch norm per step")],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        noise_scale(*arguments)
