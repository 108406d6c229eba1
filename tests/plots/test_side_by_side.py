"""Many runs in one figure: those that diverged apart, labels apart, and the same picture every time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from gradscope.plots import (
    clipping,
    comparison,
    connectivity,
    decay_map,
    figures,
    norms,
    style,
    sweep_metric,
    timescales,
)
from tests.made_runs import make_run
from tests.plots.test_probed import source_target


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More runs than a legend holds, two of which diverge."""
    root = tmp_path_factory.mktemp("many")
    gone = {3: 6, 7: 8}
    return [make_run(root / f"r{i:02d}", (-0.1,) * 2, diverges_at=gone.get(i), seed=i) for i in range(13)]


def curves(ax):
    return {str(line.get_label()): line.get_ydata() for line in ax.get_lines() if line.get_linestyle() != "None"}


def test_norms_of_the_runs_that_diverged_are_a_line_of_their_own(many):
    data = norms.table(many)
    assert set(data["run"][data["diverged"]]) == {"r03", "r07"}
    with style.use("screen"):
        figure = figures.figure_of(norms, data, "screen")
    drawn = curves(figure.axes[0])
    logs = data.assign(log=np.log10(data["norm"]))[~data["run"].isin(["r03", "r07"])]  # the axis is logarithmic
    stayed = logs.groupby("step")["log"].median()
    np.testing.assert_allclose(np.log10(drawn["median and range of 11 runs"]), stayed)
    assert np.isfinite(drawn["of 2 that diverged"]).sum() <= 8
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "median and range of 11 runs", "of 2 that diverged",
    ]  # fmt: skip


def test_what_a_threshold_would_have_done_is_told_apart_for_runs_that_diverged(many):
    data = clipping.table(many)
    with style.use("screen"):
        ax = clipping.draw(data)
    shared = data[data.groupby("threshold")["run"].transform("nunique") == 13]
    stayed = shared[~shared["run"].isin(["r03", "r07"])].groupby("threshold")["clipped"].median()
    np.testing.assert_allclose(curves(ax)["median and range of 11 runs"], stayed)
    assert "of 2 that diverged" in curves(ax)
    assert "the 2 that diverged apart" in clipping.caption(data)


def test_runs_that_all_diverged_are_one_line(many):
    data = norms.table(many).assign(diverged=True)
    with style.use("screen"):
        figure = figures.figure_of(norms, data, "screen")
    assert "median and range of 13 runs" in curves(figure.axes[0])


def side_by_side(rows, name="bidirectional_transducer_orthogonal_seed{:02d}"):
    runs = [name.format(i) for i in range(rows)]
    half = np.where(np.arange(rows) % 3 == 0, 10.0 ** (np.arange(rows) / 10), np.nan)
    return pd.DataFrame(
        {
            "run": runs, "line": runs, "site": "encoder/l0", "quantity": "cell", "rate": -0.1, "r2": 0.9,
            "parameters": 10_000.0 + 321 * np.arange(rows), "metric": 0.2 + 0.01 * np.arange(rows),
            "metric_name": "loss", "half_life": half, "half_life_lo": half * 0.8, "half_life_hi": half * 1.2,
            "verdict": "undetermined",
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", ["screen", "icml"])
def test_long_names_leave_room_to_the_numbers_and_words_beside_them(name):
    with style.use(name):
        figure = figures.figure_of(comparison, side_by_side(30), name)
        figure.draw_without_rendering()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        ticks = [
            tick for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_text()
        ]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) > 1
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    said = [text for text in figure.axes[-1].texts if text.get_text().endswith("undetermined")]
    assert said
    assert all(Text.get_window_extent(text).x1 <= figure.bbox.x1 for text in said)


def test_words_wider_than_their_panel_do_not_squeeze_the_panels():
    data = pd.concat([side_by_side(30).assign(site=f"encoder/l{i}", verdict=f"undetermined{i}") for i in range(3)])
    with style.use("screen"):
        figure = figures.figure_of(comparison, data.assign(metric=np.nan), "screen")
        figure.draw_without_rendering()
    assert all(ax.bbox.width > 0.15 * figure.bbox.width for ax in figure.axes)
    inside = [text for text in figure.axes[-1].texts if text.get_position()[0] < 1]
    assert {text.get_text() for text in inside} == {"none"}
    assert all(Text.get_window_extent(text).x1 <= figure.axes[-1].bbox.x1 for text in inside)


def test_runs_of_a_threshold_stand_beside_each_other_in_the_same_places_every_time():
    data = pd.DataFrame(
        {
            "run": list("abcde"), "threshold": [1.0, 1.0, 1.0, np.inf, np.inf], "value": [0.2, 0.21, 2.3, 0.3, 0.31],
            "diverged": False, "chance": np.nan, "metric": "loss",
        }
    )  # fmt: skip
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the generator that users share
    with style.use("screen"):
        places = [sweep_metric.draw(data).collections[-1].get_offsets() for _ in range(2)]
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.testing.assert_allclose(places[0], places[1])
    np.testing.assert_allclose(places[0][:, 1], data["value"])
    np.testing.assert_allclose(places[0][:, 0], [-0.08, 0, 0.08, 0.96, 1.04])


def test_curves_of_several_losses_end_where_each_ends_to_look():
    data = connectivity.table(source_target(), targets=[1, 3])
    with style.use("screen"):
        ax = connectivity.draw(data)
    assert {name: len(y) for name, y in curves(ax).items()} == {"loss at 1": 2, "loss at 3": 4}
    assert ax.get_xlim()[1] < 4


def test_a_wide_map_of_long_names_has_a_full_axis():
    rows = [
        {"name": f"bidirectional_transducer: encoder/l{i}_reverse", "lag": lag, "shown": 10.0**-lag, "n_zero": 0,
         "n_below_normal": 0, "n_sequences": 4}
        for i in range(8) for lag in range(100)
    ]  # fmt: skip
    with style.use("icml2"):
        ax = decay_map.draw(pd.DataFrame(rows), None, "icml2", "norm")
    assert len([at for at in ax.get_xticks() if 0 <= at < 100]) >= 5


def test_timescales_of_hundreds_of_lines_are_areas_with_the_same_quantiles():
    rng = np.random.default_rng(0)
    rows = [
        {"run": f"r{i}", "site": "lstm/l0", "step": 0, "gate": "f", "unit": unit, "timescale": tau, "length": 30}
        for i in range(200)
        for unit, tau in enumerate(rng.uniform(1, 100, 9))
    ]
    data = pd.DataFrame(rows)
    with style.use("screen"):
        ax = timescales.draw(data)
    medians = data.groupby("run")["timescale"].median().sort_values(ascending=False)
    (line,) = [line for line in ax.get_lines() if len(line.get_xdata()) == 200]
    np.testing.assert_allclose(line.get_xdata(), medians)
    assert len(ax.collections) == 2
