import numpy as np
import pytest

from gradscope.diagnostics import clip_statistics, fit_decay
from gradscope.words import clip_sentence, correlation, given, interval, number, percent, sentence

LAGS = np.arange(61)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.2e-9, "3e-9"),
        (0.42, "0.42"),
        (0.0012, "0.0012"),
        (1.5849, "1.6"),
        (17.3, "17"),
        (1234.0, "1234"),
        (2.1e14, "2e14"),
        (9.99, "10"),
        (0.0, "0"),
        (-0.19, "−0.19"),
        (np.inf, "infinity"),
        (np.nan, "unknown"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (12.5, "12.5"), (10, "10"), (1e-5, "1e-5"), (2.5e-7, "2.5e-7"), (1e6, "1e6"),
                    (-1e-5, "−1e-5"), (-2, "−2"), (np.inf, "inf")],
)  # fmt: skip
def test_a_setting_is_written_as_it_was_given(value, text):
    assert given(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9984, ".998"), (0.99999, ">.999"), (1.0, "1.000"), (-0.2, "-.200"), (0.0, ".000"), (np.nan, "undefined")],
)
def test_r2_has_three_digits_and_never_pretends_to_be_one(value, text):
    assert correlation(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (0.001, "less than 1%"), (0.43, "43%"), (0.999, "more than 99%"), (1.0, "100%")]
)
def test_a_percentage_is_none_or_all_only_when_it_is(share, text):
    assert percent(share) == text


def test_an_interval_is_written_with_a_dash():
    assert interval((1.49, 1.71)) == "(1.5–1.7)"
    assert interval((1.301, 1.312)) == "(1.30–1.31)"
    assert interval((2.0, 2.0)) == "(2.0–2.0)"
    assert interval(None) == ""


def test_a_vanishing_gradient_is_told_in_one_sentence():
    rates = np.array([[-0.138], [-0.142], [-0.145], [-0.135]])
    rng = np.random.default_rng(1)
    fit = fit_decay(LAGS, 10 ** (rates * LAGS + rng.normal(0, 0.15, (4, 61))))
    said = sentence(fit, "lstm")
    assert said.startswith("lstm: the gradient reaching 60 steps back is ")
    assert f"is {number(fit.reach)} of that at the last step; half-life 2." in said
    assert f"({number(fit.half_life_interval[0])}–{number(fit.half_life_interval[1])}), R² .99" in said


@pytest.mark.parametrize(
    ("norms", "parts"),
    [
        (
            10 ** (-4 + 1e-3 * (LAGS - 60.0) ** 2),
            [
                "vanishing over lags 5–60, at lag 60 9e-4 of that at lag 5",
                "no half-life (the decay is not exponential: it gets slower",
            ],
        ),
        (
            np.ones((3, 61)),
            ["is as large as that at the last step", "as large as that at lag 5, within a factor of 10 throughout"],
        ),
        (
            np.r_[1e3, np.ones(60)],
            ["preserved over lags 5–60, at lag 60 as large as that at lag 5", "back is 0.0010 of that"],
        ),
        (
            1.1**LAGS,
            [
                "is 304 times that at the last step",
                "growing over lags 5–60, at lag 60 189 times that at lag 5, by a factor of 1.10 per step",
            ],
        ),
        (np.ones((3, 3)), ["no verdict: too few lags"]),
        (np.ones((3, 1)), ["no verdict: too few lags"]),
        (np.zeros((3, 61)), ["no verdict: every norm is zero"]),
        (np.r_[1.0, np.zeros(60)], ["no gradient that can be represented gets further back than the last step"]),
        (np.r_[0.0, 0.5 ** LAGS[:-1]], ["of that at lag 1, where it enters;"]),
        (np.r_[0.1 ** LAGS[:30], np.zeros(31)], ["zero or too small to be represented from lag 30 on"]),
        (0.5**LAGS, ["no interval (a single sequence)"]),
    ],
)
def test_every_verdict_has_its_words(norms, parts):
    said = sentence(fit_decay(np.arange(np.shape(norms)[-1]), norms))
    for part in parts:
        assert part in said
    assert "learn" not in said
    assert "nan" not in said


def test_clipping_is_told_in_one_sentence():
    norm = clip_statistics([0.5, 2.0, 4.0, 4.0], [1.0, 0.5, 0.25, 0.25], [0, 1, 1, 1], threshold=1.0)
    assert clip_sentence(norm) == "norm clipping at 1 changed 75% of 4 calls, by a median factor of 0.25"
    value = clip_statistics([2.0, np.inf], [0.5, 0.0], [0.5, 1.0], kind="value", threshold=1.0, cosine=[0.7, np.nan])
    assert "median cosine with the raw gradient of .700" in clip_sentence(value)
    assert "changed 100% of 1 call in recorded steps, " in clip_sentence(value)
    timestep = clip_statistics([2.0], [1.0], [0.0], kind="timestep")
    assert clip_sentence(timestep) == "per-timestep clipping of the adjoint changed 0% of 1 call"
    assert clip_sentence(clip_statistics([], [], [])) == "no clipping call was recorded"
    logged = clip_statistics([2.0, 3.0], [1.0, 1.0], [0, 0], threshold=np.inf)
    assert clip_sentence(logged) == "norm clipping was called 2 times without a limit, to learn the norm"
