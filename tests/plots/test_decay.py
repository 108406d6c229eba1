from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from gradscope.plots import decay, norms, style, training
from gradscope.schema import Record, RunMeta
from gradscope.store import Run, RunWriter, open_run
from tests.made_runs import decaying, make_run, site_info, site_record


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "lstm", (-0.2, -0.1), sites=("encoder.lstm/l0", "encoder.lstm/l1"))


def test_the_table_holds_the_geometric_mean_over_sequences(tmp_path):
    values = decaying(-0.15, 30, 5, seed=3)
    data = decay.table([make_run(tmp_path / "r", (0,), norms=lambda i: values)])
    expected = np.exp(np.log(values).mean(axis=0))
    np.testing.assert_allclose(data["norm"], expected, rtol=1e-12)
    np.testing.assert_allclose(data["relative"], expected / expected[0], rtol=1e-12)
    assert set(data["n_sequences"]) == {5}


def test_the_band_covers_the_asked_share_of_sequences(tmp_path):
    values = 10.0 ** np.linspace(-1, 1, 101)[:, None] * np.ones((1, 4))
    data = decay.table([make_run(tmp_path / "r", (0,), norms=lambda i: values)], coverage=0.5)
    inside = (values >= data["low"].to_numpy()) & (values <= data["high"].to_numpy())
    assert inside.mean(axis=0) == pytest.approx(0.5, abs=0.02)


def test_there_is_one_line_per_site_and_it_is_the_table(run):
    data = decay.table([run])
    with style.use("screen"):
        ax = decay.draw(data)
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["lstm/l0", "lstm/l1"]  # without what both begin with
    for line, (_, rows) in zip(lines, data.groupby("site"), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), rows["lag"])
        np.testing.assert_array_equal(line.get_ydata(), rows["relative"])


def test_absolute_norms_are_drawn_as_they_are(run):
    data = decay.table([run], site="encoder.lstm/l0")
    with style.use("screen"):
        ax = decay.draw(data, relative=False)
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), data["norm"])
    assert "relative" not in ax.get_ylabel()


def test_an_lstm_shows_its_cell_state_unless_asked_otherwise(run):
    assert set(decay.table([run])["quantity"]) == {"cell"}
    assert set(decay.table([run], quantity="hidden")["quantity"]) == {"hidden"}


def test_lags_that_read_zero_are_marked_not_drawn(tmp_path):
    def cliff(record):
        values = decaying(-0.2, 30, 4)
        values[:, 20:] = 0.0
        return values

    data = decay.table([make_run(tmp_path / "r", (0,), norms=cliff)])
    with style.use("screen"):
        ax = decay.draw(data)
    marked = [list(line.get_xdata()) for line in ax.get_lines() if line.get_label() == "_zero or below normal"]
    assert marked == [[20], [20, 29]]  # a triangle, and a line as far as it reads zero
    assert ax.get_lines()[0].get_xdata().max() == 19


def test_a_diverged_run_shows_its_last_usable_step(tmp_path):
    run = make_run(tmp_path / "r", (-0.2, -0.2, -0.2), diverges_at=15)
    assert set(decay.table([run])["step"]) == {10}
    assert set(decay.table([run], step=20)["n_nonfinite"]) == {6}


def test_the_horizon_is_marked_where_the_curve_falls_below_it(tmp_path):
    values = np.broadcast_to(10.0 ** (-0.25 * np.arange(40)), (3, 40)).copy()
    data = decay.table([make_run(tmp_path / "r", (0,), norms=lambda i: values)])
    with style.use("screen"):
        ax = decay.draw(data, horizon=0.01)
    vertical = [
        line.get_xdata()[0] for line in ax.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert vertical == [9.0]  # 10^(-0.25 * 9) is the first below 10^-2


def test_records_of_one_step_are_one_curve(tmp_path):
    """Micro-batches of a step belong together, as if they had been one batch."""
    parts = [decaying(-0.2, 30, 3, seed=1), 100 * decaying(-0.1, 30, 2, seed=2)]
    data = decay.table([_run_of(tmp_path / "r", parts)])
    expected = np.exp(np.log(np.concatenate(parts)).mean(axis=0))
    assert set(data["n_sequences"]) == {5}
    np.testing.assert_allclose(data["norm"], expected, rtol=1e-12)


def test_a_restart_replaces_the_step_of_the_attempt_before(tmp_path):
    before, after = decaying(-0.2, 30, 3, seed=1), decaying(-0.1, 30, 2, seed=2)
    _run_of(tmp_path / "r", [before]).close()
    data = decay.table([_run_of(tmp_path / "r", [after], restart=True)])
    assert set(data["n_sequences"]) == {2}
    np.testing.assert_allclose(data["norm"], np.exp(np.log(after).mean(axis=0)), rtol=1e-12)


def _run_of(path: Path, parts: list[np.ndarray], *, restart: bool = False) -> Run:
    """A run whose step 0 has one record per part."""
    writer = RunWriter(path, RunMeta("", "0", "0", {}, {}), restart=restart)
    writer.set_sites({"rnn/l0": site_info("rnn/l0", "rnn_tanh")})
    for micro, values in enumerate(parts):
        writer.add_record(Record(0, micro, 0.0, {"rnn/l0": site_record({"hidden": values}, *values.shape)}))
    writer.close()
    return open_run(path)


def test_the_axis_says_what_a_curve_is_relative_to(tmp_path):
    early = decaying(-0.1, 30, 3)
    middle = np.where(np.arange(30) < 10, 0.0, early)
    runs = [_run_of(tmp_path / "a", [early]), _run_of(tmp_path / "b", [middle])]
    with style.use("screen"):
        labels = [decay.draw(decay.table(some)).get_ylabel() for some in (runs[:1], runs[1:], runs)]
    assert [label.split("relative to ")[1] for label in labels] == ["lag 0", "lag 10", "where it enters"]


def test_training_shows_first_and_last_record_and_darkens(tmp_path):
    run = make_run(tmp_path / "r", np.linspace(-0.3, -0.05, 20))
    data = training.table([run], curves=5)
    steps = sorted(set(data["step"]))
    assert len(steps) == 5
    assert (steps[0], steps[-1]) == (0, 190)
    with style.use("screen"):
        ax = training.draw(data)
    lines = [line for line in ax.get_lines() if line.get_label().startswith("step ")]
    shades = [sum(to_rgb(line.get_color())) for line in lines]
    assert all(a > b for a, b in pairwise(shades))


def test_norms_are_those_of_the_clipping_calls_and_the_threshold_is_drawn(tmp_path):
    run = make_run(tmp_path / "r", threshold=0.75)
    data = norms.table([run])
    np.testing.assert_array_equal(data["norm"], run.clips()["norm_before"])
    with style.use("screen"):
        ax = norms.draw(data)
    assert [line.get_ydata()[0] for line in ax.get_lines() if "threshold" in line.get_label()] == [0.75]
    assert len(ax.figure.axes) == 2


def test_a_norm_that_is_not_finite_is_a_cross_on_the_edge(tmp_path):
    data = norms.table([make_run(tmp_path / "r", diverges_at=15)])
    with style.use("screen"):
        ax = norms.draw(data)
    crosses = next(line for line in ax.get_lines() if line.get_label() == "_not finite")
    assert crosses.get_xdata().min() == 15


def test_one_line_that_explodes_does_not_take_the_colours_of_the_others(tmp_path):
    runs = [make_run(tmp_path / str(i), (-0.02 * i,), lags=30, seed=i) for i in range(1, 14)]
    runs.append(make_run(tmp_path / "explodes", (0.6,), lags=30))
    with style.use("icml"):
        ax = decay.draw(decay.table(runs), style_name="icml")
    mesh = next(each for each in ax.collections if hasattr(each, "norm") and each.norm.vmax is not None)
    assert mesh.norm.vmax <= 10.0 < np.ma.compressed(mesh.get_array()).max()
    assert mesh.colorbar.extend in ("max", "both")  # an arrow says that something goes further
    assert "An arrow at the end of the scale" in decay.caption(decay.table(runs))
