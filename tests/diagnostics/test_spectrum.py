import numpy as np
import pytest

from gradscope.diagnostics import spectrum_band


def test_powers_of_a_symmetric_map_have_powers_of_its_spectrum():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    eigenvalues = np.array([1.1, -0.9, 0.5, 0.4, -0.2, 0.1])
    w = q * eigenvalues @ q.T
    values = [np.linalg.svd(np.linalg.matrix_power(w, lag), compute_uv=False) for lag in range(8)]
    band, lags = spectrum_band(values), np.arange(8)
    np.testing.assert_allclose(band.largest, 1.1**lags, rtol=1e-10)
    np.testing.assert_allclose(band.smallest, 0.1**lags, rtol=1e-6)
    np.testing.assert_allclose(band.condition, 11.0**lags, rtol=1e-6)
    np.testing.assert_allclose(band.geometric_mean, np.abs(eigenvalues).prod() ** (lags / 6), rtol=1e-6)
    np.testing.assert_allclose(band.quantiles[:, 0], band.smallest)
    np.testing.assert_allclose(band.quantiles[:, -1], band.largest)


def test_an_isometry_uses_every_direction_and_a_projection_one():
    band = spectrum_band([np.ones(9), np.r_[1.0, np.zeros(8)], np.full(9, 1e-300)])
    np.testing.assert_allclose(band.effective_rank, [9, 1, 9])
    np.testing.assert_array_equal(band.condition[:2], [1, np.inf])


def test_a_destroyed_spectrum_has_no_condition_number():
    assert np.isnan(spectrum_band([np.zeros(4)]).condition[0])


def test_sequences_are_pooled():
    band = spectrum_band(np.stack([[[1.0, 2.0], [3.0, 4.0]]]), levels=[0.5])
    assert band.quantiles[0, 0] == pytest.approx(2.5)
    assert band.largest[0] == pytest.approx(3.0)
