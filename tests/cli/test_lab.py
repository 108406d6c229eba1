from __future__ import annotations

import json

import pytest

from gradscope.cli import main
from gradscope.lab.lecture.textbook import TEXTBOOK
from gradscope.lab.replications import PAPERS
from tests.commands import CliRunner


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
    assert page.count("<script") == 1  # the page's own
    assert page.count("<summary>What was asked and measured</summary>") == len(stated)


def test_the_lecture_overwrites_nothing(tmp_path):
    result = CliRunner().invoke(main, ["lab", "lecture", "--quick", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert not any(tmp_path.iterdir())


def test_replications_are_listed_run_by_name_and_told_or_printed_as_json():
    listed = CliRunner().invoke(main, ["lab", "replicate"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(PAPERS)
    told = CliRunner().invoke(main, ["lab", "replicate", "chen", "--quick"])
    assert told.exit_code == 0, told.output
    assert "differs from the paper" in told.stdout
    (found,) = json.loads(CliRunner().invoke(main, ["lab", "replicate", "chen", "--quick", "--json"]).stdout)
    assert found["name"] == "chen"


def test_an_unknown_replication_is_named_with_the_nearest():
    result = CliRunner().invoke(main, ["lab", "replicate", "engelkn"])
    assert result.exit_code == 2
    assert "Did you mean 'engelken'" in result.stderr


def test_the_lab_lists_the_lecture_and_says_how_long_it_takes():
    assert "lecture" in CliRunner().invoke(main, ["lab", "--help"]).stdout
    assert "minutes on two cores" in " ".join(CliRunner().invoke(main, ["lab", "lecture", "--help"]).stdout.split())
