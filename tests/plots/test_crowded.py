"""Figures of very many or very unlike runs: what counts is still told apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from gradscope.plots import comparison, figures, gates, norm_distribution, norms, style, timescales, training
from tests.made_runs import make_run
from tests.plots.test_figures import extras


def runs_of(root, n, **options):
    return [make_run(root / f"run-{i}", (-0.1, -0.05), extra=extras(40), seed=i, **options) for i in range(n)]


def test_thresholds_are_named_beside_the_axes_and_apart(tmp_path):
    runs = [make_run(tmp_path / str(c), threshold=c) for c in (1.0, 1.1, 1.2)]
    with style.use("icml"):
        figure = figures.figure_of(norms, norms.table(runs), "icml")
        figure.draw_without_rendering()
    named = [text for text in figure.axes[0].texts if text.get_text().startswith("c = ")]
    # That of the text alone: an annotation counts its leader as well.
    boxes = sorted((Text.get_window_extent(text) for text in named), key=lambda box: box.y0)
    assert [text.get_text() for text in named] == ["c = 1", "c = 1.1", "c = 1.2"]
    assert all(box.x0 > figure.axes[0].bbox.x1 for box in boxes)
    assert all(above.y0 >= below.y1 - 0.5 for below, above in pairwise(boxes))


def test_timescales_of_many_runs_are_a_box_each(tmp_path):
    data = timescales.table(runs_of(tmp_path, 5))
    with style.use("icml"):
        ax = figures.figure_of(timescales, data, "icml").axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"run-{i}" for i in range(5)]
    assert "median, middle half" in timescales.caption(data)


def test_seeds_share_a_box_of_timescales(tmp_path):
    runs = [
        make_run(tmp_path / f"{init}-{seed}", extra=extras(40), labels={"init": init, "seed": seed}, seed=seed)
        for init in ("default", "chrono")
        for seed in range(3)
    ]
    assert timescales.table(runs)["line"].nunique() == 2


def test_a_run_that_collapses_does_not_squeeze_the_panels_of_the_others(tmp_path):
    fall = lambda record: np.broadcast_to(10.0 ** (-3.0 * np.arange(40)), (6, 40)).copy()  # noqa: E731
    runs = [make_run(tmp_path / "falls", (-0.1, -0.05)), make_run(tmp_path / "gone", (-3, -3), norms=fall)]
    with style.use("icml"):
        figure = figures.figure_of(training, training.table(runs), "icml")
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[1].get_ylim() == (low, high)
    assert low > 1e-18


def test_a_comparison_of_one_run_shows_what_its_sites_differ_in(tmp_path):
    runs = [make_run(tmp_path / "stack", sites=[f"rnn/l{i}" for i in range(4)], cell="gru")]
    data = comparison.table(runs)
    with style.use("icml"):
        (ax,) = figures.figure_of(comparison, data, "icml").axes
    assert ax.get_xlabel() == "half-life (steps)"
    assert "Parameters: 1234, final loss" in comparison.caption(data)


def test_gates_of_a_dozen_runs_fit_a_column_and_those_left_out_are_counted(tmp_path):
    with style.use("icml"):
        figure = figures.figure_of(gates, gates.table(runs_of(tmp_path, 12)), "icml")
        figure.draw_without_rendering()
    assert len([ax for ax in figure.axes if ax.get_title(loc="left")]) == 9
    assert "3 more not drawn" in figure.get_supxlabel()
    assert figure.get_size_inches()[1] <= style.PAGE


def test_a_run_without_norms_is_named_beside_the_distribution(tmp_path, monkeypatch):
    with_norms, without = (make_run(tmp_path / name) for name in ("with", "without"))
    known = norm_distribution.raw_norms
    monkeypatch.setattr(
        norm_distribution, "raw_norms", lambda run: known(run).iloc[:0] if run is without else known(run)
    )
    data = norm_distribution.table([with_norms, without])
    assert "without" in norm_distribution.caption(data)


@pytest.mark.parametrize("values", [(0.2, 0.3, 30.0), (0.2, 0.3, 0.4)])
def test_one_loss_that_went_astray_turns_the_axis_logarithmic(tmp_path, values):
    data = comparison.table(runs_of(tmp_path, 3)).assign(metric=list(values))
    with style.use("screen"):
        ax = comparison.draw(data, column="metric")
    assert ax.get_xscale() == ("log" if values[-1] > 1 else "linear")
