"""What CONTRIBUTING.md says to type does what it says there, in an environment whose programs only note their call."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "python3", "ruff", "mypy", "lint-imports", "cffconvert")
(BLOCK,) = re.findall(r"^```bash\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
#: Every command of the block, those behind a semicolon of its remarks as well.
TYPED = re.findall(r"(?:^|; )(scripts/\w+[^:;#\n]*?)(?= *(?:[:;#,\n]|$))", BLOCK, re.MULTILINE)

NOTED = """#!/bin/sh
echo "{name} $*" >> "{log}"
case "$*" in *sys.prefix*) echo "{prefix}";; esac
"""


@pytest.fixture
def typed(tmp_path):
    """A function that runs a command and returns what the programs of the environment were called with."""
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    for name in PROGRAMS:
        program = tmp_path / "bin" / name
        program.write_text(NOTED.format(name=name, log=log, prefix=tmp_path))
        program.chmod(0o755)
    known = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "EXTRAS")}
    known |= {"VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def run(command: str) -> list[str]:
        log.write_text("")
        done = subprocess.run(shlex.split(command), cwd=ROOT, env=known, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [line for line in log.read_text().splitlines() if "sys.prefix" not in line]

    return run


def test_the_block_shows_what_is_tried_here():
    assert TYPED == [
        "scripts/check",
        "scripts/test",
        "scripts/test --all",
        "scripts/test tests/plots",
        "scripts/test --lowest",
    ]


def test_check_runs_everything_that_must_be_clean_and_installs_once(typed):
    install, *checks = typed("scripts/check")
    assert re.fullmatch(r"python -m pip install .* -e \.\[test,check,docs\] -c constraints.txt", install)
    assert [line.split()[0] for line in checks[:5]] == ["ruff", "ruff", "mypy", "lint-imports", "cffconvert"]
    assert re.match("python -m sphinx .*--fail-on-warning .*docs build/docs$", checks[5])
    assert typed("scripts/check") == checks


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("scripts/test", ""),
        ("scripts/test --all", " -m slow or not slow"),
        ("scripts/test tests/plots", " tests/plots"),
    ],
)
def test_test_hands_on_what_it_is_given(typed, command, given):
    install, tests = typed(command)
    assert "-e .[test] -c constraints.txt" in install
    assert tests == f"python -m pytest -n 2{given}"


def test_other_versions_are_tried_by_the_script_of_that_name_in_no_environment_of_ours(typed):
    (line,) = typed("scripts/test --lowest")
    assert line == "python3 scripts/compatibility.py --lowest"
    (line,) = typed("scripts/test --newest --python 3.12")
    assert line == "python3 scripts/compatibility.py --newest --python 3.12"
