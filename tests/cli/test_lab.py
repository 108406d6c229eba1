from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gradscope.cli import main
from gradscope.lab.lecture.textbook import TEXTBOOK


@pytest.mark.slow
def test_the_lecture_ends_with_one_page_that_shows_every_statement(tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["lab", "lecture", "--quick", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out / "report" / "index.html") in result.stdout
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    claims = json.loads((out / "report" / "summary.json").read_text())["claims"]
    stated = [statement.text for chapter in TEXTBOOK.values() for statement in chapter]
    assert [claim["statement"] for claim in claims] == stated
    said = " ".join(result.stdout.split())
    for claim in claims:
        assert f"{claim['statement']} {claim['found']}" in said
    assert "<script" not in page
    assert page.count("What was asked and measured") == len(stated)


def test_the_lecture_overwrites_nothing(tmp_path):
    result = CliRunner().invoke(main, ["lab", "lecture", "--quick", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert not any(tmp_path.iterdir())


def test_the_lab_lists_the_lecture_and_says_how_long_it_takes():
    assert "lecture" in CliRunner().invoke(main, ["lab", "--help"]).stdout
    assert "minutes on two cores" in " ".join(CliRunner().invoke(main, ["lab", "lecture", "--help"]).stdout.split())
