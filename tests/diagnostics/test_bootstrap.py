"""How much wider an interval is where neighbouring steps resemble each other."""

import numpy as np
import pytest

from gradscope.diagnostics.bootstrap import drift_factor


def drifting(seed: int, n: int, phi: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.empty(n)
    values[0] = rng.normal()
    for t in range(1, n):
        values[t] = phi * values[t - 1] + np.sqrt(1 - phi**2) * rng.normal()
    return values


def test_independent_steps_count_in_full():
    found = [drift_factor(drifting(seed, 40, 0.0), 0.95) for seed in range(50)]
    assert np.median([factor for factor, _ in found]) == pytest.approx(1.0, abs=0.15)
    assert np.median([worth for _, worth in found]) > 30
    assert drift_factor(drifting(0, 9, 0.9), 0.95) == (1.0, 9.0)  # too few to tell
    assert drift_factor(np.ones(40), 0.95) == (1.0, 40.0)


@pytest.mark.parametrize("phi", [0.5, 0.8])
def test_steps_that_drift_are_worth_what_an_autoregression_makes_of_them(phi):
    worth = [drift_factor(drifting(seed, 400, phi), 0.95)[1] for seed in range(50)]
    careful = phi + np.sqrt((1 - phi**2) / 400)  # a standard error more
    assert np.median(worth) == pytest.approx(400 * (1 - careful) / (1 + careful), rel=0.1)
    assert np.median(worth) < 400 * (1 - phi) / (1 + phi)


def test_chance_of_the_sequences_does_not_hide_a_drift():
    plain, hidden, corrected = [], [], []
    for seed in range(100):
        values = drifting(seed, 60, 0.9)
        noisy = values + np.random.default_rng(seed + 1000).normal(0, 0.7, 60)
        plain.append(drift_factor(values, 0.95)[1])
        hidden.append(drift_factor(noisy, 0.95)[1])
        corrected.append(drift_factor(noisy, 0.95, chance=0.49)[1])
    assert np.median(hidden) > 2 * np.median(plain)
    assert np.median(corrected) == pytest.approx(np.median(plain), rel=0.35)
