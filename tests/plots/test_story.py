"""The story figure: which runs stand in which panel, with the numbers that were recorded."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import figures, lines, story, style
from tests.made_runs import make_run


def told(root):
    """Two cells at two initialisations over two seeds, one record each; an RNN trained at three thresholds."""

    def made(name, rates, cell, init, label, **options):
        labels = {"init": init, "seed": label, "chance_loss": 2.3}
        return make_run(root / name, rates, cell=cell, labels=labels, inputs=True, **options)

    untrained = [
        made(f"{cell}-{init}-{seed}", (rate,), cell, init, seed, seed=seed)
        for cell, init, rate in (("lstm", "default", -0.2), ("lstm", "chrono", -0.01), ("gru", "default", -0.18))
        for seed in (0, 1)
    ]
    clipped = []
    for c, reached in ((0.5, 0.65), (5.0, 0.11), (None, 0.1)):
        options = {"threshold": c, "scalars": {"held_out_accuracy": reached}, "diverges_at": None if c else 15}
        clipped.append(made(f"clip-{c}", (-0.2, -0.1, -0.05), "rnn_tanh", "default", 0, **options))
    return [*untrained, *clipped]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return told(tmp_path_factory.mktemp("story"))


def drawn(data, preset="neurips"):
    with style.use(preset):
        figure = figures.figure_of(story, data, preset)
        figure.draw_without_rendering()
    return figure


def test_before_training_there_is_a_line_for_each_cell_and_initialisation_over_its_seeds(runs):
    data = story.table(runs)
    initial = data[data["panel"] == "initial"]
    assert initial.groupby("line")["run"].nunique().to_dict() == {
        "LSTM, default": 2, "LSTM, chrono": 2, "GRU, default": 2, "RNN, default": 1,
    }  # fmt: skip


def test_the_value_at_an_input_is_its_norm_over_that_at_the_last_input(runs):
    data = story.table(runs[:1])
    raw = np.log10(np.asarray(runs[0].array("lstm/l0", "input"), dtype=float)[0]).mean(axis=0)
    initial = data[data["panel"] == "initial"].sort_values("x")
    np.testing.assert_allclose(initial["x"], np.arange(1, 41))
    np.testing.assert_allclose(np.log10(initial["value"]), (raw - raw[0])[::-1], atol=1e-12)


def test_through_training_runs_are_compared_by_the_threshold_that_was_used(runs):
    data = story.table(runs)
    through = data[data["panel"] == "through"]
    assert list(dict.fromkeys(through["line"])) == ["c = 0.5", "c = 5", "no clip"]
    assert set(through["family"]) == {"RNN"}
    assert set(through["x"]) == {0, 10, 20}


def test_what_is_not_finite_is_no_gap(runs):
    data = story.table(runs)
    lost = data[(data["panel"] == "through") & (data["line"] == "no clip") & (data["x"] == 20)]
    assert np.isinf(lost["value"]).all()


def test_held_out_accuracy_stands_at_the_ends_of_the_losses(runs):
    figure = drawn(story.table(runs))
    texts = {text.get_text() for ax in figure.axes for text in ax.texts}
    assert {"c = 0.5\n65 %", "c = 5\n11 %", "no clip\n10 %"} <= texts


def test_the_legend_says_what_arrives_at_the_first_input(runs):
    data = story.table(runs)
    figure = drawn(data)
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    first = data[(data["panel"] == "initial") & (data["x"] == 1)].groupby("line")["value"].median()
    assert named[0] == f"LSTM, chrono  {first['LSTM, chrono']:.1g}"
    assert [name.split("  ")[0] for name in named] == list(first.sort_values(ascending=False).index)


def test_a_panel_without_data_is_left_out_and_the_caption_says_so(runs):
    data = story.table(runs[:6])
    assert len(drawn(data).axes) == 1
    assert "no run was recorded at two steps or more" in story.caption(data).lower()


def test_a_panel_drawn_alone_without_data_says_so_in_its_place(runs):
    with style.use("screen"):
        ax = story.draw(story.table(runs[:1]), panel="through")
    assert [text.get_text() for text in ax.texts] == ["no run was recorded at two steps or more"]
    assert not ax.axison


def test_a_training_that_goes_on_from_a_checkpoint_is_no_initialisation(tmp_path):
    run = make_run(tmp_path / "run", inputs=True)
    records = run.records

    def later(site):
        return records(site).assign(step=records(site)["step"] + 100)

    run.records = later
    assert "initial" not in set(story.table([run])["panel"])


def test_runs_without_the_gradient_of_the_input_are_named(tmp_path, runs):
    without = make_run(tmp_path / "without", (-0.1,), threshold=None)
    data = story.table([*runs[:2], without])
    assert "without" in story.caption(data)
    assert "'input' was not recorded" in story.caption(data)
    with pytest.raises(NotRecordedError, match="input"):
        story.table([without])


def test_an_unknown_panel_is_refused(runs):
    with pytest.raises(SettingError, match="initial, through, loss"):
        story.draw(story.table(runs[:1]), panel="first")


def test_one_collapsed_curve_does_not_squeeze_the_others():
    kept = [np.array([1.0, 1e-3]), np.array([1.0, 1e-5]), np.array([1.0, 1e-280])]
    assert lines.view(kept).tolist() == [1e-5, 1.0]
    assert lines.view(kept[2:]).tolist() == [1e-280, 1.0]
    falls = 10.0 ** -np.arange(40.0)
    assert lines.view([*kept[:2], falls]).tolist() == [1e-16, 1.0]


def test_one_loss_that_went_astray_does_not_squeeze_the_others():
    with style.use("screen"):
        ax = style.figure()[1]
        story.loss_limits(ax, [np.array([2.3, 1.0]), np.array([2.3, 900.0])])
        low, high = ax.get_ylim()
    assert low < 1.0
    assert 2.3 < high < 3.0


def test_the_same_weights_under_another_name_are_told_as_such(tmp_path, runs):
    twin = make_run(tmp_path / "twin", (-0.2,), labels={"init": "default", "seed": 0}, inputs=True)
    data = story.table([runs[0], twin])
    assert "Left out: twin (the cell, initialisation and seed of a run that is shown)." in story.caption(data)


def test_a_trained_run_with_the_labels_of_another_is_left_out_and_named(tmp_path):
    labels = {"init": "default", "seed": 0}
    one, twin = (make_run(tmp_path / name, (-0.2, -0.1), labels=labels, inputs=True) for name in ("one", "twin"))
    data = story.table([one, twin])
    assert set(data["run"]) == {"one"}
    assert "Left out: twin (the cell, initialisation and seed of a run that is shown)." in story.caption(data)


def test_names_at_the_ends_stay_beside_the_axes():
    height = np.full(3, 0.2)
    for at in (np.array([0.9, 1.1, 1.3]), np.array([-0.3, -0.1, 0.1])):
        moved = lines.within(at, height)
        assert moved.min() >= 0.1 - 1e-12
        assert moved.max() <= 0.9 + 1e-12
        assert (np.diff(moved) >= 0.2 - 1e-9).all()


@pytest.mark.parametrize("at", [[0.0, 0.0, 0.0], [0.1, 0.5, 0.9], [0.5, 0.51, 0.52, 0.9]])
def test_names_at_the_ends_stand_apart_and_in_order(at):
    moved = lines.apart(np.array(at), np.full(len(at), 0.1))
    assert (np.diff(moved) >= 0.1 - 1e-9).all()
    if at == [0.1, 0.5, 0.9]:
        np.testing.assert_allclose(moved, at)


def test_a_line_at_zero_has_its_triangles_though_other_runs_of_it_are_set_aside():
    rows = pd.DataFrame(
        [
            {"line": line, "run": f"{line} {i}", "x": x, "value": value, "diverged": False, "threshold": threshold}
            for line, threshold, ends in (("c = 0.1", 0.1, (0.1, 0.2)), ("c = 10", 10.0, (0.0, np.inf, np.inf)))
            for i, end in enumerate(ends)
            for x, value in ((0, end if end < np.inf else 0.01), (50, end))
        ]
    ).assign(quantity="input")  # fmt: skip
    ax = style.axes(None)
    story._through(ax, rows)
    marked = [(line.get_label(), list(line.get_xdata())) for line in ax.get_lines()]
    assert [x for label, x in marked if label == "_zero"] == [[0], [0, 50]]
    assert [x for label, x in marked if label == "_not finite"] == [[50]]
