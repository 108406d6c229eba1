import subprocess
import sys

import gradscope.diagnostics


def test_all_is_sorted_and_complete():
    names = gradscope.diagnostics.__all__
    assert names == sorted(names)
    assert all(hasattr(gradscope.diagnostics, name) for name in names)


def test_neither_diagnosing_nor_reading_loads_torch_or_pictures():
    code = "import sys, gradscope.reading.facts; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
