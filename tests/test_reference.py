"""The reference has an example for every public function and class, and it does what it shows."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest

import gradscope
from gradscope import diagnostics
from tests.pages import text

#: Results that only a function makes; its example shows them.
RESULTS = {name for name, value in vars(diagnostics).items() if inspect.isclass(value)} - {"DecayFit"}
NAMES = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (gradscope, diagnostics)
    for name in module.__all__
    if name != "__version__" and not (module is diagnostics and name in RESULTS)
}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def run(name: str) -> int:
    """Run the examples of a name in the current directory; how many lines there were."""
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]), {}, name, None, None)
    said: list[str] = []
    failed, tried = runner.run(test, out=said.append)[:2]
    assert not failed, "".join(said)
    return tried


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is that ``record`` has in its example: those of reading a run open it."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("gradscope.record")
    return folder


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"gradscope.record"}))
def test_the_example_of_a_public_name_does_what_it_shows(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run(name) > 0, "no example"


def test_every_public_name_is_in_the_reference():
    shown = "".join(text(f"api/{page}.md") for page in ("recording", "reading", "on_demand", "diagnostics"))
    listed = set(re.findall(r"auto(?:function|class):: (\S+)", shown))
    assert {f"gradscope.{name}" for name in gradscope.__all__} - {"gradscope.__version__"} - listed == {
        "gradscope.DecayFit"
    }
    assert "automodule:: gradscope.diagnostics" in shown
