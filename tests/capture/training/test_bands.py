"""At PyTorch's default initialisation all three cells vanish, and how fast is known.

Adding problem, T = 100, H = 128, loss on the last step only: slope of log10 of the gradient norm over lags 5 to 99,
∂L/∂c of an LSTM and ∂L/∂h of the others, five seeds. The bands were fixed from an independent measurement, which the
spectral radius of the zero-trajectory Jacobian predicts.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from scipy import stats
from torch import nn

import gradscope
from gradscope.lab.zoo.models import build_model
from gradscope.lab.zoo.tasks import adding

SEEDS, LENGTH, HIDDEN = range(5), 100, 128

pytestmark = pytest.mark.slow


@lru_cache
def _fits(name: str, samples: int | None) -> tuple[Any, ...]:
    """Fit the decay of a freshly initialised model, seed by seed."""
    task = adding(LENGTH)
    fits = []
    for seed in SEEDS:
        model = build_model(name, task, HIDDEN, seed=seed)
        x, y = next(task.batches(100 + seed, 32))
        with TemporaryDirectory() as folder:
            with gradscope.record(model, Path(folder) / "run", every=1, samples=samples):
                task.loss(model(x), y).backward()
            run = gradscope.open_run(Path(folder) / "run")
            (site,) = run.sites
            norms = run.array(site, run.site(site).curve)[0]
        assert norms.shape == (samples or 32, LENGTH)
        fits.append(gradscope.fit_decay(np.arange(LENGTH), norms, lag_range=(5, 99)))
    return tuple(fits)


def _rates(name: str, samples: int | None = None) -> np.ndarray:
    return np.array([fit.rate for fit in _fits(name, samples)])


@pytest.mark.parametrize("samples", [None, 8], ids=["whole batch", "8 samples"])
@pytest.mark.parametrize(
    ("name", "center", "half_width"),
    [("rnn", -0.233, 0.03), ("lstm", -0.192, 0.01), ("gru", -0.190, 0.01), ("lstm-forget1", -0.062, 0.006)],
)
def test_the_mean_rate_lies_in_its_band(name: str, center: float, half_width: float, samples: int | None) -> None:
    rates = _rates(name, samples)
    print(f"{name}, samples={samples}: {rates.mean():.4f} ± {rates.std(ddof=1):.4f} over {len(rates)} seeds")
    assert rates.mean() == pytest.approx(center, abs=half_width)
    for fit in _fits(name, samples):
        assert fit.verdict == "vanishing"
        assert fit.lag_range == (5, 99)
        assert fit.interval is not None
        assert fit.interval[0] <= fit.rate <= fit.interval[1]
        if fit.half_life is not None:
            assert fit.r2 >= 0.95
            assert fit.half_life == pytest.approx(-np.log10(2) / fit.rate)


def test_a_default_lstm_and_a_gru_cannot_be_told_apart() -> None:
    lstm, gru = _rates("lstm"), _rates("gru")
    assert stats.ttest_ind(lstm, gru, equal_var=False).pvalue > 0.05
    # The same test does tell apart what is different.
    assert stats.ttest_ind(lstm, _rates("lstm-forget1"), equal_var=False).pvalue < 1e-6
    assert stats.ttest_ind(lstm, _rates("rnn"), equal_var=False).pvalue < 0.05


def test_a_subset_of_the_sequences_gives_the_rate_of_all() -> None:
    for name in ("rnn", "lstm", "gru", "lstm-forget1"):
        np.testing.assert_allclose(_rates(name, 8), _rates(name), atol=0.004)


def test_the_model_is_the_one_that_was_measured() -> None:
    model = build_model("lstm-forget1", adding(LENGTH), HIDDEN)
    (core,) = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    bias = (core.bias_ih_l0 + core.bias_hh_l0).detach()[HIDDEN : 2 * HIDDEN]
    assert core.hidden_size == HIDDEN
    assert bool((bias == 1).all()), "1 in the sum of both bias vectors"
