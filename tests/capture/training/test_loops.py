"""Every loop of :mod:`tests.capture.training.loops`: what was recorded of it is what the loop computed by hand."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import gradscope
from gradscope.capture.training import attempts
from gradscope.capture.training.coverage import ZEROED
from gradscope.capture.training.telling import GradscopeWarning
from tests.capture.training.conftest import Recorded, run_loop
from tests.capture.training.loops import LOOPS, Table

loops = pytest.mark.parametrize("name", LOOPS)


@loops
def test_the_loop_ends_in_the_same_weights_as_its_twin_that_is_not_recorded(
    name: str, recorded: tuple[Table, gradscope.Run]
) -> None:
    table, run = recorded
    twin = run_loop(name, None)
    for a, b in zip(table.model.state_dict().values(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert run.lost == {}


@loops
def test_every_pass_that_fed_an_update_is_a_record_of_its_step_and_no_other_is(
    recorded: tuple[Table, gradscope.Run],
) -> None:
    table, run = recorded
    records = run.records(table.site)
    expected = [(k, micro, s.skipped) for k, s in enumerate(table.steps) for micro in range(len(s.passes))]
    assert [(r.step, r.micro, r.skipped) for r in records.itertuples()] == expected
    if not expected:
        return
    at_last = run.array(table.site, "hidden")[:, 0, 0]
    np.testing.assert_allclose(at_last, [p for s in table.steps for p in s.passes], rtol=1e-5)


@loops
def test_the_passes_that_fed_none_are_apart_under_what_they_were(recorded: Recorded) -> None:
    table, run = recorded
    expected = [(k, role, norm) for k, s in enumerate(table.steps) for role, norm in s.apart]
    if not expected:
        assert run.apart.n_records == 0
        return
    records = run.apart.records(table.site)
    assert [(r.step, r.role) for r in records.itertuples()] == [(k, role) for k, role, _ in expected]
    at_last = run.apart.array(table.site, "hidden")[:, 0, 0]
    np.testing.assert_allclose(at_last, [norm for *_, norm in expected], rtol=1e-5)


@loops
def test_norms_are_those_of_the_gradient_that_the_update_used(recorded: Recorded) -> None:
    table, run = recorded
    rows = run.steps().set_index("step")
    for k, step in enumerate(table.steps):
        for column, value in (("grad_norm", step.raw), ("grad_norm_applied", step.applied)):
            found = rows[column].get(k, math.nan) if column in rows else math.nan
            if math.isnan(value):
                assert math.isnan(found), (k, column)
            else:
                assert found == pytest.approx(value, rel=1e-5, abs=1e-30), (k, column)


@loops
def test_every_clipping_call_stands_where_it_was_made(recorded: Recorded) -> None:
    table, run = recorded
    clips = run.clips()
    assert [(r.step, r.place) for r in clips.itertuples()] == [(k, place) for k, place, _ in table.clips]
    assert clips.part.tolist() == table.parts
    np.testing.assert_allclose(clips.norm_before, [norm for *_, norm in table.clips], rtol=1e-6)
    assert [bool(e) for e in clips.effective] == [place in ("update", "partial") for _, place, _ in table.clips]
    last = {k: r for k, r in zip(clips.step, clips.itertuples(), strict=True) if r.place == "update" and not r.part}
    for k, row in last.items():
        if row.norm_type == 2:
            assert row.applied == pytest.approx(table.steps[k].applied, rel=1e-6)
            assert row.applied == pytest.approx(row.norm_after, rel=1e-5, abs=1e-30)


def test_gradients_changed_by_the_scripts_own_code_are_said_in_coverage(tmp_path: Path) -> None:
    run_loop("clip_with_code_of_the_scripts_own", tmp_path / "own")
    run_loop("clip_grad_norm", tmp_path / "torchs")
    own, torchs = (gradscope.open_run(tmp_path / name).coverage for name in ("own", "torchs"))
    assert [(line.site, line.count) for line in own if line.reason] == [("clipping", 3)]
    assert "not recognised" in own[-1].reason
    assert not [line for line in torchs if line.reason]


def test_a_clipping_call_keeps_what_it_was(tmp_path: Path) -> None:
    found = {}
    for name in ("clip_by_the_largest_element", "clip_by_the_one_norm_without_foreach", "clip_in_two_functional_calls"):
        run_loop(name, tmp_path / name)
        found[name] = gradscope.open_run(tmp_path / name).clips().iloc[-1]
    assert [row.norm_type for row in found.values()] == [math.inf, 1.0, 2.0]
    assert [row.foreach for row in found.values()] == [-1, 0, -1]
    largest = found["clip_by_the_largest_element"]
    assert largest.applied == pytest.approx(largest.norm_after, rel=1e-9)


@pytest.mark.parametrize("every", [1, 4])
def test_between_recorded_steps_a_clipping_call_stands_where_it_was_made_too(every: int, tmp_path: Path) -> None:
    for name, place in (("clip_after_the_update", "after"), ("clip_before_the_pass", "before")):
        table = Table(tmp_path / f"{name}-{every}")
        table.every = every
        LOOPS[name](table)
        assert set(gradscope.open_run(table.run_dir).clips().place) == {place}  # type: ignore[arg-type]


def test_steps_are_counted_alike_however_few_are_recorded(tmp_path: Path) -> None:
    counted = {}
    for name in (
        "an_update_skipped_for_a_large_norm",
        "a_gradient_looked_at_and_dropped",
        "lbfgs",
        "closure_that_clips",
        "updates_skipped_from_the_first_step_on",
        "sequences_clipped_by_torch_one_by_one_and_summed",
    ):
        for every in (1, 100):
            table = Table(tmp_path / f"{name}-{every}")
            table.every = every
            LOOPS[name](table)
            counted[name, every] = table.recorder.step_number
        assert counted[name, 1] == counted[name, 100] == len(table.steps), name


def test_what_is_logged_in_skipped_iterations_stays_theirs_though_they_are_known_for_steps_later(
    tmp_path: Path,
) -> None:
    run_loop("updates_skipped_from_the_first_step_on", tmp_path / "run")
    rows = gradscope.open_run(tmp_path / "run").steps()
    assert rows[["step", "batch"]].values.tolist() == [[k, k] for k in range(5)]


def test_a_script_that_never_updates_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "UNDECIDED", 4)
    table, counted = Table(tmp_path / "run"), []

    def loop() -> None:
        optimizer = table.sgd()
        with table.recorded(optimizer) as recorder:
            for _ in range(8):
                table.backward()
                torch.nn.utils.clip_grad_norm_(table.model.parameters(), 0.1)
                optimizer.zero_grad()
                counted.append(recorder.step_number)

    with pytest.warns(GradscopeWarning, match="never stepped"):
        loop()
    assert counted == [0, 0, 0, 0, 0, 5, 6, 7]
    run = gradscope.open_run(tmp_path / "run")
    assert run.records("rnn/l0")[["step", "micro", "skipped"]].values.tolist() == [[k, 0, True] for k in range(8)]
    assert run.clips()[["step", "place"]].values.tolist() == [[k, "skipped"] for k in range(8)]


def forgetful(table: Table, forgotten: str) -> None:
    """Three iterations of a loop that lacks a line."""
    optimizer = table.sgd()
    with table.recorded(optimizer), torch.set_grad_enabled(forgotten != "gradients"):
        for _ in range(3):
            loss = table.loss()
            if forgotten == "step":
                loss.backward()
            else:
                optimizer.step()


@pytest.mark.parametrize(
    ("forgotten", "warned", "answered"),
    [
        ("step", "the optimizer never stepped", "no answer: rnn/l0: .* of 3, no update followed .*never stepped"),
        ("backward", r"no backward pass was seen.*: call backward\(\)", r"rnn/l0: .*: backward\(\) was not called, or"),
        (
            "gradients",
            r"not under torch\.no_grad",
            r"rnn/l0: .*where no gradient is asked for \(torch\.no_grad",
        ),
    ],
)
def test_a_line_that_a_loop_lacks_is_said_at_its_end_and_in_place_of_an_answer(
    tmp_path: Path, forgotten: str, warned: str, answered: str
) -> None:
    table = Table(tmp_path / "run")
    with pytest.warns(GradscopeWarning, match=warned):
        forgetful(table, forgotten)
    assert re.search(answered, str(gradscope.open_run(tmp_path / "run")))


def test_a_gradient_that_is_zeroed_before_its_update_is_said_in_coverage(tmp_path: Path) -> None:
    table = Table(tmp_path / "run")
    optimizer = table.sgd()
    with table.recorded(optimizer):
        for _ in range(3):
            table.backward()
            optimizer.zero_grad()
            optimizer.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.n_records == 0
    assert run.apart.records("rnn/l0").dropped.tolist() == [True] * 3
    assert [(line.site, line.status, line.reason) for line in run.coverage] == [("rnn/l0", "missing", ZEROED)]


# A skipped step that is known only once the next forward pass has run leaves that one unrecorded, and coverage says so.
LATE = "an_update_skipped_with_zero_grad_after_the_forward_pass"


@pytest.mark.parametrize("name", [name for name in LOOPS if name != LATE])
def test_what_is_recorded_at_a_step_does_not_depend_on_whether_others_are(
    name: str, recorded: Recorded, tmp_path: Path
) -> None:
    table, whole = recorded
    half_table = Table(tmp_path / "run")
    half_table.every = 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LOOPS[name](half_table)
    half = gradscope.open_run(tmp_path / "run")
    assert half_table.recorder.step_number == table.recorder.step_number
    columns = ["step", "micro", "skipped"]
    expected, found = whole.records(table.site), half.records(table.site)
    kept = (expected.step % 2 == 0).to_numpy()
    assert found[columns].values.tolist() == expected[kept][columns].values.tolist()
    if len(found):
        arrays = [run.array(table.site, "hidden") for run in (half, whole)]
        np.testing.assert_allclose(arrays[0], arrays[1][kept], rtol=1e-6)
    clips, every = half.clips(), whole.clips()
    # A clip by value is measured, and noted, in recorded steps only.
    every = every[(every["kind"] != "value") | (every["step"] % 2 == 0)].reset_index(drop=True)
    columns = ["step", "kind", "place", "part"]
    assert clips[columns].equals(every[columns])
    np.testing.assert_allclose(clips.norm_before, every.norm_before, rtol=1e-5)


def test_a_skipped_step_that_is_known_late_is_said_in_coverage(tmp_path: Path) -> None:
    table = Table(tmp_path / "run")
    table.every = 2
    LOOPS[LATE](table)
    run = gradscope.open_run(tmp_path / "run")
    assert table.recorder.step_number == 6
    assert run.records("rnn/l0").step.tolist() == [0, 2]
    assert any("before it was known that the step before had been skipped" in line.reason for line in run.coverage)
