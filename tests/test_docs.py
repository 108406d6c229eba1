"""What the documents show runs."""

import re
from pathlib import Path

import pytest
import torch
import xarray
from torch import nn

import gradscope
from gradscope.store.packing import pack

DOCS = Path(__file__).parents[1] / "docs"


def _blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_no_other_page_shows_code():
    assert {page.name for page in DOCS.glob("*.md") if _blocks(page.name)} == {"science.md", "format.md"}


def test_the_code_of_the_science_page_runs():
    (code,) = _blocks("science.md")
    names: dict = {}
    exec(code, names)
    assert names["fit"].verdict == "vanishing"
    assert names["fit"].half_life == pytest.approx(6.58, abs=0.01)


def test_the_code_of_the_format_page_opens_a_packed_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"lstm": nn.LSTM(2, 3)})})
    with gradscope.record(model, "run", every=1, samples=2) as recorder:
        model["encoder"]["lstm"](torch.randn(7, 2, 2))[0].sum().backward()
        recorder.step()
    pack("run", "run.h5")
    (code,) = _blocks("format.md")
    with eval(code, {"xarray": xarray}) as site:
        assert site["cell"].shape == (1, 2, 7)
