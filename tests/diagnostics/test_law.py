import numpy as np
import pytest

from gradscope.diagnostics import compare_laws

LAGS = np.arange(100)


def wiggly(log10, *, n=8, size=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return 10 ** (log10 + rng.normal(0, 0.3, (n, 1)) + rng.normal(0, size, (n, log10.size)))


def test_an_exponential_is_named_with_its_rate():
    law = compare_laws(LAGS, wiggly(-0.1 * LAGS))
    assert law.verdict == "exponential"
    assert law.rate == pytest.approx(-0.1, abs=1e-3)
    assert law.delta > 0
    assert law.held_out > 0
    assert law.agreement == 1.0


def test_a_power_law_is_named_with_its_exponent():
    law = compare_laws(LAGS, wiggly(-2.0 * np.log10(LAGS + 1e-9).clip(0)))
    assert law.verdict == "power law"
    assert law.exponent == pytest.approx(-2.0, abs=0.05)
    assert law.delta < 0
    assert law.held_out < 0


def test_exact_laws_are_told_apart_without_dividing_by_zero():
    assert compare_laws(LAGS, 0.5**LAGS).verdict == "exponential"
    assert compare_laws(LAGS, np.maximum(LAGS, 1.0) ** -3).verdict == "power law"


@pytest.mark.parametrize("fast", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("slow", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01, 0.001])
def test_two_exponentials_are_not_called_a_power_law(fast, slow, share):
    log10 = np.log10(10 ** (-fast * LAGS) + share * 10 ** (-slow * LAGS))
    for seed in range(5):
        assert compare_laws(LAGS, wiggly(log10, seed=seed)).verdict != "power law"


def test_a_stretched_decay_between_the_two_is_not_decided_by_a_hair():
    # A random walk in log norm follows neither law; whichever line is closer is an accident of the seed.
    named = 0
    for seed in range(40):
        walk = np.cumsum(np.random.default_rng(seed).normal(0, 0.3, 100))
        named += compare_laws(LAGS, 10**walk).verdict != "cannot tell"
    assert named <= 4


@pytest.mark.parametrize(
    ("norms", "options", "reason"),
    [
        (0.5 ** LAGS[:10], {}, "too few"),
        (0.5**LAGS, {"lag_range": (40, 99)}, "span less than a factor of 4"),
        (np.ones(100), {}, "changes by less than 0.5 decades"),
        (np.zeros(100), {}, "too few"),
        (10 ** (2 * np.sin(LAGS / 5.0)), {}, "neither law"),
    ],
)
def test_every_refusal_has_its_reason(norms, options, reason):
    law = compare_laws(range(len(norms)), norms, **options)
    assert law.verdict == "cannot tell"
    assert reason in law.reason


def test_a_half_way_curve_that_predicts_badly_is_refused():
    # Bends down late: the exponential fits the whole better, the early half promises a power law.
    log10 = -1.0 * np.log10(np.maximum(LAGS, 1)) - 8.0 * (np.maximum(LAGS - 60, 0) / 40) ** 2
    law = compare_laws(LAGS, 10**log10)
    assert law.verdict == "cannot tell"


def test_autocorrelated_residuals_count_as_fewer_points():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(0, 0.02, 100))
    rough = rng.normal(0, 0.1, 100)
    points = [compare_laws(LAGS, 10 ** (-0.1 * LAGS + noise)).effective_points for noise in (smooth, rough)]
    assert points[0] < 20 < 60 < points[1]


def test_sequences_that_disagree_leave_it_open():
    power = -4.0 * np.log10(np.maximum(LAGS, 1))
    rows = np.vstack([10 ** (-0.15 * LAGS), 10 ** (3 * power)])
    law = compare_laws(LAGS, rows)
    assert law.agreement < 0.95
    assert law.verdict == "cannot tell"


def test_a_noisy_short_curve_fits_both_laws_too_well_to_choose():
    lags = np.arange(2, 16)
    noise = np.random.default_rng(10).normal(0, 0.12, lags.size)
    law = compare_laws(lags, 10 ** (-0.05 * lags - 0.6 * np.log10(lags) + noise), lag_range=(2, 15))
    assert min(law.r2_exponential, law.r2_power) > 0.85
    assert law.verdict == "cannot tell"
    assert "the fits differ too little" in law.reason
    assert law.held_out > 0  # nothing else speaks against the exponential
