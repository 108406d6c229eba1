"""Every kind of sentence, read back as numbers and compared with raw arrays by plain numpy."""

import re

import numpy as np
import pytest
from scipy import stats

from gradscope import reasons
from gradscope.diagnostics import clip_statistics, fit_decay, suggest_threshold
from gradscope.words import clip_sentence, correlation, number, sentence, within

LAGS = np.arange(61)
FIRST = 5


def sequences(rate, *, seed, n=8, spread=0.003, noise=0.02, steps=1):
    rng = np.random.default_rng(seed)
    logs = (rate + rng.normal(0, spread, (n * steps, 1))) * LAGS + rng.normal(0, 1, (n * steps, 1))
    return 10 ** (logs + np.cumsum(rng.normal(0, noise, logs.shape), axis=1))


def mean_curve(norms):
    return np.log10(norms).mean(axis=0)


def printed(pattern, said):
    found = re.search(pattern, said)
    assert found, said
    return found.groups()


def times(words):
    """The number in ``304 times``, ``3e-9 of`` or ``as large as``."""
    return 1.0 if words == "as large as" else float(words.split()[0])


def same(text, value, digits=2):
    """A printed number is the raw one, rounded."""
    assert text == number(value, digits)


REACH = r"the gradient reaching 60 steps back is (as large as|[\d.e-]+ times|[\d.e-]+ of) that at the last step"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [-0.23, -0.06, -0.001, 0.05])
def test_what_reaches_the_first_step_is_the_ratio_of_the_raw_norms(seed, rate):
    norms = sequences(rate, seed=seed)
    said = sentence(fit_decay(LAGS, norms))
    curve = mean_curve(norms)
    raw = 10 ** (curve[-1] - curve[0])
    shown = times(printed(REACH, said)[0])
    assert shown == pytest.approx(raw, rel=0.5 if raw < 1e-3 else 0.06)


@pytest.mark.parametrize("seed", range(20))
def test_a_half_life_its_interval_and_r2_are_those_of_the_raw_norms(seed):
    norms = sequences(-0.14, seed=seed)
    fit = fit_decay(LAGS, norms)
    half, low, high, r2 = printed(r"half-life ([\d.]+) steps \(([\d.]+)–([\d.]+)\), R² ([>.\d]+)", sentence(fit))
    line = stats.linregress(LAGS[FIRST:], mean_curve(norms)[FIRST:])
    slopes = np.array([stats.linregress(LAGS[FIRST:], np.log10(row)[FIRST:]).slope for row in norms])
    expected = stats.t.interval(0.95, len(norms) - 1, slopes.mean(), stats.sem(slopes))
    assert float(half) == pytest.approx(-np.log10(2) / line.slope, rel=0.05)
    assert [float(low), float(high)] == pytest.approx([-np.log10(2) / bound for bound in expected], rel=0.06)
    assert r2 == correlation(line.rvalue**2)
    assert float(low) <= float(half) <= float(high)


@pytest.mark.parametrize("seed", range(20))
def test_the_factor_of_ten_and_the_number_beside_it_speak_of_the_same_lags(seed):
    # A steep start that the range of the verdict leaves out.
    norms = sequences(-0.001, seed=seed) * 10.0 ** np.where(LAGS < 3, 2 - LAGS, 0)
    said = sentence(fit_decay(LAGS, norms))
    first, last, end, shown, begin = printed(
        r"preserved over lags (\d+)–(\d+), at lag (\d+) (as large as|[\d.e-]+ times|[\d.e-]+ of) that at lag (\d+), "
        r"within a factor of 10 throughout",
        said,
    )
    assert (first, last) == (begin, end) == ("5", "60")
    curve = mean_curve(norms)
    assert times(shown) == pytest.approx(10 ** (curve[60] - curve[5]), rel=0.06)
    assert np.ptp(curve[5:]) < 1


@pytest.mark.parametrize("seed", range(20))
def test_growth_per_step_and_over_the_range_are_those_of_the_raw_norms(seed):
    norms = sequences(0.05, seed=seed)
    end, factor, low, high = printed(
        r"growing over lags 5–60, at lag 60 ([\d.e]+) times that at lag 5, "
        r"by a factor of ([\d.]+) \(([\d.]+)–([\d.]+)\) per step",
        sentence(fit_decay(LAGS, norms)),
    )
    curve = mean_curve(norms)
    same(end, 10 ** (curve[60] - curve[5]))
    assert float(factor) == pytest.approx(10 ** stats.linregress(LAGS[FIRST:], curve[FIRST:]).slope, abs=0.006)
    assert float(low) <= float(factor) <= float(high)


@pytest.mark.parametrize("seed", range(20))
def test_a_fall_without_a_half_life_tells_how_far_it_falls_and_how_it_bends(seed):
    norms = sequences(0.0, seed=seed) * 10 ** (-4 * np.log10(1 + LAGS / 3.0))
    said = sentence(fit_decay(LAGS, norms))
    end, how, early, split, late = printed(
        r"vanishing over lags 5–60, at lag 60 ([\d.e-]+) of that at lag 5, no half-life \(the decay is not "
        r"exponential: it gets (\w+) with distance, a half-life of ([\d.]+) steps over lags 5–(\d+), ([\d.]+) over",
        said,
    )
    curve, at = mean_curve(norms), int(split)
    same(end, 10 ** (curve[60] - curve[5]))
    halves = [np.log10(0.5) / stats.linregress(LAGS[a:b], curve[a:b]).slope for a, b in ((5, at + 1), (at, 61))]
    assert [float(early), float(late)] == pytest.approx(halves, rel=0.05)
    assert how == ("slower" if halves[1] > halves[0] else "faster")


@pytest.mark.parametrize("seed", range(20))
def test_an_undetermined_change_straddles_the_factor_it_names(seed):
    norms = sequences(-0.018, seed=seed, n=4, spread=0.004)
    fit = fit_decay(LAGS, norms)
    slopes = np.array([stats.linregress(LAGS[FIRST:], np.log10(row)[FIRST:]).slope for row in norms])
    low, high = np.array(stats.t.interval(0.95, 3, slopes.mean(), stats.sem(slopes))) * 55
    if fit.verdict == "undetermined":
        assert low < -0.95 < high or low < 0 < high or np.ptp(mean_curve(norms)[5:]) >= 0.95
    else:
        assert high < -0.95 or (low > -1.05 and high < 1.05)


@pytest.mark.parametrize("lost", [20, 30, 45])
def test_where_norms_can_no_longer_be_represented_is_the_raw_lag(lost):
    norms = sequences(-0.1, seed=lost)
    norms[:, lost:] = 0.0
    assert f"zero or too small to be represented from lag {lost} on" in sentence(fit_decay(LAGS, norms))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_what_clipping_did_is_counted_in_the_raw_calls(seed, kind):
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(0, 1, 50)
    norms[rng.integers(50, size=4)] = np.inf
    scale = np.minimum(1, 1.25 / norms)
    clipped = (norms > 1.25).astype(float)
    cosine = None if kind == "norm" else np.where(np.isfinite(norms), rng.uniform(0.5, 1, 50), np.nan)
    said = clip_sentence(clip_statistics(norms, scale, clipped, kind=kind, threshold=1.25, cosine=cosine))
    finite = np.isfinite(norms)
    changed = finite & (norms > 1.25)
    assert f"at 1.25 changed {100 * changed.sum() / finite.sum():.0f}% of {finite.sum()} calls" in said
    same(printed(r"by a median factor of ([\d.]+\d)", said)[0], float(np.median(scale[changed])))
    assert f"{(~finite).sum()} calls more saw a norm that is not finite" in said
    if cosine is not None:
        assert f"median cosine with the raw gradient of {correlation(float(np.median(cosine[finite])))}" in said


def test_numbers_of_three_digits_are_written_out():
    assert reasons.suggested(19.0, 132.0, (0.5, 0.01), 141).startswith("Thresholds from 19 to 132 would")
    assert reasons.suggested(11.6, 11.8, (0.5, 0.04), 24).startswith("Thresholds from 11.6 to 11.8 would")
    assert "a half-life of 112 steps over lags 5–1502, 43 over" in reasons.bend(
        -0.003, -0.007, (5, 2999), 1502, (112, 43)
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_suggested_range_would_have_clipped_what_it_says(seed):
    norms = np.random.default_rng(seed).lognormal(0, 0.5, 400)
    found = suggest_threshold(norms)
    low, high, at_low, at_high = printed(
        r"Thresholds from ([\d.]+) to ([\d.]+) would have clipped (\d+)% down to (\d+)%", found.words
    )
    assert [float(low), float(high)] == pytest.approx([found.low, found.high], rel=0.06)
    shares = [100 * np.mean(norms + 1e-6 > bound) for bound in (found.low, found.high)]
    assert [int(at_low), int(at_high)] == pytest.approx(shares, abs=0.5 + 1e-9)


def test_a_printed_value_lies_inside_its_printed_interval():
    rng = np.random.default_rng(0)
    for value in 10 ** rng.uniform(-5, 6, 2000):
        arms = value * 10 ** rng.uniform(-6, -0.5, 2)
        shown, around = within(value, (value - arms[0], value + arms[1]))
        low, high = (float(bound) for bound in around.strip("()").split("–"))
        assert low <= float(shown) <= high
