from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gradscope.cli import main

SMALL = ["--task", "adding", "--length", "8", "--steps", "3", "--batch", "8", "--hidden", "4"]


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep", *SMALL, *map(str, arguments)])


def test_the_table_has_one_line_per_point_and_json_one_row_per_training(tmp_path):
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clip", "none,-1"], "'-1' is not a positive threshold"),
        (["--seed", "0,zero"], "'zero' is not a seed"),
        (["--seed", "1,1"], "twice"),
        (["--cell", "lsmt"], "Did you mean 'lstm'"),
        (["--init", "xavier"], "unknown init 'xavier'"),
        (["--task", "adding2"], "Did you mean 'adding'"),
        (["--steps", "0"], "steps 0 must be at least 1"),
        (["--jobs", "0"], "jobs 0 must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named_with_exit_code_2_and_nothing_is_made(tmp_path, arguments, said):
    result = sweep("-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()
