"""What was seen to go wrong when every figure was looked at, in print, with few and many runs, sites and steps."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.markers import CARETUPBASE
from matplotlib.text import Text

from gradscope.plots import (
    comparison,
    connectivity,
    decay,
    figures,
    gates,
    learning,
    lines,
    marks,
    story,
    style,
    sweep_loss,
    sweep_metric,
    text,
    titles,
    training,
    weight,
    whatif,
)
from gradscope.schema import RunMeta, StepRow
from gradscope.store import RunWriter, open_run
from tests.made_runs import make_run
from tests.plots.test_figures import clipped, extras

LONG = "a_model_of_some_length"


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that are drawn over each other."""
    figure.draw_without_rendering()
    hidden = {label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in _beyond(axis)}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    boxes = [(t.get_text(), Text.get_window_extent(t).padded(-0.5)) for t in shown]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def _beyond(axis: Axis) -> list[Text]:
    """Ticks beyond the limits of their axis are objects, but not drawn."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if not (tick.label1.get_visible() and low <= tick.get_loc() <= high)]


def seeds(root, models=("a", "b"), n=3, **options):
    return [
        make_run(root / f"{LONG}_{m}_seed{i}", (-0.1, -0.05), labels={"init": m, "seed": i}, seed=i, **options)
        for m in models
        for i in range(n)
    ]


@pytest.mark.parametrize("module", [training, gates])
def test_names_of_panels_in_a_column_do_not_run_into_each_other(module, tmp_path):
    runs = [make_run(tmp_path / f"{LONG}_{i}", lags=3, extra=extras(3)) for i in range(4)]
    with style.use("icml"):
        figure = figures.figure_of(module, module.table(runs), "icml")
        assert overlapping(figure) == []


def test_a_map_of_many_targets_has_labels_apart():
    n = 60
    info = SimpleNamespace(site="lstm/l0", curve="cell")
    measured = SimpleNamespace(info=info, input=np.tril(np.full((n, n), 0.5)))
    with style.use("icml"):
        figure = figures.figure_of(connectivity, connectivity.table(measured, targets=range(n)), "icml")
        assert overlapping(figure) == []


def test_every_model_has_a_panel_before_a_second_seed_or_the_other_sites_of_one():
    keys = [(f"m{m}", f"m{m}-{s}", f"l{at}") for m in range(3) for s in range(4) for at in range(8)]
    kept = [keys[i] for i in titles.chosen(keys, 6)]
    assert [line for line, _, _ in kept] == ["m0", "m0", "m1", "m1", "m2", "m2"]
    assert {run for _, run, _ in kept} == {"m0-0", "m1-0", "m2-0"}
    assert [site for _, _, site in kept[:2]] == ["l0", "l7"]
    assert titles.chosen(keys[:5], 6) == [0, 1, 2, 3, 4]


def test_seeds_share_a_row_of_a_comparison_with_a_dot_each(tmp_path):
    data = comparison.table(seeds(tmp_path))
    with style.use("icml2"):
        axes = figures.figure_of(comparison, data, "icml2").axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["LSTM, a", "LSTM, b"]
    assert len(axes[-1].collections[-1].get_offsets()) == 6


def test_very_many_sites_of_several_runs_share_the_row_of_their_run(tmp_path):
    runs = [make_run(tmp_path / f"r{i}", (-0.1,), sites=[f"rnn/l{k}" for k in range(14)], cell="gru") for i in range(2)]
    with style.use("icml"):
        figure = figures.figure_of(comparison, comparison.table(runs), "icml")
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["r0", "r1"]


def test_an_axis_without_a_single_half_life_has_no_numbers(tmp_path):
    data = comparison.table([make_run(tmp_path / "stays", (0.0,), lags=3)]).assign(
        half_life=np.nan, half_life_lo=np.nan
    )
    with style.use("icml"):
        ax = comparison.draw(data.assign(half_life_hi=np.nan))
    assert list(ax.get_xticks()) == []


def test_very_many_contributions_are_a_map(tmp_path):
    runs = [make_run(tmp_path / "r", sites=[f"lstm/l{i}" for i in range(8)], extra=extras(40))]
    with style.use("icml"):
        figure = figures.figure_of(weight, weight.table(runs), "icml")
    assert len(figure.axes) == 2  # with the colours
    assert not figure.axes[0].get_lines()


@pytest.mark.parametrize("grows", [False, True])
def test_a_mark_stands_where_its_curve_crosses_the_edge(grows):
    x, fall = np.arange(41.0), 10.0 ** -np.arange(41.0)
    with style.use("screen"):
        ax = style.axes(None)
        ax.set_xlim(0, 40)
        ax.set_yscale("log")
        ax.set_ylim(10**-10.5, 10)
        lines.leaving(ax, x, fall[::-1] if grows else fall, "black")
    assert [mark for line in ax.get_lines() for mark in line.get_xdata()] == pytest.approx([29.5 if grows else 10.5])


def test_marks_stand_above_others_only_where_these_are_in_their_way():
    with style.use("screen"):
        ax = style.axes(None)
        ax.set_xlim(0, 10)
        ax.set_yscale("log")
        ax.set_ylim(0.1, 10)
        lines.leaving(ax, [0, 10], [1.0, 1e-3], "black")
        lines.leaving(ax, [0, 10], [1.0, 1e3], "black")  # at the other edge
        lines.leaving(ax, [0, 1, 10], [1.0, 1e-3, 1e-3], "black")  # much earlier
        lines.leaving(ax, [0, 10], [1.0, 1e-3], "black")  # where the first is
        lines.leaving(ax, [0, 10], [1.0, 0.0], "black", of="one run")  # there too: at its end
        lines.leaving(ax, [0, 10], [1.0, 0.0], "black", of="one run")
        heights = [float(line.get_ydata()[0]) for line in ax.get_lines() if line.get_linestyle() == "None"]
        assert heights == pytest.approx([0.015, 0.985, 0.015, 0.04, 0.015, 0.015])
        ax.clear()
        ax.set_xlim(0, 10)
        marks.at_edge(ax, [10], top=False, color="black", label="zero")
    assert ax.get_lines()[0].get_ydata()[0] == 0.015


def test_a_stretch_that_cannot_be_shown_is_a_mark_and_a_line():
    with style.use("screen"):
        ax = style.axes(None)
        marks.along_edge(ax, [0, 1, 2, 3, 4, 5], [1, 0, 1, 1, 1, 0], top=False, color="black", label="zero")
    drawn = [(line.get_marker(), list(line.get_xdata())) for line in ax.get_lines()]
    assert drawn == [("v", [0, 2]), ("None", [0, 0]), ("None", [2, 4])]
    assert {y for line in ax.get_lines() for y in line.get_ydata()} == {0.015}


def test_a_band_is_not_cut_off_by_the_axis(tmp_path):
    spread = np.geomspace(1e-2, 1, 6)[:, None] ** np.array([0.0, 0.5, 1.0])
    data = decay.table([make_run(tmp_path / "r", lags=3, norms=lambda i: spread)])
    with style.use("icml"):
        ax = decay.draw(data)
    assert ax.get_ylim()[0] < data["relative_low"].min()


def logged(root, name, losses, seed):
    meta = RunMeta("2026-01-01T00:00:00+00:00", "0.1.0", "2.9.0", {"labels": {"init": "a", "seed": seed}}, {})
    writer = RunWriter(root / name, meta)
    for step, loss in enumerate(losses):
        writer.add_step(StepRow(step, float(step), {"loss": loss, "held_out_loss": 2 * loss}))
    writer.close()
    return open_run(root / name)


@pytest.fixture
def one_of_three_diverged(tmp_path):
    nan = float("nan")
    levels = ([3.0] * 10, [1.0] * 10, [2.0] * 5 + [nan] * 5)
    return [logged(tmp_path, f"r{i}", losses, i) for i, losses in enumerate(levels)]


def test_a_median_does_not_jump_where_one_of_its_runs_diverges(one_of_three_diverged):
    data = sweep_loss.table(one_of_three_diverged)
    with style.use("icml"):
        ax = sweep_loss.draw(data)
    middle = next(line for line in ax.get_lines() if line.get_label() == "no clip")
    np.testing.assert_allclose(middle.get_ydata(), 2.0)
    assert "none 2.0" in sweep_loss.caption(data)


def test_a_mean_of_losses_is_of_the_trainings_that_went_on_and_says_so(one_of_three_diverged):
    data = learning.table(one_of_three_diverged)
    with style.use("icml"):
        ax = learning.draw(data)
    held = next(line for line in ax.get_lines() if line.get_linewidth() > 1 and len(line.get_xdata()) == 10)
    np.testing.assert_allclose(held.get_ydata(), 12**0.5)
    assert [list(line.get_xdata()) for line in ax.get_lines() if line.get_label() == "_diverged"] == [[6]]
    assert "1 of 3 trainings diverged" in learning.caption(data)
    assert "at the end: a 3.5." in learning.caption(data)  # where the line ends


def test_what_was_measured_before_a_training_diverged_is_not_what_it_reached(tmp_path):
    runs = [make_run(tmp_path / "a", inputs=True), make_run(tmp_path / "b", threshold=None, diverges_at=5, inputs=True)]
    known = runs[1].steps

    def steps():
        return known().assign(held_out_accuracy=lambda at: np.where(at["step"] == 2, 0.8, np.nan))

    runs[1].steps = steps
    data = story.table(runs)
    assert data["accuracy"].isna().all()
    assert "no clip: diverged" in story.caption(data)


def test_thresholds_are_powers_of_ten_as_a_paper_prints_them():
    measured = clipped(5)
    measured.thresholds = (np.inf, 1e-5, 2.5e-6)
    with style.use("icml"):
        ax = whatif.draw(whatif.table(measured))
    named = {entry.get_text() for entry in ax.get_legend().get_texts()}
    assert named == {"none", "$10^{-5}$", r"$2.5\cdot10^{-6}$"}


@pytest.mark.parametrize("name", ["lstm-1e-05", "run1e5", "0.5", "e5", "1e-05x"])
def test_a_number_within_a_name_stays_as_it_is(name):
    assert text.powers(name) == name


def test_a_legend_names_every_line_that_has_a_look_of_its_own(tmp_path):
    names = [f"{LONG}_{i}" for i in range(style.MAX_LEGEND)]
    with style.use("icml"):
        ax = style.axes(None, style="icml")
        style.legend(ax, lines.handles(style.looks(names)))
    assert [entry.get_text() for entry in ax.get_legend().get_texts()] == names


def test_what_the_shade_means_is_not_written_over_a_curve():
    with style.use("icml"):
        ax = style.axes(None, style="icml")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.plot([0, 1], [0.2, 0.4])
    assert lines.crosses(ax, 0.4, 0.25, 0.2, 0.1)
    assert lines.crosses(ax, 0.0, 0.15, 1.0, 0.3)
    assert not lines.crosses(ax, 0.4, 0.5, 0.2, 0.1)


@pytest.mark.parametrize(
    ("name", "columns", "site"), [("screen", 3, "lstm/l0"), ("icml", 2, "encoder.layers.3.lstm/l0")]
)
def test_no_two_panels_of_different_runs_have_one_title(name, columns, site):
    with style.use(name):
        fig, grid = style.figure(name, rows=6 // columns, columns=columns, aspect=0.5)
        axes = list(np.ravel([grid]))
        cases = ("chrono_c0.1", "chrono_c10.0", "default_c0.1", "default_c10.0", "chrono_c1.0", "default_c1.0")
        titles.titles(fig, {ax: f"lstm_layernorm_{case}_seed0: {site}" for ax, case in zip(axes, cases, strict=True)})
    shown = [ax.get_title(loc="left") for ax in axes]
    assert len(set(shown)) == len(axes)
    assert all(text.endswith(site) for text in shown)


def test_a_name_is_not_broken_within_a_number():
    size = FontProperties(size=9)
    assert titles._broken("gru_chrono_c0.1_seed0: gru/l0", 80, size) == "gru_chrono_c0.1_\nseed0: gru/l0"
    assert titles._broken("gru_chrono_c1e-3_seed0: gru/l0", 86, size) == "gru_chrono_c1e-3_\nseed0: gru/l0"
    assert titles._broken("gru_chrono_c0.1_seed0: gru/l11_reverse", 86, size) == (
        "gru_chrono_\nc0.1_seed0:\ngru/l11_reverse"
    )
    assert titles._broken(" ", 80, size) == titles.label(" ", 60)  # which has no outline to measure
    assert len(titles._broken("x" * 4000, 80, size)) < 60


def test_the_panels_of_a_narrow_comparison_end_at_the_same_row(tmp_path):
    one = comparison.table([make_run(tmp_path / "r", (-0.1,), sites=["rnn/l0", "rnn/l1"], cell="gru")])
    data = pd.concat([one.assign(run=f"r{i}", line=f"r{i}") for i in range(30)])
    with style.use("icml"):
        axes = figures.figure_of(comparison, data, "icml").axes
    assert len({len(ax.get_yticks()) for ax in axes}) == 1


def test_an_interval_beyond_the_axis_has_an_arrow_there():
    names = {"run": ["a", "b"], "threshold": 1.0, "diverged": False, "metric": "loss"}
    with style.use("icml"):
        ax = sweep_metric.draw(pd.DataFrame(names | {"value": [0.2, 2.3]}))
    assert [line.get_marker() for line in ax.lines if line.get_label() == "_beyond"] == ["v", CARETUPBASE]
