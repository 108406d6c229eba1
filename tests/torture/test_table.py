"""What `scripts/torture` prints, and how it ends."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.torture import __main__ as torture
from tests.torture.outcome import Outcome


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def good(scratch: Path, count: int | None = None) -> Outcome:
        (scratch / "file").write_text("")  # a directory of its own
        return Outcome("water is wet", count or 1000)

    def short(scratch: Path, count: int | None = None) -> Outcome:
        return Outcome("pigs fly", 2, ["pig 2 did not fly."])

    def broken(scratch: Path, count: int | None = None) -> Outcome:
        raise KeyError("wings")

    modules = {"good": good, "short": short, "broken": broken, "idle": lambda *_: Outcome("nothing tried", 0)}
    monkeypatch.setattr(torture, "parts", lambda: list(modules))

    def imported(name: str) -> Any:
        return SimpleNamespace(run=modules[name.rpartition(".")[2]])

    monkeypatch.setattr(importlib, "import_module", imported)


@pytest.mark.usefixtures("made_up")
def test_the_table_has_a_row_per_promise_and_zero_is_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert torture.main(["--only", "good"]) == 0
    assert capsys.readouterr().out == "| promise | tries | fell short |\n|---|---|---|\n| water is wet | 1,000 | 0 |\n"


@pytest.mark.usefixtures("made_up")
def test_what_falls_short_is_told_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert torture.main(["--json", "--count", "3"]) == 1
    told = capsys.readouterr()
    found = {one["part"]: one for one in json.loads(told.out)}
    assert found["good"]["tries"] == 3
    assert found["short"]["fell_short"] == ["pig 2 did not fly."]
    assert found["broken"]["fell_short"] == ["broken itself failed: KeyError: 'wings'"]
    assert "pig 2 did not fly." in told.err


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("part", ["broken", "idle"])
def test_a_part_that_tries_nothing_is_no_success(part: str) -> None:
    assert torture.main(["--only", part]) == 1


def test_every_part_that_is_there_is_run() -> None:
    here = Path(torture.__file__).parent
    own = {"__init__", "__main__", "outcome"}
    with_run = {p.stem for p in here.glob("*.py") if p.stem not in own and "\ndef run(" in p.read_text()}
    assert with_run == set(torture.parts())
