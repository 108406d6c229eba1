from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from gradscope.plots import decay
from gradscope.report import build_report
from gradscope.report.tables import Cell, Column, Table
from gradscope.report.telling import Chapter, Picture, Story
from gradscope.store import open_run
from tests.made_runs import make_run


def claim(statement, outcome, met):
    asked = SimpleNamespace(where="here & now", what="a <ratio>", low=0.0, high=1.0, log=True)
    answer = SimpleNamespace(
        asked=asked, values=(0.5, 2.0), mean=1.0, interval=None, met=met, mean_words="1", range_words="below 1",
        interval_words="no interval",
    )  # fmt: skip
    return SimpleNamespace(
        statement=statement,
        outcome=outcome,
        found=f"{outcome} at <1e-3>.",
        sentence=f"{outcome}: so.",
        answers=[answer],
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    root = tmp_path_factory.mktemp("story")
    run = open_run(make_run(root / "lstm", (-0.2,)).path)
    picture = Picture(
        name="curves", plot="decay", title="Curves <told>", caption="What they show.", data=decay.table([run]),
        options={"legend": False},
    )  # fmt: skip
    table = pd.DataFrame({"network": ["a<b"], "rate": ["-0.1\n-0.2 to 0.0"]})
    chapter = Chapter(
        title="One & only", text=("It begins <here>.",), tables=(("A table.", table),),
        claims=(claim("It <is>.", "confirmed", True), claim("It was.", "undetermined", None)), pictures=(picture,),
    )  # fmt: skip
    cover = Picture("cover", "decay", "The whole story", "In one figure.", decay.table([run]))
    story = Story(opening=("Once.",), chapters=(chapter,), cover=(cover,))
    return build_report([run], root / "out", told=story, shown=("decay",))


def test_chapters_stand_before_the_runs_with_every_name_escaped(told):
    page = told.index.read_text(encoding="utf-8")
    order = [
        page.index(words)
        for words in (
            "Once.",
            "The whole story",
            ">One &amp; only</h2>",
            "It begins &lt;here&gt;.",
            "recorded runs</h2>",
        )
    ]
    assert order == sorted(order)
    assert "It &lt;is&gt;." in page
    assert "a&lt;b" in page
    assert '-0.1<br><span class="soft">-0.2 to 0.0</span>' in page
    assert "Of 2 statements: 1 confirmed, 1 undetermined." in page
    assert 'confirmed at &lt;<span class="n">1e-3</span>&gt;.' in page


def test_a_lead_takes_the_first_screen_with_figure_and_table_and_the_opening_follows(told, tmp_path):
    run = open_run(make_run(tmp_path / "lstm", (-0.2,)).path)
    cover = Picture("cover", "decay", "The whole story", "In one figure.", decay.table([run]))
    beside = Table("Beside", (Column("network", "text"),), ((Cell("only <one>"),),), sortable=True)
    story = Story(("First.", "Second."), (), (cover,), lead="All in one.", table=beside, recorded=47)
    page = build_report([run], tmp_path / "out", told=story, shown=()).index.read_text(encoding="utf-8")
    order = [
        page.index(w) for w in ("47 runs, 1 of them", "All in one.", "The whole story", "only &lt;one&gt;", "First.")
    ]
    assert order == sorted(order)
    assert page.count('class="lead"') == 1
    assert "47 runs" not in told.index.read_text(encoding="utf-8")


def test_figures_are_numbered_through_and_their_files_written(told):
    page = told.index.read_text(encoding="utf-8")
    assert "<b>Figure 1. The whole story.</b>" in page
    assert "<b>Figure 2. Curves &lt;told&gt;.</b>" in page
    assert [page.count(f"<b>Figure {i}.") for i in range(1, 5)] == [1, 1, 1, 0]
    assert {p.name for p in told.figures} >= {"cover.svg", "curves.pdf", "curves.png", "curves.svg", "decay.svg"}
    drawn = pd.read_csv(told.directory / "data" / "curves.csv")
    assert np.isfinite(drawn["relative"]).any()


def test_claims_are_in_the_summary_as_numbers(told):
    claims = json.loads(told.summary.read_text())["claims"]
    assert [c["outcome"] for c in claims] == ["confirmed", "undetermined"]
    assert claims[0]["answers"][0] == {
        "where": "here & now", "what": "a <ratio>", "low": 0.0, "high": 1.0, "values": [0.5, 2.0], "mean": 1.0,
        "interval": None, "met": True,
    }  # fmt: skip


def test_a_report_without_a_story_has_no_claims(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.report.figures.pictures_of", lambda *_, **__: ([], {}))
    run = open_run(make_run(tmp_path / "lstm").path)
    plain = build_report([run], tmp_path / "out")
    assert "claims" not in json.loads(plain.summary.read_text())
    assert "statements:" not in plain.index.read_text(encoding="utf-8")
