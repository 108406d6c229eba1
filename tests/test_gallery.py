"""The gallery promises that what stands beside a picture made it."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

import gradscope
from gradscope import plots
from gradscope.cli.plot import plot

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
PAGE = (GALLERY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
LINES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(links) > 10
    assert not [link for link in links if not (GALLERY / link).is_file()]


def test_every_picture_is_shown_once_and_together_they_are_small():
    shown = re.findall(r"!\[.*?\]\((.*?)\)", PAGE)
    assert sorted(shown) == sorted(path.name for path in GALLERY.glob("*.png"))
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) < 1_500_000


def test_every_kind_of_figure_is_there():
    """Statements put to a measurement are drawn by the lecture alone, and the page says so."""
    assert {Path(name).stem for name in os.listdir(GALLERY)} - {"README"} == set(plots.PLOTS) - {"evidence"}
    assert "`evidence`" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_command_line_knows(command):
    program, name, kind, *rest = shlex.split(command)
    assert (program, name) == ("gradscope", "plot")
    assert getattr(plots.load(kind), "FROM_RUNS", True) or hasattr(plots.load(kind), "PROBES")
    with plot.make_context("plot", [kind, *rest]) as context:
        assert isinstance(context, click.Context)
        assert (GALLERY / context.params["out"]).is_file()


@pytest.mark.parametrize("code", LINES)
def test_every_line_of_python_calls_what_there_is(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gradscope":
            assert hasattr(gradscope, node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.load":
            plots.load(ast.literal_eval(node.args[0]))


def test_the_page_is_the_one_that_the_script_writes():
    spec = importlib.util.spec_from_file_location("paper_figures", ROOT / "scripts" / "paper_figures.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["paper_figures"] = script  # dataclasses look their module up
    try:
        spec.loader.exec_module(script)
    finally:
        del sys.modules["paper_figures"]
    assert script.page() == PAGE
