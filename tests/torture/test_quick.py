"""A quick part of what `scripts/torture` tries, and that it would notice."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gradscope.store import journal as journal_module
from gradscope.store import worker as worker_module
from tests.torture import crashes, disk, kills, power, recorded, vfs

pytestmark = pytest.mark.skipif(not vfs.available(), reason="needs a SQLite whose functions can be reached")


def test_a_crash_anywhere_loses_nothing_flushed(tmp_path: Path) -> None:
    outcome = crashes.run(tmp_path, 8)
    assert outcome.tries >= 8
    assert outcome.fell_short == []


def test_a_power_cut_anywhere_loses_nothing_flushed(tmp_path: Path) -> None:
    outcome = power.run(tmp_path, 8)
    assert outcome.tries >= 8
    assert outcome.fell_short == []


def test_a_journal_that_is_removed_before_it_is_sealed_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = worker_module.seal_journal

    def too_late(connection: object, *arguments: object) -> int:
        connection.execute("DELETE FROM entries")  # type: ignore[attr-defined]
        return seal(connection, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker_module, "seal_journal", too_late)
    assert _crashes_that_lose(recorded.large(recorded.below(tmp_path, "large")), tmp_path)


def test_a_journal_that_is_not_synced_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(journal_module._SYNCHRONOUS, "full", "OFF")
    done = recorded.large(recorded.below(tmp_path, "large"), "full")
    cuts = [(disk, notes) for _, disk, notes in power.moments(done, 1) if notes.flushed][:8]
    chance = random.Random(0)
    assert any(power.look(done, disk.cut(chance), notes, tmp_path / "at") for disk, notes in cuts)


def _crashes_that_lose(done: recorded.Recorded, tmp_path: Path) -> list[str]:
    looked = [crashes.look(done, files, notes, tmp_path / "at") for _, files, notes in list(crashes.states(done))[-6:]]
    return [wrong for wrong in looked if wrong]


def test_a_kill_anywhere_loses_nothing_flushed(tmp_path: Path) -> None:
    outcome = kills.run(tmp_path, 8)
    assert outcome.tries >= 8
    assert outcome.fell_short == []


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("ENOSPC", "mid"),
        ("EIO", "once"),
        ("descriptors", "mid"),
        ("changed", "the run is removed"),
        ("changed", "the journal begins with noise"),
    ],
)
def test_a_disk_in_any_state_leaves_the_training_as_it_is(tmp_path: Path, kind: str, detail: str) -> None:
    found = {}
    for name, state in (("plain", ("plain", "")), ("troubled", (kind, detail))):
        (tmp_path / name).mkdir()
        assert disk.train(str(tmp_path / name), *state) == 0
        found[name] = {"code": 0, **json.loads((tmp_path / name / "told").read_text())}
    assert disk.shortfall(found["troubled"], found["plain"]) is None
