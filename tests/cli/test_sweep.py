from __future__ import annotations

import json

import pytest

from gradscope.cli import main
from tests.commands import CliRunner

pytest.importorskip("torch")  # it trains

SMALL = ["--task", "adding", "--length", "8", "--steps", "3", "--batch", "8", "--hidden", "4"]


def sweep(*arguments):
    here = [] if {"cell", "page", "--dask", "--slurm"} & set(arguments) else ["--jobs", "1"]
    return CliRunner().invoke(main, ["sweep", *SMALL, *here, *map(str, arguments)])


def test_the_table_has_one_line_per_point_and_json_one_row_per_training(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.cli.sweep._report", lambda *_: "")
    out = tmp_path / "out"
    arguments = ["-o", out, "--cell", "rnn,lstm", "--init", "default,forget1", "--clip", "none,0.5", "--seed", "0,1"]
    result = sweep(*arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:5] == ["cell", "init", "length", "clip", "seeds"]
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["rnn", "default", "8", "none"],
        ["rnn", "default", "8", "0.5"],
        ["lstm", "default", "8", "none"],
    ]
    assert "left out: init forget1 is not meant for rnn" in result.stderr
    rows = json.loads(sweep(*arguments, "--json").stdout)
    assert len(rows) == 3 * 2 * 2
    assert {row["clip"] for row in rows} == {None, 0.5}


def test_it_ends_with_what_was_found_and_a_report_that_says_so_too(tmp_path):
    out = tmp_path / "out"
    arguments = ["-o", out, "--clip", "none,0.5", "--seed", "0,1", "--every", "2"]
    result = sweep(*arguments)
    assert result.exit_code == 0, result.output
    found = [line for line in result.stdout.splitlines() if "cannot be told from no clipping" in line]
    told = json.loads((out / "report" / "summary.json").read_text())["told"]
    assert found
    assert found[0] in told[1]["text"]
    assert found[0].split(";")[0] in (out / "report" / "index.html").read_text()
    figures = {path.stem for path in (out / "report" / "figures").iterdir()}
    assert figures == {"sweep_loss", "sweep_metric", "norm_distribution", "sweep_decay"}


def test_the_quantity_asked_for_is_the_one_shown(tmp_path):
    result = sweep("-o", tmp_path / "out", "--clip", "none,0.5", "--seed", "0", "--every", "2", "--quantity", "input")
    assert result.exit_code == 0, result.output
    assert "rate: log10 of the gradient (input) per step back" in result.stdout
    assert "Of the gradient with respect to the input at the last timestep" in result.stdout
    assert all(rate[0] in "+−" for line in result.stdout.splitlines()[1:3] for rate in line.split()[-2:])
    drawn = (tmp_path / "out" / "report" / "data" / "sweep_decay.csv").read_text()
    assert ",input," in drawn.splitlines()[1]


@pytest.mark.slow
def test_a_sweep_that_grew_has_its_report_replaced(tmp_path):
    arguments = ["-o", tmp_path / "out", "--clip", "none,0.5", "--every", "2"]
    for seeds, runs in (("0", 2), ("0,1", 4)):
        assert sweep(*arguments, "--seed", seeds).exit_code == 0
        assert len(json.loads((tmp_path / "out" / "report" / "summary.json").read_text())["runs"]) == runs


def test_trainings_without_a_recurrence_end_without_a_report(tmp_path):
    result = sweep("-o", tmp_path / "out", "--cell", "window", "--seed", "0")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clip", "none,-1"], "'-1' is not a positive threshold"),
        (["--seed", "0,zero"], "'zero' is not a seed"),
        (["--seed", "1,1"], "twice"),
        (["--cell", "lsmt"], "Did you mean 'lstm'"),
        (["--init", "xavier"], "unknown init 'xavier'"),
        (["--task", "adding2"], "Did you mean 'adding'"),
        (["--quantity", "inputs"], "Did you mean 'input'"),
        (["--quantity", "cell"], "no cell of the sweep has cell"),
        (["--steps", "0"], "steps 0 must be at least 1"),
        (["--jobs", "0"], "jobs 0 must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named_with_exit_code_2_and_nothing_is_made(tmp_path, arguments, said):
    result = sweep("-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_array_trains_cells_by_index_and_a_page_is_made_of_those_that_are_done(tmp_path):
    out = tmp_path / "out"
    asked = ["-o", out, "--clip", "none,0.5", "--seed", "0,1", "--every", "2"]
    listed = json.loads(sweep(*asked, "--json", "cell").stdout)
    assert [(one["index"], one["done"]) for one in listed] == [(i, False) for i in range(4)]
    for index in (0, 2, 3):
        assert sweep(*asked, "cell", "--index", index).stdout == f"{listed[index]['name']}\n"
    assert [line[:12].split() for line in sweep(*asked, "cell").stdout.splitlines()] == [
        ["0", "done"], ["1"], ["2", "done"], ["3", "done"]
    ]  # fmt: skip
    told = sweep(*asked, "page")
    assert told.exit_code == 0, told.output
    assert "not done yet: 1 of 4 cells" in told.stderr
    assert (out / "report" / "index.html").exists()
    assert len(json.loads((out / "report" / "summary.json").read_text())["runs"]) == 3
    assert len((out / "results.csv").read_text().splitlines()) == 4
    refused = sweep(*asked, "cell", "--index", 4)
    assert (refused.exit_code, "0 to 3" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dask", "tcp://x:1", "--slurm"], "either --dask or --slurm"),
        (["--dask", "tcp://x:1", "--jobs", "2"], "Dask's workers decide"),
        (["--slurm-option", "mem_gb=4"], "goes with --slurm"),
        (["--slurm", "cell", "--index", "0"], "not for cell"),
    ],
)
def test_a_wrong_choice_of_machines_is_refused_before_anything_is_made(tmp_path, arguments, said):
    result = sweep("-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
