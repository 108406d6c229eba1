"""One run, read once, says the same thing everywhere."""

import gc
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gradscope
from gradscope import plots
from gradscope.errors import EmptyRunError
from gradscope.reading import Choice, counted, read
from gradscope.reading.answers import answer, answers, pooled_fit
from gradscope.reading.norms import raw_norms
from gradscope.report import build_report
from gradscope.schema import ClipEvent, Record, RunMeta, StepRow
from gradscope.store import RunWriter, guard, pack
from gradscope.words import number
from tests.made_runs import decaying, make_run, site_info, site_record

META = RunMeta("2026-01-01T00:00:00+00:00", "0", "2.13", {}, {})


def add_attempt(path, steps, rate, *, restart=False, skipped=(), rank=0, world=1):
    writer = RunWriter(path, META, restart=restart, rank=rank, world_size=world)
    writer.set_sites({"rnn/l0": site_info("rnn/l0", "rnn_tanh")})
    for step in steps:
        values = decaying(rate, 40, 4, seed=step + 100 * rank)
        writer.add_record(
            Record(step, 0, 0.0, {"rnn/l0": site_record({"hidden": values}, 4, 40)}, skipped=step in skipped)
        )
        writer.add_step(StepRow(step, 0.0, {"loss": -rate}))
        writer.add_clip(ClipEvent(step, "norm", 1.0, -10 * rate, 1.0, 0.5, 1.0, 1.0))
    writer.close()


@pytest.fixture
def restarted(tmp_path):
    """An attempt with a steep decay, replaced from step 20 on by one with a shallow decay."""
    add_attempt(tmp_path / "run", range(0, 50, 10), -0.3)
    add_attempt(tmp_path / "run", range(20, 60, 10), -0.16, restart=True)
    return gradscope.open_run(tmp_path / "run")


def test_a_restarted_run_is_the_training_as_it_went_on(restarted):
    reading = read(restarted)
    assert reading.records("rnn/l0")[["step", "attempt"]].to_numpy().tolist() == [
        [0, 1], [10, 1], [20, 2], [30, 2], [40, 2], [50, 2],
    ]  # fmt: skip
    assert reading.array("rnn/l0", "hidden").shape == (6, 4, 40)
    assert reading.lengths("rnn/l0").shape == (6, 4)
    assert reading.steps()["loss"].tolist() == [0.3, 0.3, 0.16, 0.16, 0.16, 0.16]
    assert reading.clips()["norm_before"].tolist() == pytest.approx([3, 3, 1.6, 1.6, 1.6, 1.6])


def test_sentence_figure_table_and_csv_of_a_restarted_run_agree(restarted, tmp_path):
    found = answer(restarted, "rnn/l0")
    assert (found.early.rate, found.late.rate) == pytest.approx((-0.3, -0.16), abs=0.01)
    shown = plots.load("decay").table([restarted])
    reach = float(shown["relative"].iloc[-1])
    assert reach == pytest.approx(found.late.reach)
    comparison = plots.load("comparison").table([restarted])
    assert comparison["rate"][0] == pytest.approx(found.late.rate)
    assert raw_norms(restarted)["norm"].tolist() == plots.load("norms").table([restarted])["norm"].tolist()

    report = build_report([restarted], tmp_path / "report")
    csv = pd.read_csv(tmp_path / "report" / "data" / "decay.csv", comment="#")
    assert float(csv["relative"].iloc[-1]) == pytest.approx(reach)
    (site,) = json.loads(report.summary.read_text())["runs"][0]["sites"]
    assert site["late"]["rate"] == pytest.approx(found.late.rate)
    assert f"is {number(reach)} of that at the last step" in re.sub("<[^>]+>", "", report.index.read_text())


def test_the_curve_and_the_sentence_speak_of_the_same_records(tmp_path):
    run = make_run(tmp_path / "run", np.linspace(-0.2, -0.1, 30), cell="rnn_tanh", sites=("rnn/l0",))
    for part in ("first", "early", "late", "last", "all"):
        fit = pooled_fit(run, "rnn/l0", part=part)
        shown = plots.load("decay").table([run], step=part)
        np.testing.assert_allclose(shown["norm"], 10**fit.curve.log10)
        assert fit.n_sequences == shown["n_sequences"].max()
    shown = plots.load("decay").table([run])
    assert (shown["first_step"].unique().tolist(), shown["step"].unique().tolist()) == ([270], [290])


def test_a_run_that_diverged_is_answered_by_what_it_had_before(tmp_path):
    run = make_run(tmp_path / "run", [-0.2] * 30, diverges_at=200, cell="rnn_tanh", sites=("rnn/l0",))
    found = answer(run, "rnn/l0")
    assert found.late_steps == (180, 190)
    assert plots.load("decay").table([run])["step"].unique().tolist() == [190]
    assert found.late.rate == pytest.approx(-0.2, abs=0.01)


def test_skipped_steps_count_nowhere(tmp_path):
    add_attempt(tmp_path / "run", range(0, 30, 10), -0.2, skipped=[10])
    run = gradscope.open_run(tmp_path / "run")
    assert read(run).records("rnn/l0")["step"].tolist() == [0, 20]
    assert sorted(plots.load("training").table([run])["step"].unique()) == [0, 20]
    assert answers(run)[0].early_steps == (0, 0)


def test_a_run_of_which_nothing_counts_says_so_in_figure_and_sentence(tmp_path):
    add_attempt(tmp_path / "run", [0], -0.2, skipped=[0])
    run = gradscope.open_run(tmp_path / "run")
    for ask in (lambda: answer(run, "rnn/l0"), lambda: plots.load("decay").table([run])):
        with pytest.raises(EmptyRunError, match="no record in the run run counts"):
            ask()


def test_ranks_give_their_sequences_and_one_of_them_the_scalars(tmp_path):
    for rank in (0, 1):
        add_attempt(tmp_path / "run", [0, 10], -0.2, rank=rank, world=2)
    run = gradscope.open_run(tmp_path / "run")
    assert pooled_fit(run, "rnn/l0").n_sequences == 16
    assert pooled_fit(run, "rnn/l0").n_steps == 2
    assert len(read(run).clips()) == 2
    assert pooled_fit(read(run, Choice(rank=1)), "rnn/l0").n_sequences == 8


def test_a_choice_reaches_sentence_and_figure(restarted):
    first = read(restarted, Choice(attempt=1))
    assert answer(first, "rnn/l0").late.rate == pytest.approx(-0.3, abs=0.01)
    assert plots.load("decay").table([first])["step"].unique().tolist() == [40]
    until = read(restarted, Choice(last_step=10))
    assert answer(until, "rnn/l0").late_steps == (10, 10)
    assert plots.load("training").table([until])["step"].max() == 10


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Names of the HDF5 files that were opened; two runs of one file each, ``a`` and ``b``."""
    opened = []
    whole = guard._raw_hdf5

    def counting(path):
        opened.append(Path(path).parents[2].name)
        return whole(path)

    monkeypatch.setattr(guard, "_raw_hdf5", counting)
    for name in ("a", "b"):
        make_run(tmp_path / name, [-0.2, -0.1, -0.05], sites=("lstm/l0", "lstm/l1", "lstm/l2"))
    opened.clear()
    return opened


def test_a_report_of_paths_opens_every_file_once(opened, tmp_path):
    build_report([tmp_path / "a", str(tmp_path / "b")], tmp_path / "report")
    assert sorted(opened) == ["a", "b"]


def test_a_comparison_of_paths_opens_every_file_once(opened, tmp_path):
    assert gradscope.compare([tmp_path / "a", str(tmp_path / "b")])["run"].unique().tolist() == ["a", "b"]
    assert sorted(opened) == ["a", "b"]


def test_open_runs_are_read_once_for_all_that_is_asked_of_them(opened, tmp_path):
    # Once to see what there is, once to read it: nothing stays open in between.
    runs = [gradscope.open_run(tmp_path / name) for name in ("a", "b")]
    assert [str(run) for run in runs]
    gradscope.compare(runs)
    build_report(runs, tmp_path / "report")
    assert sorted(opened) == ["a", "a", "b", "b"]


def test_after_a_report_which_lets_go_of_arrays_they_are_read_once_more(opened, tmp_path):
    run = gradscope.open_run(tmp_path / "a")
    build_report([run], tmp_path / "report")
    said = str(run)
    gradscope.compare(run)
    assert opened == ["a", "a", "a"]
    assert said == str(gradscope.open_run(tmp_path / "a"))


def test_a_large_run_is_read_array_by_array(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    whole = read(run)
    monkeypatch.setattr("gradscope.reading.counted.HELD_BYTES", 0)
    bare = read(gradscope.open_run(tmp_path / "run"))
    np.testing.assert_array_equal(bare.array("lstm/l0", "cell"), whole.array("lstm/l0", "cell"))
    assert not [key for key in bare._held if key[-1] == "cell"]


def test_many_runs_share_what_may_be_kept(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / name) for name in "abc"]
    gc.collect()
    others = sum(other._bytes for other in counted._ALIVE)
    size = sum(runs[0].nbytes("lstm/l0", name) for name in runs[0].datasets("lstm/l0"))
    monkeypatch.setattr(counted, "HELD_BYTES", others + 2 * size)
    assert [read(run)._bytes for run in runs] == [size, size, 0]
    for run in runs:
        np.testing.assert_array_equal(read(run).array("lstm/l0", "cell"), run.array("lstm/l0", "cell"))


def test_the_same_run_is_read_once_and_forgotten_when_closed(tmp_path):
    run = make_run(tmp_path / "run")
    assert read(run) is read(run) is read(read(run))
    assert read(run) is not read(run, Choice(first_step=10))
    run.close()
    assert not run.held


def test_a_packed_run_reads_as_its_directory(restarted, tmp_path):
    pack(tmp_path / "run", tmp_path / "run.h5")
    assert answer(gradscope.open_run(tmp_path / "run.h5"), "rnn/l0").sentence == answer(restarted, "rnn/l0").sentence
