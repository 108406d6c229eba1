from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradscope
from gradscope import errors

ROOT = Path(__file__).parents[1]
READING = ("report", "inspect", "export", "validate", "pack", "repair")


def loaded_by(code: str) -> set[str]:
    """Modules that are loaded once this code has run in a fresh interpreter."""
    code += "\nimport sys; print('LOADED', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split("LOADED ")[-1].split())


def test_all_is_sorted_and_is_what_dir_shows():
    assert gradscope.__all__ == sorted(gradscope.__all__)
    assert dir(gradscope) == gradscope.__all__


@pytest.mark.parametrize("name", gradscope.__all__)
def test_every_public_name_exists(name):
    assert getattr(gradscope, name) is not None


def test_what_is_loaded_lazily_is_public_and_the_reverse():
    assert {*gradscope._HOME, "__version__"} == set(gradscope.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'recrod'"):
        gradscope.recrod  # noqa: B018


def test_importing_gradscope_loads_neither_torch_nor_matplotlib():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import gradscope"], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "gradscope" in loaded
    assert not loaded & {"torch", "matplotlib", "seaborn", "h5py", "pandas", "scipy", "numpy"}


def test_help_loads_no_command_and_nothing_heavy():
    loaded = loaded_by("from gradscope.cli import main; main(['--help'], standalone_mode=False)")
    assert not loaded & {"torch", "matplotlib", "numpy", "pandas", "gradscope.cli.demo", "gradscope.cli.report"}


@pytest.mark.parametrize(
    ("name", "never"),
    [
        ("report", {"torch"}),
        ("plot", {"torch"}),
        ("inspect", {"torch", "matplotlib"}),
        ("export", {"torch", "matplotlib"}),
        ("validate", {"torch", "matplotlib"}),
        ("pack", {"torch", "matplotlib"}),
        ("repair", {"torch", "matplotlib"}),
        ("demo", {"torch", "matplotlib"}),
        ("sweep", {"torch", "matplotlib"}),
    ],
)
def test_a_command_loads_no_more_than_it_needs(name, never, tmp_path):
    # On a path where nothing is, so that everything up to opening the run is loaded.
    arguments = [str(tmp_path / "nothing")] if name in READING else ["--help"]
    loaded = loaded_by(
        "from click.testing import CliRunner\n"
        "from gradscope.cli import main\n"
        f"assert CliRunner().invoke(main, {[name, *arguments]!r}).exit_code in (0, 1, 2)"
    )
    assert f"gradscope.cli.{name}" in loaded
    assert not loaded & never


def test_every_package_is_listed_for_the_wheel():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split()) - {"gradscope.data"}
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gradscope").rglob("__init__.py")}
    assert listed == there


def test_every_file_beside_the_code_is_shipped():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    data = {name: patterns.split() for name, patterns in config["options.package_data"].items()}
    for path in (ROOT / "gradscope").rglob("*"):
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
            package = next(p for p in path.parents if (p / "__init__.py").exists())
            patterns = data.get(".".join(package.relative_to(ROOT).parts), [])
            assert any(path.match(str(package / pattern)) for pattern in patterns), path


def test_every_place_that_says_the_version_says_the_same():
    latest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert latest[1] == cited[1] == gradscope.__version__


def test_the_error_tree_in_the_docstring_is_the_tree():
    drawn = {line.split("──")[-1].strip(" │").split(" ")[0] for line in errors.__doc__.splitlines() if "Error" in line}
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert drawn == classes


def test_the_type_marker_is_shipped():
    assert (Path(importlib.import_module("gradscope").__file__).parent / "py.typed").exists()
