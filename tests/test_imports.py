"""Which package of others each floor may import: whatever is not listed here is not to be had there."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gradscope"
CONFIG = PACKAGE.parent / "setup.cfg"
ALLOWED = {
    "__init__": set(),
    "__main__": set(),
    "_mixed": set(),
    "_version": set(),
    "adjoint": {"torch", "numpy"},
    "capture": {"torch", "numpy", "pandas"},
    "cli": {"click", "pandas"},
    "diagnostics": {"numpy", "scipy"},
    "errors": set(),
    "face": {"pandas", "xarray"},
    "integrations": {
        "torch", "numpy", "matplotlib", "lightning", "pytorch_lightning", "transformers", "wandb", "mlflow",
    },
    "lab": {"torch", "numpy", "scipy", "pandas", "tqdm", "distributed", "submitit"},
    "legible": {"pandas"},
    "plots": {"numpy", "scipy", "pandas", "matplotlib", "seaborn"},
    "reading": {"numpy", "pandas"},
    "reasons": set(),
    "report": {"numpy", "pandas", "matplotlib", "jinja2", "markupsafe"},
    "schema": {"numpy"},
    "store": {"numpy", "pandas", "h5py"},
    "words": set(),
}  # fmt: skip
#: Import names of packages that setup.cfg calls otherwise.
DISTRIBUTIONS = {"pytorch_lightning": "lightning", "mlflow": "mlflow-skinny"}


def imported(path: Path) -> Iterator[str]:
    """Packages that a module imports anywhere: at its top, in a function, for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            yield (node.module or "").partition(".")[0]


def of_others(floor: str) -> dict[str, list[str]]:
    """Package to the modules of the floor that import it."""
    folder = PACKAGE / floor
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
        for name in set(imported(path)) - {"gradscope"} - set(sys.stdlib_module_names):
            found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    return found


def test_every_floor_has_its_list():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there == set(ALLOWED)


@pytest.mark.parametrize("floor", ALLOWED)
def test_a_floor_imports_what_its_list_allows_and_the_list_no_more(floor):
    found = of_others(floor)
    beyond = {name: where for name, where in found.items() if name not in ALLOWED[floor]}
    assert not beyond, f"gradscope.{floor} may not import {beyond}: do without, or allow it above"
    assert ALLOWED[floor] <= set(found)


def test_every_package_that_is_imported_is_required_by_setup_cfg():
    config = configparser.ConfigParser()
    config.read(CONFIG)
    extras = [requirements for extra, requirements in config["options.extras_require"].items()]
    required = set(re.findall(r"^([\w-]+)", "\n".join([config["options"]["install_requires"], *extras]), re.MULTILINE))
    for floor in ALLOWED:
        names = {DISTRIBUTIONS.get(name, name) for name in of_others(floor)}
        assert names <= required, floor
