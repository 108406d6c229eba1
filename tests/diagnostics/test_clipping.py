import numpy as np
import pytest

from gradscope.diagnostics import clip_statistics, norm_scale, running_share, value_clip_effect
from gradscope.errors import SettingError


def test_norm_clipping_divides_by_the_norm_plus_a_millionth():
    # (3, 4) clipped at 1 has norm 5 / (5 + 1e-6), not 1.
    assert 5 * norm_scale(5.0, 1.0) == 5 / (5 + 1e-6)
    assert norm_scale(0.5, 1.0) == 1.0


def test_norm_clipping_of_an_infinite_gradient_leaves_nan_and_zero():
    scale = norm_scale(np.inf, 1.0)
    assert scale == 0.0
    with np.errstate(invalid="ignore"):
        clipped = np.array([np.inf, 1.0]) * scale
    assert np.isnan(clipped[0])
    assert clipped[1] == 0.0


def test_value_clipping_turns_the_gradient():
    effect = value_clip_effect([10.0, 1.0], 1.0)  # becomes (1, 1)
    assert effect.norm_before == pytest.approx(np.sqrt(101))
    assert effect.norm_after == pytest.approx(np.sqrt(2))
    assert effect.cosine == pytest.approx(0.773957, abs=1e-6)
    assert effect.cosine == pytest.approx(11 / np.sqrt(202), rel=1e-12)
    assert effect.share == 0.5


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170, 1e300])
def test_value_clipping_turns_gradients_of_any_size_alike(size):
    effect = value_clip_effect([10.0 * size, size], size)
    assert effect.norm_before == pytest.approx(np.sqrt(101) * size, rel=1e-14)
    assert effect.norm_after == pytest.approx(np.sqrt(2) * size, rel=1e-14)
    assert effect.cosine == pytest.approx(11 / np.sqrt(202), rel=1e-14)


def test_value_clipping_of_nothing_has_no_angle():
    assert np.isnan(value_clip_effect([0.0, 0.0], 1.0).cosine)
    assert np.isnan(value_clip_effect([np.inf, 1.0], 1.0).cosine)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan])
def test_a_threshold_must_be_positive(threshold):
    with pytest.raises(SettingError, match="positive"):
        norm_scale(1.0, threshold)
    with pytest.raises(SettingError, match="positive"):
        value_clip_effect([1.0], threshold)


def test_statistics_of_four_calls_by_hand():
    norms = np.array([0.5, 2.0, 4.0, np.inf])
    statistics = clip_statistics(norms, [1.0, 0.5, 0.25, 0.0], [0, 1, 1, 1], threshold=1.0, lr=0.1)
    assert (statistics.calls, statistics.n_nonfinite) == (4, 1)
    assert statistics.fraction_clipped == pytest.approx(2 / 3)
    assert statistics.scale_quantiles[2] == 0.5
    assert statistics.clipped_scale == 0.375
    assert statistics.norm_quantiles[2] == 2.0
    assert statistics.effective_lr[2] == pytest.approx(0.05)
    assert statistics.thresholds == (1.0,)
    assert statistics.cosine_min == 1.0  # one factor for all keeps the direction


def test_cosine_of_value_clipping_is_unknown_unless_measured():
    unmeasured = clip_statistics([2.0], [0.5], [0.3], kind="value")
    measured = clip_statistics([2.0, 2.0], [0.5, 0.5], [0.3, 0.1], kind="value", cosine=[0.7, 0.9])
    assert np.isnan(unmeasured.cosine_min)
    assert (measured.cosine_min, measured.cosine_median) == (0.7, pytest.approx(0.8))
    assert measured.mean_share == pytest.approx(0.2)
    assert measured.fraction_clipped == 1.0


def test_no_call_gives_no_number():
    statistics = clip_statistics([], [], [])
    assert statistics.calls == 0
    assert np.isnan(statistics.fraction_clipped)


def test_columns_of_different_length_are_refused():
    with pytest.raises(SettingError, match="one value per call"):
        clip_statistics([1.0, 2.0], [1.0], [0.0])


def test_the_running_share_looks_back_over_the_window():
    np.testing.assert_allclose(running_share([1, 0, 0, 1, 1], window=2), [1, 0.5, 0, 0.5, 1])
    with pytest.raises(SettingError, match="window"):
        running_share([1], window=0)
