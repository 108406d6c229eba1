from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import clipping, comparison, norm_distribution, style, sweep_loss, sweep_metric, timescales, weight
from tests.made_runs import entering_last, make_run


def test_the_share_clipped_is_the_share_of_norms_above_the_threshold(tmp_path):
    run = make_run(tmp_path / "r", (-0.1,) * 10)
    raw = run.clips()["norm_before"].to_numpy()
    data = clipping.table([run], thresholds=[0.5, 2.0])
    for row in data.itertuples():
        scale = np.minimum(1, row.threshold / (raw + 1e-6))
        assert row.clipped == pytest.approx(np.mean(scale < 1))
        assert row.scale_p50 == pytest.approx(np.median(scale))
    assert list(data["threshold"][data["used"]]) == [1.0]


def test_more_runs_than_a_legend_holds_are_their_median_and_range(tmp_path):
    one = clipping.table([make_run(tmp_path / "r", (-0.1,) * 10)])
    runs = style.MAX_LEGEND + 1
    shifts = np.arange(runs) / 100
    data = pd.concat([one.assign(run=f"run-{i}", clipped=one["clipped"] * (1 - by)) for i, by in enumerate(shifts)])
    with style.use("screen"):
        ax = clipping.draw(data)
    (curve,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("median")]
    np.testing.assert_allclose(curve.get_ydata(), one["clipped"] * (1 - np.median(shifts)))
    assert f"median and range of {runs} runs" in clipping.caption(data)


@pytest.mark.parametrize("runs", [2, 8])
def test_runs_are_told_apart_without_colour(tmp_path, runs):
    made = [make_run(tmp_path / f"run{i}", threshold=1.0, seed=i) for i in range(runs)]
    with style.use("icml"):
        ax = clipping.draw(clipping.table(made), style_name="icml")
        shown = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
        looks = {(line.get_marker(), line.is_dashed()) for line in shown}
        named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(looks) == len(shown)
    assert not any("more" in name for name in named)


def test_thresholds_must_be_positive(tmp_path):
    with pytest.raises(SettingError, match="positive"):
        clipping.table([make_run(tmp_path / "r")], thresholds=[-1.0])


def test_without_a_finite_norm_it_says_what_to_record(tmp_path):
    with pytest.raises(NotRecordedError, match="clip_grad_norm_"):
        clipping.table([make_run(tmp_path / "r", diverges_at=0)])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    runs = []
    for threshold in (None, 0.1, 5.0):
        for seed in range(3):
            gone = 20 if threshold is None and seed < 2 else None
            path = root / f"clip-{threshold}-{seed}"
            runs.append(make_run(path, (-0.1,) * 6, threshold=threshold, seed=seed, diverges_at=gone))
    return runs


def test_a_sweep_groups_runs_by_their_threshold_and_names_the_diverged(sweep):
    data = sweep_loss.table(sweep)
    assert sorted(set(data["threshold"])) == [0.1, 5.0, np.inf]
    assert data.groupby("run")["diverged"].any().sum() == 2
    with style.use("screen"):
        ax = sweep_loss.draw(data)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["c = 0.1", "c = 5", "no clip (2 of 3 diverged)"]


def test_a_diverged_run_has_no_final_metric(sweep):
    data = sweep_metric.table(sweep).set_index("run")
    assert data["value"].isna().equals(data["diverged"])
    assert data["diverged"].sum() == 2
    kept = data["value"][~data["diverged"]]
    np.testing.assert_allclose(kept, 2.3 * np.mean(np.exp(-np.arange(49, 51) / 30)), rtol=1e-12)


def test_a_metric_nobody_logged_lists_those_that_were(sweep):
    with pytest.raises(NotRecordedError, match=r"logged: grad_norm, loss"):
        sweep_metric.table(sweep, metric="accuracy")


def test_a_loss_logged_now_and_then_is_no_divergence(tmp_path):
    from gradscope.schema import RunMeta, StepRow
    from gradscope.store import RunWriter, open_run

    writer = RunWriter(tmp_path / "r", RunMeta("", "0", "0", {}, {}))
    for step in range(21):
        writer.add_step(StepRow(step, 0.0, {"loss": 1.0} if step % 10 == 0 else {"other": 1.0}))
    for step in range(21, 25):
        writer.add_step(StepRow(step, 0.0, {"other": 1.0}))
    writer.close()
    assert not sweep_loss.table([open_run(tmp_path / "r")])["diverged"].any()


def test_histograms_hold_every_finite_norm(sweep):
    data = norm_distribution.table(sweep)
    with style.use("screen"):
        ax = norm_distribution.draw(data)
    shares = [line.get_ydata()[:-1].sum() for line in ax.get_lines() if line.get_drawstyle() == "steps-post"]
    kept = [np.isfinite(rows["norm"]).mean() for _, rows in data.groupby("threshold")]
    np.testing.assert_allclose(shares, kept)


def test_a_model_without_a_half_life_says_its_verdict(tmp_path):
    stays = make_run(tmp_path / "stays", (-0.0001,) * 3, extra={"direct": entering_last()})
    data = comparison.table([make_run(tmp_path / "falls"), stays])
    assert data["half_life"].notna().tolist() == [True, False]
    with style.use("screen"):
        ax = comparison.draw(data)
    assert [text.get_text() for text in ax.texts] == ["none: preserved"]
    assert data["half_life"][0] == pytest.approx(np.log10(2) / 0.1, rel=0.05)


def test_timescales_come_from_the_forget_gate(tmp_path):
    log = np.zeros((4, 8)) - 1.0
    log[1] = -np.geomspace(0.01, 1, 8)
    extra = {"gate_mean": np.exp(log), "gate_log_mean": log, "gate_low": np.zeros(4), "gate_high": np.zeros(4)}
    data = timescales.table([make_run(tmp_path / "r", extra=extra)])
    np.testing.assert_allclose(data["timescale"], 1 / np.geomspace(0.01, 1, 8))
    with style.use("screen"):
        ax = timescales.draw(data)
    x, y = ax.collections[0].get_paths()[0].vertices.T
    area = abs(((y[1:] + y[:-1]) / 2 * np.diff(np.log10(x))).sum())  # of bars as wide as a bin, in the logarithm
    assert area / (np.log10(x).max() - np.log10(x).min()) * 24 == pytest.approx(8)


def test_an_rnn_has_no_timescales_and_says_so(tmp_path):
    extra = {
        "gate_mean": np.ones((1, 8)),
        "gate_log_mean": np.zeros((1, 8)),
        "gate_low": np.zeros(1),
        "gate_high": np.zeros(1),
    }
    run = make_run(tmp_path / "r", cell="rnn_tanh", sites=("rnn/l0",), extra=extra)
    with pytest.raises(NotRecordedError, match="retains"):
        timescales.table([run])


def test_bars_are_the_weight_contributions(tmp_path):
    values = 10.0 ** -np.linspace(3, 0, 40)
    data = weight.table([make_run(tmp_path / "r", extra={"weight": values})])
    np.testing.assert_allclose(data["norm"], values)
    with style.use("screen"):
        ax = weight.draw(data)
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(tops, values)


@pytest.mark.parametrize("lags", [3, 5000])
def test_the_sequence_length_is_in_view_beside_the_timescales(tmp_path, lags):
    gates = {"gate_mean": np.ones((4, 8)), "gate_low": np.zeros(4), "gate_high": np.zeros(4)}
    extra = {**gates, "gate_log_mean": np.full((4, 8), -0.05)}
    data = timescales.table([make_run(tmp_path / "r", (-0.1,), lags=lags, extra=extra)])
    with style.use("icml"):
        ax = timescales.draw(data, style_name="icml")
        ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    assert low < lags < high
    box, inside = ax.texts[0].get_window_extent(), ax.get_window_extent()
    assert inside.x0 <= box.x0 < box.x1 <= inside.x1
