import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradscope import open_run
from gradscope.errors import EmptyRunError, NotRecordedError, RunNotFoundError, UnknownNameError
from gradscope.schema import Record, RunMeta, SiteInfo, SiteRecord, StepRow
from gradscope.store import RunWriter, describe, sealing
from tests.store.conftest import META, SITES, record, site_record, write_run

LENGTHS = st.lists(st.integers(0, 6), min_size=0, max_size=4)
RUNS = st.lists(
    st.dictionaries(st.sampled_from(["lstm/l0", "a.b/l1_reverse", "rnn/l0#2", "cell"]), LENGTHS), max_size=5
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=RUNS, sealed=st.booleans())
def test_every_array_comes_back_at_its_place(tmp_path_factory, run, sealed):
    path = tmp_path_factory.mktemp("any") / "run"
    writer = RunWriter(path, META)
    wrote = [
        {site: site_record(lengths, seed=step, quantities=("hidden", "gates")) for site, lengths in sites.items()}
        for step, sites in enumerate(run)
    ]
    for step, sites in enumerate(wrote):
        writer.add_record(record(step, sites))
    writer.flush()
    if sealed:
        writer.close()
    read = open_run(path)
    assert read.n_records == len(wrote)
    assert set(read.sites) == {site for sites in wrote for site in sites}
    for site in read.sites:
        kept = [(step, sites[site]) for step, sites in enumerate(wrote) if site in sites]
        assert read.records(site)["step"].tolist() == [step for step, _ in kept]
        hidden, gates = read.array(site, "hidden"), read.array(site, "gates")
        for row, (_, data) in enumerate(kept):
            count, lags = data.arrays["hidden"].shape
            assert read.lengths(site)[row, :count].tolist() == data.lengths.tolist()
            assert (read.rows(site)[row, count:] == -1).all()
            np.testing.assert_array_equal(hidden[row, :count, :lags], data.arrays["hidden"])
            np.testing.assert_array_equal(gates[row, :count, :, :lags], data.arrays["gates"])
            assert np.isnan(hidden[row, count:]).all()
            assert np.isnan(hidden[row, :, lags:]).all()
    writer.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_what_is_logged_after_a_flush_in_the_middle_of_a_step_is_of_the_same_row(tmp_path, sealed):
    writer = RunWriter(tmp_path / "run", META)
    for row in (StepRow(0, 1.0, {"grad_norm": 3.0}), StepRow(0, 2.0, {"loss": 0.5}), StepRow(1, 3.0, {"loss": 0.25})):
        writer.add_step(row)
        writer.flush()
    if sealed:
        writer.close()
    run = open_run(tmp_path / "run")
    steps = run.steps()
    assert steps.columns.tolist() == ["step", "attempt", "rank", "time", "grad_norm", "loss"]
    assert steps[["step", "time", "loss"]].to_numpy().tolist() == [[0, 2.0, 0.5], [1, 3.0, 0.25]]
    assert steps["step"].dtype == np.int64
    assert steps["grad_norm"][0] == 3.0
    assert np.isnan(steps["grad_norm"][1])
    assert describe(run)["steps"] == 2
    writer.close()


def test_a_growing_and_a_sealed_run_read_the_same(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    growing = open_run(tmp_path / "run")
    writer.close()
    sealed = open_run(tmp_path / "run")
    assert (growing.sealed, sealed.sealed) == (False, True)
    assert growing.meta == sealed.meta
    assert growing.coverage == sealed.coverage
    for table in ("steps", "clips", "parameters"):
        assert getattr(growing, table)().equals(getattr(sealed, table)())
    assert growing.norms("lstm/l0", "cell").equals(sealed.norms("lstm/l0", "cell"))
    assert growing.records("lstm/l0").equals(sealed.records("lstm/l0"))


def test_description_and_tables(sealed):
    with open_run(sealed) as run:
        assert run.name == "run"
        assert run.meta == RunMeta(**{**vars(META), "attempt": 1, "rank": 0, "world_size": 1})
        assert run.settings == META.settings
        assert run.model["parameters"] == 1234
        assert run.site("head/l0") == SITES["head/l0"]
        assert run.sites == ("lstm/l0",)
        assert run.quantities("lstm/l0") == ("hidden", "cell")
        assert run.steps().columns.tolist() == ["step", "attempt", "rank", "time", "loss"]
        assert run.steps()["loss"].tolist() == [1.0, 0.5, 1.0 / 3]
        clips = run.clips()
        assert clips["kind"].tolist() == ["norm"] * 3
        assert clips.columns.tolist()[:3] == ["attempt", "rank", "step"]
        assert run.parameters()["lstm.weight"].tolist() == [0.5, 1.5, 2.5]
        assert run.parameters().columns.tolist() == ["step", "micro", "attempt", "rank", "lstm.weight"]


def test_a_name_with_any_character_is_kept(tmp_path):
    odd = ["a/b/l0", "/l0", "x.", "..", "%2F/l0", "cell", "cell/step", "ünï ~$_\\x/l0", "a\n\t/l0"]
    writer = RunWriter(tmp_path / "run", META)
    writer.add_record(Record(0, 0, 0.0, {site: site_record((2,), seed=k) for k, site in enumerate(odd)}, {"p/ü": 1.0}))
    writer.add_step(StepRow(0, 0.0, {"step": 7.0, "loss/ü": 1.0}))
    writer.close()
    run = open_run(tmp_path / "run")
    assert sorted(run.sites) == sorted(odd)
    for k, site in enumerate(odd):
        np.testing.assert_array_equal(run.array(site, "cell")[0], site_record((2,), seed=k).arrays["cell"])
    assert run.steps().columns.tolist() == ["step", "attempt", "rank", "time", "logged step", "loss/ü"]
    assert "p/ü" in run.parameters()


def test_norms_have_one_row_per_timestep_and_flag_what_is_no_plain_number(tmp_path):
    values = np.array([[1.0, 0.0, 1e-40, np.inf], [np.nan, 2.0, np.nan, np.nan]])
    data = SiteRecord(np.array([4, 2], np.int32), np.array([5, 9], np.int32), 1.2e-38, {"hidden": values}, nonfinite=2)
    writer = RunWriter(tmp_path / "run", META)
    writer.add_record(record(7, {"rnn/l0": data}, micro=1, skipped=True, loss_scale=8.0))
    writer.close()
    run = open_run(tmp_path / "run")
    frame = run.norms("rnn/l0", "hidden")
    assert frame.columns.tolist() == ["step", "sequence", "lag", "norm", "micro", "attempt", "rank", "flag"]
    assert frame["flag"].tolist() == ["", "zero", "below-normal", "non-finite", "non-finite", ""]
    assert frame["lag"].tolist() == [0, 1, 2, 3, 0, 1]
    assert set(frame["step"]) == {7}
    about = run.records("rnn/l0").iloc[0]
    assert (about["skipped"], about["loss_scale"], about["nonfinite"], about["micro"]) == (True, 8.0, 2, 1)


def test_norms_of_gates_and_weight_have_their_own_axes(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.set_sites(SITES)
    both = site_record((4, 2), quantities=("gates", "weight"))
    writer.add_record(record(0, {"lstm/l0": both}))
    writer.close()
    run = open_run(tmp_path / "run")
    gates = run.norms("lstm/l0", "gates")
    assert gates.groupby("gate", observed=True).size().to_dict() == {"i": 6, "f": 6, "g": 6, "o": 6}
    weight = run.norms("lstm/l0", "weight")
    assert weight.columns.tolist()[:3] == ["step", "time", "norm"]
    np.testing.assert_array_equal(weight["norm"], both.arrays["weight"])


def test_a_dataset_absent_from_a_record_is_no_row_and_not_nonfinite(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.add_record(record(0, {"lstm/l0": site_record(quantities=("hidden",))}))
    writer.add_record(record(1, {"lstm/l0": site_record(quantities=("cell",))}))
    for close in (False, True):
        writer.close() if close else writer.flush()
        frame = open_run(tmp_path / "run").norms("lstm/l0", "cell")
        assert set(frame["step"]) == {1}
        assert set(frame["flag"]) == {""}


def test_names_that_do_not_exist_are_explained(sealed):
    run = open_run(sealed)
    with pytest.raises(UnknownNameError, match="Did you mean 'lstm/l0'"):
        run.array("lstm/l9", "hidden")
    with pytest.raises(UnknownNameError, match="Did you mean 'hidden'"):
        run.norms("lstm/l0", "hiden")
    with pytest.raises(UnknownNameError, match="dataset"):
        run.array("lstm/l0", "hiden")
    with pytest.raises(UnknownNameError, match="gate_mean"):
        run.norms("lstm/l0", "activations")
    with pytest.raises(NotRecordedError, match=r"quantities=\['gates'"):
        run.norms("lstm/l0", "gates")
    with pytest.raises(NotRecordedError, match="coverage says why"):
        run.array("head/l0", "hidden")


def test_a_missing_run_and_a_directory_without_one_are_not_found(tmp_path):
    with pytest.raises(RunNotFoundError, match="nowhere"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunNotFoundError, match="neither a sealed segment nor a journal"):
        open_run(tmp_path)


def test_an_empty_run_opens_and_says_so_when_records_are_needed(tmp_path):
    writer = RunWriter(tmp_path / "run", META)
    writer.add_lost("disk full", 3)
    writer.close()
    run = open_run(tmp_path / "run")
    assert run.sites == ()
    assert len(run.steps()) == len(run.clips()) == len(run.parameters()) == 0
    assert run.steps().columns.tolist() == ["step", "attempt", "rank", "time"]
    with pytest.raises(EmptyRunError, match="3 lost: disk full"):
        run.require_records()


def test_records_of_different_segments_are_stacked_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sealing, "STRETCH_BYTES", 1)
    writer = RunWriter(tmp_path / "run", META)
    wrote = []
    for step in range(4):
        wrote.append(site_record(lengths=(step + 1, 1), seed=step))
        writer.add_record(record(step, {"lstm/l0": wrote[-1]}))
    writer.close()
    assert len(list((tmp_path / "run/attempt-1/rank-0").glob("segment-*.h5"))) == 4
    run = open_run(tmp_path / "run")
    stacked = run.array("lstm/l0", "hidden")
    assert stacked.shape == (4, 2, 4)
    for step, data in enumerate(wrote):
        np.testing.assert_array_equal(stacked[step, :, : step + 1], data.arrays["hidden"])


def test_ranks_and_attempts_are_merged_and_named(tmp_path):
    for attempt in (1, 2):
        for rank in (1, 0):
            writer = RunWriter(tmp_path / "run", META, rank=rank, world_size=2, restart=attempt > 1)
            writer.set_sites({**SITES, "lstm/l0": SiteInfo("lstm/l0", "lstm", "LSTM", "lstm")})
            writer.add_record(record(10 * attempt + rank))
            writer.add_lost("a bug", 1)
            writer.close()
    run = open_run(tmp_path / "run")
    about = run.records("lstm/l0")
    assert about[["attempt", "rank", "step"]].values.tolist() == [[1, 0, 10], [1, 1, 11], [2, 0, 20], [2, 1, 21]]
    assert [(meta.attempt, meta.rank, meta.world_size) for meta in run.metas] == [
        (1, 0, 2),
        (1, 1, 2),
        (2, 0, 2),
        (2, 1, 2),
    ]
    assert run.lost == {"a bug": 4}
    assert open_run(tmp_path / "run" / "attempt-2").n_records == 2
    assert open_run(tmp_path / "run" / "attempt-2" / "rank-1").n_records == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_directory_that_cannot_be_written_is_read(tmp_path):
    """Another user's run whose process died: the journal lies there, nothing beside it may be written."""
    write_run(tmp_path / "run", close=False)
    source = tmp_path / "run" / "attempt-1" / "rank-0"
    for keep_rollback in (True, False):
        target = tmp_path / f"copy-{keep_rollback}"
        target.mkdir()
        for suffix in ("", *(["-journal"] if keep_rollback else [])):
            (target / f"journal.sqlite{suffix}").write_bytes((source / f"journal.sqlite{suffix}").read_bytes())
        for path in (*target.iterdir(), target):
            path.chmod(0o555 if path.is_dir() else 0o444)
        for path in (tmp_path, *(p for p in tmp_path.parents if Path(tempfile.gettempdir()) in p.parents)):
            path.chmod(0o755)
        child = os.fork()
        if child == 0:  # root may write anywhere: drop that first
            code = 9
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                code = 0 if open_run(target).n_records == 3 and len(list(target.iterdir())) == 1 + keep_rollback else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_reading_loads_neither_torch_nor_matplotlib_nor_pandas(sealed):
    code = (
        f"import sys, gradscope; run = gradscope.open_run({str(sealed)!r}); run.sites, run.n_records;"
        "sys.exit(', '.join({'torch', 'matplotlib', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
