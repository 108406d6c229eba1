"""The examples are ordinary scripts that know nothing of gradscope: what the launcher is tried on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "char_lm": ["--epochs", "1", "--hidden", "16"],
    "sunspots": ["--epochs", "1", "--history", "12", "--hidden", "4"],
    "seq2seq": ["--epochs", "1", "--pairs", "64", "--hidden", "8"],
    "word_lm": ["--epochs", "1", "--size", "8"],
    "line_rnn": ["--lines", "60", "--hidden", "8"],
    "attention": ["--epochs", "1", "--history", "12", "--horizon", "6", "--hidden", "4"],
}


def test_every_example_is_tried():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_no_example_mentions_gradscope(name):
    assert "gradscope" not in (FOLDER / f"{name}.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_an_example_prints_the_same_twice(name, tmp_path):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *SMALL[name]]
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout
    assert first.stdout == second.stdout
