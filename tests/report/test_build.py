from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

from gradscope.errors import EmptyRunError, RunExistsError, SettingError
from gradscope.reading.answers import answer
from gradscope.report import build_report
from gradscope.schema import RunMeta
from gradscope.store import RunWriter, open_run
from tests.made_runs import make_run

HOSTILE = "<b>&x_$1'\""
VOID = {"meta", "br", "wbr", "link", "img"}


class Page(HTMLParser):
    """Checks nesting and collects ids, references, text and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.references, self.fetched, self.text = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src"):
                (self.references if value.startswith("#") else self.fetched).append(value)
            assert name != "src" or tag == "img"
        assert tag not in ("link", "img", "iframe", "object")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    runs = [
        make_run(root / HOSTILE, (-0.2, -0.15), sites=("lstm<i>/l0",), lost={"disk <full>": 3}),
        make_run(root / "gru", (-0.2, -0.001), cell="gru", sites=("gru/l0",), threshold=None, diverges_at=7),
    ]
    return build_report(runs, root / "out"), runs


@pytest.fixture(scope="module")
def page(report):
    return Page(report[0].index.read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_every_id_unique(page):
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {ref[1:] for ref in page.references} <= set(page.ids)


def test_the_page_fetches_nothing_and_links_only_its_own_files(page, report):
    links = [link for link in page.fetched if not link.startswith("data:image/png;base64,")]
    assert not [link for link in links if ":" in link or link.startswith("/")]
    assert all((report[0].directory / link).is_file() for link in links)
    raw = report[0].index.read_text(encoding="utf-8")
    assert "http:" not in raw
    assert "https:" not in raw
    assert "@import" not in raw


def test_it_leads_with_the_answer_of_every_run_and_site(page, report):
    text = "".join(page.text)
    answers = text[text.rindex("The recorded runs") : text.rindex("Clipping")]
    said = answer(report[1][0], "lstm<i>/l0")
    assert f"{said.late.last_lag} steps back" in answers
    assert "half-life" in answers
    assert "gru/l0" in answers


def test_names_are_escaped(page):
    text = "".join(page.text)
    assert HOSTILE in text
    assert "lstm<i>/l0" in text
    assert "3 (disk <full>)" in text


def test_every_figure_has_its_files_its_data_and_its_caption(report, page):
    paths = report[0]
    names = {path.stem for path in paths.figures}
    assert {"decay", "decay_start", "training", "norms", "clipping", "comparison"} <= names
    for name in names:
        assert {path.suffix for path in paths.figures if path.stem == name} == {".pdf", ".png", ".svg"}
        assert paths.directory / "data" / f"{name}.csv" in paths.data
    assert all(path.stat().st_size > 500 for path in paths.figures)
    assert "".join(page.text).count("Figure ") == len(names)


def test_what_is_not_shown_says_what_to_record(page):
    text = "".join(page.text)
    rest = text[text.rindex("Not shown") :]
    assert "quantities=[..., 'gates']" in rest
    assert "Lyapunov spectrum needs the model itself: gradscope.spectrum(model, x)" in rest


def test_the_summary_is_strict_sorted_json_with_the_fits_numbers(report):
    paths, runs = report

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    raw = paths.summary.read_text(encoding="utf-8")
    summary = json.loads(raw, parse_constant=refuse)
    assert raw == json.dumps(summary, indent=2, sort_keys=True) + "\n"
    late = summary["runs"][0]["sites"][0]["late"]
    fit = answer(runs[0], "lstm<i>/l0").late
    assert late["rate"] == fit.rate
    assert late["half_life_interval"] == list(fit.half_life_interval)
    assert [run["diverged_at"] for run in summary["runs"]] == [None, 7]
    assert [run["final_loss"] is None for run in summary["runs"]] == [False, True]
    assert summary["runs"][0]["lost"] == {"disk <full>": 3}


@pytest.mark.slow
def test_a_report_is_the_same_bytes_every_time(tmp_path):
    run = make_run(tmp_path / "r", (-0.2,))
    first, second = (build_report([run], tmp_path / name) for name in ("a", "b"))
    files = sorted(path.relative_to(first.directory) for path in first.directory.rglob("*") if path.is_file())
    assert len(files) > 8
    for name in files:
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes(), name


def test_an_existing_report_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RunExistsError, match="nothing is overwritten"):
        build_report([make_run(tmp_path / "r", (-0.2,))], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_empty_run_writes_nothing(tmp_path):
    writer = RunWriter(tmp_path / "r", RunMeta("", "0", "0", {}, {}))
    writer.close()
    with pytest.raises(EmptyRunError):
        build_report([open_run(tmp_path / "r")], tmp_path / "out")
    with pytest.raises(SettingError):
        build_report([], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    run = make_run(tmp_path / "r", (-0.2,))
    monkeypatch.setattr("gradscope.report.figures.pictures_of", lambda *_, **__: ([], {}))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(OSError, match="disk full"):
        build_report([run], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.slow
def test_a_sweep_leads_with_loss_by_threshold(tmp_path):
    runs = [make_run(tmp_path / f"r{i}", threshold=t, seed=i) for i, t in enumerate((None, 1.0))]
    paths = build_report(runs, tmp_path / "out", sweep=True)
    assert {"sweep_loss", "sweep_metric", "norm_distribution"} <= {path.stem for path in paths.figures}


def test_reporting_never_imports_torch():
    code = "import sys, gradscope.report, gradscope.cli.report, gradscope.cli.plot; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_table_behind_a_figure_has_fewer_lags_where_it_would_be_very_long(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", lags=41)
    whole = build_report([run], tmp_path / "whole", shown=["decay"])
    monkeypatch.setattr("gradscope.report.figures.MOST_ROWS", 20)
    thinned = build_report([run], tmp_path / "thinned", shown=["decay"])
    lags, kept = (list(pd.read_csv(paths.data[0])["lag"]) for paths in (whole, thinned))
    assert (lags, kept) == (list(range(41)), [*range(0, 40, 3), 40])
    assert "data</a> (one lag in 3)" in thinned.index.read_text()
    assert "(one lag in" not in whole.index.read_text()
    said, of_whole = (json.loads(paths.summary.read_text())["figures"]["decay"] for paths in (thinned, whole))
    assert said == {**of_whole, "data": "one lag in 3"}
