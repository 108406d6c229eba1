import importlib
import subprocess
import sys

import pytest

import gradscope.diagnostics
from gradscope.diagnostics import DIAGNOSTICS, fit_decay
from gradscope.schema import QUANTITIES


def test_all_names_are_public_sorted_and_there():
    names = gradscope.diagnostics.__all__
    assert list(names) == sorted(names, key=lambda n: (n[0].islower(), n.upper() != n, n))
    assert all(hasattr(gradscope.diagnostics, name) for name in names)


@pytest.mark.parametrize("name", sorted(DIAGNOSTICS))
def test_every_entry_names_a_function_and_known_quantities(name):
    diagnostic = DIAGNOSTICS[name]
    module, function = diagnostic.function.split(":")
    assert callable(getattr(importlib.import_module(f"gradscope.diagnostics.{module}"), function))
    assert set(diagnostic.needs) <= set(QUANTITIES)
    assert diagnostic.name == name


def test_an_entry_calls_its_function():
    norms = [0.5**k for k in range(30)]
    assert DIAGNOSTICS["decay"](range(30), norms).rate == fit_decay(range(30), norms).rate


def test_an_entry_says_what_is_missing():
    assert DIAGNOSTICS["ratio"].missing(("hidden",)) == ("recurrent",)
    assert DIAGNOSTICS["decay"].missing(("cell", "direct")) == ()
    assert DIAGNOSTICS["decay"].missing(("direct",)) == ("hidden", "cell", "input")


def test_diagnosing_loads_neither_torch_nor_matplotlib():
    code = "import sys, gradscope.diagnostics.of_run; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
