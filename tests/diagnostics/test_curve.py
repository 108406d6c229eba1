import numpy as np
import pytest

from gradscope.diagnostics import decay_curve
from gradscope.errors import SettingError

LAGS = np.arange(12)


def test_a_full_table_averages_to_the_geometric_mean():
    norms = np.exp(np.random.default_rng(0).normal(size=(5, 12)))
    expected = np.prod(norms, axis=0) ** (1 / 5)
    np.testing.assert_allclose(10 ** decay_curve(LAGS, norms).log10, expected, rtol=1e-12)


def test_a_short_sequence_that_drops_out_leaves_no_jump():
    # Same decay, very different levels: a plain mean over whoever is left would jump by 1.5 decades at lag 6.
    norms = np.stack([10.0 ** (-0.1 * LAGS), 10.0 ** (-0.1 * LAGS + 3)])
    norms[1, 6:] = np.nan
    np.testing.assert_allclose(np.diff(decay_curve(LAGS, norms).log10), -0.1, atol=1e-12)


def test_a_sequence_that_starts_late_leaves_no_jump():
    norms = np.stack([10.0 ** (-0.1 * LAGS), 10.0 ** (-0.1 * LAGS + 3)])
    norms[1, :4] = 0.0  # its loss does not reach the last steps
    np.testing.assert_allclose(np.diff(decay_curve(LAGS, norms).log10), -0.1, atol=1e-12)


def test_lags_may_come_in_any_order():
    norms = 10.0 ** (-0.1 * LAGS)
    curve = decay_curve(LAGS[::-1], norms[::-1])
    np.testing.assert_array_equal(curve.lags, LAGS)
    np.testing.assert_allclose(curve.log10, -0.1 * LAGS, atol=1e-12)


def test_zero_below_normal_and_non_finite_are_counted_apart():
    norms = np.ones((1, 12), dtype=np.float32)
    norms[0, 2], norms[0, 4], norms[0, 6], norms[0, 8] = 0.0, 1e-40, np.inf, np.nan
    curve = decay_curve(LAGS, norms)
    assert np.flatnonzero(curve.n_zero).tolist() == [2]
    assert np.flatnonzero(curve.n_below_normal).tolist() == [4]
    assert np.flatnonzero(curve.n_nonfinite).tolist() == [6, 8]
    assert np.flatnonzero(curve.support == 0).tolist() == [2, 4, 6, 8]


def test_trailing_nan_is_padding_unless_the_length_says_otherwise():
    norms = np.r_[np.ones(8), np.full(4, np.nan)][None]
    assert decay_curve(LAGS, norms).n_nonfinite.sum() == 0
    assert decay_curve(LAGS, norms, lengths=[10]).n_nonfinite.sum() == 2


def test_the_smallest_normal_number_follows_the_dtype_or_the_caller():
    assert decay_curve(LAGS, np.full(12, 1e-40)).n_below_normal.sum() == 0
    assert decay_curve(LAGS, np.full(12, 1e-40), smallest_normal=1e-38).n_below_normal.sum() == 12


def test_the_curve_counts_while_half_of_the_sequences_are_there():
    norms = np.ones((4, 12))
    norms[0, 3:] = norms[1, 8:] = norms[2, 10:] = np.nan
    assert decay_curve(LAGS, norms).last == 9  # lags 8 and 9 still have two of four


@pytest.mark.parametrize(
    ("lags", "norms", "options", "message"),
    [
        (LAGS, np.ones(11), {}, "one column per lag"),
        (LAGS, np.ones((2, 3, 12)), {}, "one column per lag"),
        ([0, 1, 1], np.ones(3), {}, "repeat"),
        ([0, 1, np.nan], np.ones(3), {}, "finite"),
        (LAGS, -np.ones(12), {}, "negative"),
        (LAGS, np.ones((2, 12)), {"lengths": [12]}, "lengths"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(lags, norms, options, message):
    with pytest.raises(SettingError, match=message):
        decay_curve(lags, norms, **options)
