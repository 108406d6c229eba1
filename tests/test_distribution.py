"""The packages as a stranger gets them: built, checked, installed where nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from gradscope import _mixed
from gradscope._version import __version__

ROOT = Path(__file__).parents[1]


def test_the_unrelated_package_beside_this_one_is_noticed_with_what_to_do(tmp_path):
    _mixed.check(tmp_path / "gradscope")
    (tmp_path / "gradscope_rnn-0.2.0.dist-info").mkdir()
    _mixed.check(tmp_path / "gradscope")
    (tmp_path / "gradscope-0.1.0.dist-info").mkdir()
    with pytest.warns(UserWarning, match="pip uninstall gradscope gradscope-rnn, then: pip install gradscope-rnn"):
        _mixed.check(tmp_path / "gradscope")


def run(*command: str | Path, **options: object) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it: from the files that git has, and no others."""
    folder = tmp_path_factory.mktemp("built")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    (folder / "tree").mkdir()
    subprocess.run(["tar", "-x"], cwd=folder / "tree", input=archive, check=True)
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "tree")
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_is_the_repository(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert {name for name in tracked if name and not name.startswith(".git")} <= names


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_data_and_a_description_without_dead_links(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    listed = subprocess.run(["git", "ls-files", "gradscope"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= names
    assert {"gradscope/data/digits.csv.gz", "gradscope/data/sunspots.csv"} <= names
    told = message_from_bytes(metadata)
    assert told["Version"] == __version__
    said = str(told.get_payload())
    assert "](docs/" not in said
    assert "scripts/demo" in said.split("```")[1]


@pytest.mark.slow
def test_the_long_description_renders(built):
    said = run(sys.executable, "-m", "twine", "check", "--strict", *built)
    assert said.count("PASSED") == 2


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_in_an_empty_environment(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", built[1])
    listed = run(python, "-m", "pip", "list")
    assert "pytest" not in listed
    assert "lightning" not in listed
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = tmp_path / "venv" / "bin" / "gradscope"
    run(command, "demo", "--quick", "-o", tmp_path / "demo", cwd=tmp_path, env=environment)
    assert (tmp_path / "demo" / "report" / "index.html").stat().st_size > 10_000
