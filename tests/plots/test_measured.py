"""Figures of measurements on demand, from the measurement itself to the page."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.plots import figures, lyapunov, source_target, spectrum, style, weight

STEPS = 12


@pytest.fixture(scope="module")
def gru():
    torch.manual_seed(0)
    return nn.GRU(2, 4, bidirectional=True).double()


@pytest.fixture(scope="module")
def x():
    return torch.randn(STEPS, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("site", "columns", "blank"), [("l0", slice(4), "after"), ("l0_reverse", slice(4, 8), "before")]
)
def test_each_direction_fills_its_own_triangle(gru, x, site, columns, blank):
    measured = gradscope.source_target(gru, lambda: gru(x)[0].square().sum(2), site=_site(gru, x, site))
    data = source_target.table(measured)
    assert len(data) == STEPS * (STEPS + 1) // 2
    assert (data["norm"] > 0).all()
    assert f"{blank} their target" in source_target.caption(data)
    # On the diagonal the loss of a step depends on its own state directly: dL_t/dh_t = 2 h_t.
    own = data[data["target"] == data["source"]].sort_values("target")["norm"]
    expected = 2 * gru(x)[0][..., columns].norm(dim=2).mean(1)
    np.testing.assert_allclose(own, expected.detach().numpy(), rtol=1e-10)


def _site(model, x, ending):
    found = gradscope.snapshot(model, lambda: model(x)[0].sum()).sites
    return next(site for site in found if site.endswith(ending))


def test_a_spectrum_at_chosen_lags_is_drawn_at_them(gru, x):
    measured = gradscope.spectrum(gru, x, site=_site(gru, x, "l0"), lags=[0, 3, 11])
    data = spectrum.table(measured)
    assert data["lag"].tolist() == [0, 3, 11]
    np.testing.assert_allclose(data.loc[0, list(spectrum.LEVELS)].astype(float), 0.0, atol=1e-12)  # the identity
    np.testing.assert_allclose(data["largest"], np.log10(measured.singular_values.max(axis=(1, 2))))
    growth = lyapunov.table({"gru": measured})
    np.testing.assert_array_equal(growth["exponent"], measured.exponents)
    with style.use("icml"):
        for module, table in ((spectrum, data), (lyapunov, growth)):
            figures.figure_of(module, table, "icml").draw_without_rendering()


def test_contributions_whose_squares_underflow_are_drawn_at_their_height(tmp_path):
    torch.manual_seed(0)
    module, given = nn.RNN(2, 6).double(), torch.randn(600, 2, 2, dtype=torch.float64)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None, quantities=["weight"]) as recorder:
        module(given)[0][-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    recorded = run.array("model/l0", "weight")[0]
    assert 0 < recorded[1:].min() < 1e-170
    np.testing.assert_allclose(weight.table([run])["norm"], recorded, rtol=1e-12)
