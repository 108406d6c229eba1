"""A report over runs that do not fit together, or hold next to nothing, is a page that says so."""

from __future__ import annotations

import json

import pytest

from gradscope import compare
from gradscope.report import build_report
from gradscope.report.drawing import Drawn
from tests.plots.test_bad_input import MAKE

_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9"><g/></svg>'


@pytest.fixture
def undrawn(monkeypatch):
    """Every kind is drawn in tests/plots: here is what stands around it."""
    views = {"figure": (_SVG, {"axes": [], "lines": []})}
    monkeypatch.setattr(
        "gradscope.report.build.draw", lambda p, _: Drawn(p.name, p.title, p.caption, {}, p.data, views)
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("case", MAKE)
def test_a_page_that_tells_of_every_run(case, tmp_path):
    runs = MAKE[case](tmp_path)
    for sweep in (False, True):
        paths = build_report(runs, tmp_path / f"out-{sweep}", sweep=sweep)
        page = paths.index.read_text()
        assert "nan of" not in page
        assert "Traceback" not in page
        told = json.loads(paths.summary.read_text())
        assert len(told["runs"]) == len(runs)
        for run in told["runs"]:
            assert run["sites"] or run["silent"] or run["diverged_at"] is not None


@pytest.mark.parametrize("case", MAKE)
def test_every_run_has_its_line_in_a_comparison(case, tmp_path):
    runs = MAKE[case](tmp_path)
    table = compare(runs)
    assert set(table["run"]) == {run.name for run in runs}
    assert not table["verdict"].isna().any()
    assert (table["reason"].str.len() + table["rate"].notna() > 0).all()
