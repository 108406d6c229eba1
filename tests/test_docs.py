"""What the documents show runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_the_code_of_the_science_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "science.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["fit"].verdict == "vanishing"
    assert names["fit"].half_life == pytest.approx(6.58, abs=0.01)
