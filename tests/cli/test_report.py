from __future__ import annotations

import json
from collections import Counter

import pytest

from gradscope.cli import main
from gradscope.report.drawing import Drawn
from gradscope.schema import Record
from gradscope.store import guard
from tests.cli.runs import write_run
from tests.commands import CliRunner
from tests.made_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "lstm"
    make_run(path, (-0.2,)).close()
    return path


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes seconds, and the numbers do not come from the figures."""
    monkeypatch.setattr("gradscope.report.figures.pictures_of", lambda *_, **__: ([], {}))


def call(*args: object):
    return CliRunner().invoke(main, ["report", *map(str, args)])


@pytest.mark.usefixtures("without_figures")
def test_it_writes_the_page_and_says_the_answer(run, tmp_path):
    done = call(run, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "index.html").is_file()
    assert "half-life" in done.stdout
    assert str(tmp_path / "out" / "index.html") in done.stdout


@pytest.mark.usefixtures("without_figures")
def test_it_says_what_clipping_did_and_which_thresholds_are_worth_comparing(tmp_path):
    make_run(tmp_path / "clipped", [-0.2] * 5, every=10, threshold=1.0).close()
    make_run(tmp_path / "short", (-0.2,)).close()
    lines = call(tmp_path / "clipped", tmp_path / "short", "-o", tmp_path / "out").stdout.splitlines()
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert f"clipped: {told[0]['clipping'][0]['sentence']}" in lines
    (suggested,) = (line for line in lines if line.startswith("clipped: threshold: Thresholds from "))
    assert f"from {told[0]['suggestion']['low']:.2g} to {told[0]['suggestion']['high']:.2g} " in suggested
    assert f"short: threshold: No threshold is suggested: {told[1]['suggestion']['reason']}." in lines


@pytest.mark.usefixtures("without_figures")
def test_json_is_all_there_is_on_stdout_and_a_met_verdict_exits_with_3(run, tmp_path):
    done = call(run, "-o", tmp_path / "out", "--json", "--fail-on", "vanishing", "--fail-on", "exploding")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["runs"][0]["sites"][0]["late"]["verdict"] == "vanishing"
    assert "vanishing" in done.stderr


@pytest.mark.usefixtures("without_figures")
def test_a_choice_of_records_narrows_what_is_said(tmp_path):
    make_run(tmp_path / "run", [-0.3] * 20, every=10)
    done = call(tmp_path / "run", "-o", tmp_path / "out", "--last-step", "50", "--json")
    (site,) = json.loads(done.stdout)["runs"][0]["sites"]
    assert (site["early"]["steps"], site["late"]["steps"]) == ([0, 0], [50, 50])
    wrong = call(tmp_path / "run", "-o", tmp_path / "no", "--first-step", "9", "--last-step", "3")
    assert wrong.exit_code == 2
    assert "must not be after" in wrong.stderr


def test_a_choice_that_leaves_nothing_is_told_what_there_is(run, tmp_path):
    nothing = call(run, "-o", tmp_path / "out", "--rank", "3")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert "nothing was recorded with --rank 3: there are records of rank 0, attempt 1, step 0." in nothing.stderr
    assert not (tmp_path / "out").exists()


def test_a_verdict_that_is_not_met_exits_with_0(run, tmp_path):
    assert call(run, "-o", tmp_path / "out", "--fail-on", "exploding").exit_code == 0


@pytest.mark.parametrize(("broken", "code"), [("missing", 1), ("taken", 2), ("verdict", 2)])
def test_bad_input_is_refused_before_anything_is_written(run, tmp_path, broken, code):
    out = tmp_path / "out"
    args = [tmp_path / "no-run" if broken == "missing" else run, "-o", out]
    if broken == "taken":
        out.mkdir()
        (out / "mine").write_text("x")
    if broken == "verdict":
        args += ["--fail-on", "vanishingly"]
    done = call(*args)
    assert done.exit_code == code
    assert done.stderr
    assert sorted(path.name for path in out.glob("*")) == (["mine"] if broken == "taken" else [])


@pytest.mark.usefixtures("without_figures")
def test_it_writes_the_page_anew_until_the_run_is_closed(tmp_path, monkeypatch):
    writer = write_run(tmp_path / "run", close=False)
    pages: list[str] = []

    def sleep(_):
        pages.append((tmp_path / "out" / "index.html").read_text())
        if len(pages) == 2:
            writer.close()
        else:
            writer.add_record(Record(20, 0, 5.0, {}, {"lstm.weight": 2.0}))
            writer.flush()

    monkeypatch.setattr("gradscope.store.growing.changes.__defaults__", (sleep,))
    done = call(tmp_path / "run", "-o", tmp_path / "out", "--watch")
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip().endswith(str(tmp_path / "out" / "index.html"))
    assert [line.rpartition(" at ")[2] for line in done.stderr.splitlines()] == ["2 records", "3 records", "3 records"]
    last = (tmp_path / "out" / "index.html").read_text()
    assert len({*pages, last}) == 3
    assert "not sealed" in pages[1]
    assert "not sealed" not in last
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "summary.json"]


def test_an_interval_needs_something_to_watch(run, tmp_path):
    assert call(run, "-o", tmp_path / "out", "--interval", 5).exit_code == 2


def test_every_file_of_a_run_is_opened_once(tmp_path, monkeypatch):
    """By all that is said and drawn; drawing it, and the page around it, are left out."""
    for name in ("a", "b"):
        make_run(tmp_path / name, (-0.2, -0.1), inputs=True).close()
    opened: Counter[str] = Counter()
    open_file = guard.open_file

    def counting(path):
        opened[str(path)] += 1
        return open_file(path)

    monkeypatch.setattr(guard, "open_file", counting)
    monkeypatch.setattr("gradscope.report.build.draw", lambda p, _: Drawn(p.name, p.title, p.caption, {}, p.data))
    monkeypatch.setattr("gradscope.report.page.render", lambda *_: "")
    done = call(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(opened) == 2
    assert set(opened.values()) == {1}


def test_what_came_after_a_report_is_in_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.report.figures.pictures_of", lambda *_, **__: ([], {}))
    writer = write_run(tmp_path / "run", close=False)
    assert call(tmp_path / "run", "-o", tmp_path / "one").exit_code == 0
    writer.add_record(Record(20, 0, 5.0, {}, {"lstm.weight": 2.0}))
    writer.close()
    assert call(tmp_path / "run", "-o", tmp_path / "two").exit_code == 0
    counts = [json.loads((tmp_path / n / "summary.json").read_text())["runs"][0]["records"] for n in ("one", "two")]
    assert counts == [2, 3]
