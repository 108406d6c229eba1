import re

import numpy as np
import pytest

import gradscope
from gradscope import schema, store
from gradscope.diagnostics import fit_decay
from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError
from gradscope.reading import answers as of_run
from gradscope.words import number

LAGS = np.arange(40)
LSTM = schema.SiteInfo("lstm/l0", "lstm", "LSTM", "lstm", curve="cell")
META = schema.RunMeta("2026-01-01T00:00:00+00:00", "0", "2.13", {}, {})


def site_record(rate, *, direct_everywhere=False, lengths=(40, 40, 40, 25), names=("hidden", "cell", "direct")):
    rng = np.random.default_rng(round(-1000 * rate))
    arrays = {}
    for offset, name in enumerate(names):
        norms = 10 ** (rate * (1 + 0.02 * rng.normal(size=(len(lengths), 1))) * LAGS + offset)
        if name == "direct" and not direct_everywhere:
            norms[:, 1:] = 0.0
        norms[np.array(lengths)[:, None] <= LAGS] = np.nan
        arrays[name] = norms
    return schema.SiteRecord(np.array(lengths, np.int32), np.arange(len(lengths), dtype=np.int32), 1e-38, arrays)


def write(path, rates=(-0.2,), *, steps=(), clips=(), skipped=(), parameters=None, **options):
    writer = store.RunWriter(path, META)
    writer.set_sites({"lstm/l0": LSTM})
    for index, rate in enumerate(rates):
        sites = {"lstm/l0": site_record(rate, **options)}
        kept = {} if parameters is None else parameters
        writer.add_record(schema.Record(10 * index, 0, 0.0, sites, kept, skipped=index in skipped))
    for step, scalars in enumerate(steps):
        writer.add_step(schema.StepRow(step, 0.0, scalars))
    for clip in clips:
        writer.add_clip(clip)
    writer.close()
    return gradscope.open_run(path)


def norm_clip(step, norm, threshold=1.0):
    scale = min(1.0, threshold / (norm + 1e-6))
    return schema.ClipEvent(step, "norm", threshold, norm, norm * scale, scale, float("nan"), float(scale < 1))


def test_each_record_is_fitted_as_its_arrays_are(tmp_path):
    run = write(tmp_path / "run", [-0.2, -0.1, -0.05])
    frame = of_run.decay_fits(run)
    assert frame["step"].tolist() == [0, 10, 20]
    assert set(frame["quantity"]) == {"cell"}  # what describes an LSTM
    for row, rate in zip(frame.itertuples(), [-0.2, -0.1, -0.05], strict=True):
        record = site_record(rate)
        expected = fit_decay(LAGS, record.arrays["cell"], lengths=record.lengths)
        assert row.rate == pytest.approx(expected.rate)
        assert (row.lo, row.hi) == pytest.approx(expected.interval)
        assert row.half_life == pytest.approx(expected.half_life)
        assert row.verdict == expected.verdict


def test_a_skipped_step_is_not_fitted(tmp_path):
    run = write(tmp_path / "run", [-0.2, -0.1, -0.05], skipped=[1])
    assert of_run.decay_fits(run)["step"].tolist() == [0, 20]


def test_a_pooled_fit_sees_the_sequences_of_all_its_records(tmp_path):
    run = write(tmp_path / "run", np.linspace(-0.2, -0.1, 20))
    fit = of_run.pooled_fit(run, "lstm/l0", part="late")
    tables = [site_record(rate) for rate in np.linspace(-0.2, -0.1, 20)[-2:]]
    expected = fit_decay(LAGS, np.vstack([t.arrays["cell"] for t in tables]), steps=np.repeat([18, 19], 4))
    assert (fit.n_sequences, fit.n_steps, fit.unit) == (8, 2, "step")
    assert fit.rate == pytest.approx(expected.rate)
    assert fit.interval == pytest.approx(expected.interval)


def test_the_answer_compares_the_end_of_a_run_with_its_beginning(tmp_path):
    (answer,) = of_run.answers(write(tmp_path / "run", [-0.2, -0.15, -0.1]))
    assert (answer.early_steps, answer.late_steps) == ((0, 0), (20, 20))
    assert answer.early.rate < answer.late.rate
    assert answer.sentence.startswith("lstm/l0 (cell), step 20: the gradient reaching 39 steps back is ")
    assert "[at step 0: the gradient reaching" in answer.sentence
    assert answer.caveat == ""


@pytest.mark.parametrize("seed", range(20))
def test_the_sentence_of_a_recording_is_that_of_its_raw_rows(tmp_path, seed):
    rates = np.random.default_rng(seed).uniform(-0.25, -0.05, 3)
    run = write(tmp_path / "run", rates, lengths=(40, 40, 40))
    (found,) = of_run.answers(run)
    rows = run.norms("lstm/l0", "cell")
    for when, fit in ((0, found.early), (20, found.late)):
        mean = np.log10(rows[rows["step"] == when].pivot(index="sequence", columns="lag", values="norm")).mean()
        slope = np.polyfit(np.arange(5, 40), mean[5:], 1)[0]
        assert fit.rate == pytest.approx(slope)
        head = f"the gradient reaching 39 steps back is {number(10 ** (mean[39] - mean[0]))} of that at the last step"
        (half,) = re.search(re.escape(head) + r"; half-life ([\d.]+) steps", found.sentence).groups()
        assert float(half) == pytest.approx(-np.log10(2) / slope, rel=0.05)


def test_a_single_record_is_answered_once(tmp_path):
    (answer,) = of_run.answers(write(tmp_path / "run"))
    assert "[" not in answer.sentence


def test_a_loss_at_every_timestep_is_named_as_a_caveat(tmp_path):
    (answer,) = of_run.answers(write(tmp_path / "run", direct_everywhere=True))
    assert "a gradient enters from above at most timesteps" in answer.caveat


def test_the_direct_gradient_is_never_fitted(tmp_path):
    run = write(tmp_path / "run", names=("direct",))
    with pytest.raises(NotRecordedError, match=r"record quantities=\['cell'\]"):
        of_run.curve_quantity(run, "lstm/l0")
    with pytest.raises(SettingError, match="no decay"):
        of_run.decay_fits(run, "lstm/l0", "direct")
    assert of_run.answers(run) == []
    assert of_run.decay_fits(run).empty


def test_the_hidden_adjoint_stands_in_where_the_cell_was_not_recorded(tmp_path):
    assert of_run.curve_quantity(write(tmp_path / "run", names=("hidden",)), "lstm/l0") == "hidden"


def test_names_that_do_not_exist_are_refused(tmp_path):
    run = write(tmp_path / "run", names=("cell",))
    with pytest.raises(UnknownNameError, match="lstm/l0"):
        of_run.decay_fits(run, "lstm/l1")
    with pytest.raises(UnknownNameError, match="hidden"):
        of_run.decay_fits(run, "lstm/l0", "hiden")
    with pytest.raises(NotRecordedError, match="was not recorded"):
        of_run.decay_fits(run, "lstm/l0", "hidden")


def test_a_site_whose_records_were_all_skipped_is_empty(tmp_path):
    run = write(tmp_path / "run", [-0.2], skipped=[0])
    with pytest.raises(EmptyRunError, match="no record"):
        of_run.pooled_fit(run, "lstm/l0")


def test_clipping_is_summed_up_by_kind_with_the_logged_learning_rate(tmp_path):
    value = schema.ClipEvent(2, "value", 0.1, 2.0, 1.0, 0.5, 0.8, 0.25)
    clips = [norm_clip(0, 0.5), norm_clip(1, 4.0), value]
    run = write(tmp_path / "run", steps=[{"lr": 0.1}, {"lr": 0.01}, {"lr": 0.01}], clips=clips)
    norm, by_value = of_run.clip_statistics_of_run(run)
    assert (norm.kind, norm.calls, norm.fraction_clipped) == ("norm", 2, 0.5)
    assert norm.effective_lr[2] == pytest.approx((0.1 + 0.01 * 0.25) / 2, rel=1e-5)
    assert (by_value.kind, by_value.cosine_min, by_value.mean_share) == ("value", 0.8, 0.25)


def test_a_run_that_never_clipped_has_no_statistics(tmp_path):
    assert of_run.clip_statistics_of_run(write(tmp_path / "run")) == []


def test_raw_norms_come_from_the_best_source_there_is(tmp_path):
    clipped = write(tmp_path / "a", steps=[{"grad_norm": 9.0}], clips=[norm_clip(0, 3.0)])
    logged = write(tmp_path / "b", steps=[{"grad_norm": 9.0}, {"loss": 1.0}])
    recorded = write(tmp_path / "c", parameters={"w": 3.0, "b": 4.0})
    nothing = write(tmp_path / "d")
    assert of_run.raw_norms(clipped).to_dict("list") == {"step": [0], "norm": [3.0], "source": ["clips"]}
    assert of_run.raw_norms(logged).to_dict("list") == {"step": [0], "norm": [9.0], "source": ["steps"]}
    assert of_run.raw_norms(recorded).to_dict("list") == {"step": [0], "norm": [5.0], "source": ["parameters"]}
    assert of_run.raw_norms(nothing).empty


def test_thresholds_are_judged_by_the_runs_own_norms(tmp_path):
    norms = np.geomspace(0.1, 10, 41)
    run = write(tmp_path / "run", steps=[{"lr": 0.5}] * 41, clips=[norm_clip(i, n) for i, n in enumerate(norms)])
    table = of_run.threshold_table_of_run(run, [1.0])
    assert table["clipped"][0] == pytest.approx(np.mean(norms + 1e-6 > 1.0))
    assert table["norm_max"][0] == pytest.approx(1.0, rel=1e-5)
    assert of_run.suggestion_of_run(run).median == pytest.approx(1.0)
