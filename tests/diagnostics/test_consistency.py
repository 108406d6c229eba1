from itertools import combinations

import numpy as np
import pytest

from gradscope.diagnostics import direction_consistency


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_it_is_the_mean_over_explicit_pairs():
    vectors = np.random.default_rng(0).normal(size=(3, 6, 10)) + 0.3
    expected = [np.mean([cosine(a, b) for a, b in combinations(step, 2)]) for step in vectors]
    np.testing.assert_allclose(direction_consistency(vectors), expected, rtol=1e-12)


def test_agreement_is_one_and_opposition_minus_one():
    v = np.random.default_rng(0).normal(size=7)
    assert direction_consistency(np.stack([v, 2 * v, 3 * v])) == pytest.approx(1)
    assert direction_consistency(np.stack([v, -v])) == pytest.approx(-1)


def test_a_vanished_gradient_still_has_a_direction():
    vectors = np.random.default_rng(0).normal(size=(5, 10))
    assert direction_consistency(vectors * 1e-250) == pytest.approx(float(direction_consistency(vectors)))


def test_zero_and_nan_vectors_have_none():
    v = np.random.default_rng(0).normal(size=(3, 7))
    padded = np.vstack([v, np.zeros(7), np.full(7, np.nan)])
    assert direction_consistency(padded) == pytest.approx(float(direction_consistency(v)))
    assert np.isnan(direction_consistency(np.vstack([v[:1], np.zeros((3, 7))])))
