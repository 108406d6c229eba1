"""A quick part of the faults and of the trainings side by side, and that they would be noticed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gradscope.capture.training.recorder import Recorder
from tests import remains
from tests.torture import concurrency, injections

#: ``Rounds.forget``; Python 3.10 does not tell the class.
FORGETS = re.compile(r"capture\.training\.rounds:(Rounds\.)?forget:")


def test_a_fault_at_any_function_stays_inside(tmp_path: Path) -> None:
    digest, whole, _ = injections._prepared("by_hand", tmp_path)
    chosen = injections.cases(tmp_path, ["by_hand"])[::100]
    with remains.frozen():
        found = {str(case): injections.attempt(case, digest, whole, tmp_path) for case in chosen}
    assert sum(wrong is not None for wrong in found.values()) >= 6
    assert not any(found.values()), found


def test_a_fault_that_gets_out_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, whole, _ = injections._prepared("by_hand", tmp_path)
    monkeypatch.setattr(Recorder, "step", lambda self: self._account.mark())
    below = next(case for case in injections.cases(tmp_path, ["by_hand"]) if FORGETS.match(case.function))
    found = injections.attempt(below, digest, whole, tmp_path)
    assert found is not None
    assert any("reached the training" in one for one in found)


_SLOW = (concurrency.opened_and_closed, concurrency.moves, concurrency.snapshot_beside, concurrency.several)


@pytest.mark.parametrize(
    "case",
    [
        lambda scratch: concurrency.several(scratch, 2),
        concurrency.hooks_made_meanwhile,
        concurrency.dropped,
        *[pytest.param(one, marks=pytest.mark.slow) for one in _SLOW],
    ],
)
def test_trainings_side_by_side_have_each_its_own_records(tmp_path: Path, case: object) -> None:
    concurrency.attempt(case, tmp_path)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path: Path) -> None:
    concurrency.attempt(concurrency.forked, tmp_path)


def test_a_recorder_in_a_cycle_is_sealed_by_the_garbage_collector(tmp_path: Path) -> None:
    concurrency.attempt(lambda scratch: concurrency.dropped(scratch, cycle=True), tmp_path)
