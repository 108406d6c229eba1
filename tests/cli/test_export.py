import csv
import io

import pytest

from gradscope.cli import main
from tests.cli.runs import write_run
from tests.commands import CliRunner


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run")
    return tmp_path / "run"


def _invoke(*args):
    return CliRunner().invoke(main, ["export", *map(str, args)])


def test_every_table_lands_in_a_new_directory(run, tmp_path):
    result = _invoke(run, "-o", tmp_path / "out")
    assert result.exit_code == 0
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.csv"))
    assert files == [
        "clips.csv",
        "parameters.csv",
        "sites/lstm/l0/cell.csv",
        "sites/lstm/l0/hidden.csv",
        "sites/lstm/l0/records.csv",
        "steps.csv",
    ]
    assert sorted(result.stdout.split()) == [str(tmp_path / "out" / file) for file in files]
    text = (tmp_path / "out/sites/lstm/l0/cell.csv").read_text()
    assert text.splitlines()[:2] == ["step,sequence,lag,norm,micro,attempt,rank,flag", "0,0,0,1.0,0,1,0,"]
    cell = list(csv.DictReader(io.StringIO(text)))
    assert len(cell) == 2 * (3 + 2)
    assert {row["norm"] for row in cell if row["step"] == "10"} == {"0.5"}


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("steps", "loss", "0.25"),
        ("clips", "norm_before", "2.0"),
        ("parameters", "lstm.weight", "2.0"),
        ("norms", "norm", "1.0"),
    ],
)
def test_one_table_goes_to_stdout(run, table, column, value):
    result = _invoke(run, "--table", table)
    assert (result.exit_code, result.stderr) == (0, "")
    assert next(csv.DictReader(io.StringIO(result.stdout)))[column] == value


def test_norms_are_of_the_quantity_that_describes_the_site_unless_asked(run):
    assert ",1.0," in _invoke(run, "--table", "norms").stdout.splitlines()[1]
    assert ",0.25," in _invoke(run, "--table", "norms", "--quantity", "hidden").stdout.splitlines()[1]


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    result = _invoke(run, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "never overwritten" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_every_table_goes_beside_where_nothing_is_said(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (written, *_) = _invoke(run).stdout.splitlines()
    assert written.startswith("run-csv")
    assert (tmp_path / "run-csv" / "steps.csv").exists()


def test_a_failure_halfway_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    before = set(tmp_path.iterdir())
    monkeypatch.setattr("os.rename", full)
    result = _invoke(run, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "x", "--table", "steps"],
        ["--table", "steps", "--site", "lstm/l0"],
        ["--table", "records", "--quantity", "cell"],
        ["--table", "nonsense"],
        ["--table", "norms", "--site", "lstm/l7"],
        ["--table", "norms", "--quantity", "hiden"],
    ],
)
def test_a_wrong_call_is_a_usage_error(run, options):
    result = _invoke(run, *options)
    assert (result.exit_code, result.stdout) == (2, "")


def test_several_sites_must_be_told_apart(tmp_path):
    write_run(tmp_path / "two", sites=("a/l0", "b/l0"))
    result = _invoke(tmp_path / "two", "--table", "norms")
    assert result.exit_code == 2
    assert "2 sites; say whose norms: a/l0, b/l0" in result.stderr


def test_what_was_not_recorded_and_an_empty_run_are_bad_data(run, tmp_path):
    assert _invoke(run, "--table", "norms", "--quantity", "weight").exit_code == 1
    write_run(tmp_path / "empty", steps=())
    result = _invoke(tmp_path / "empty", "--table", "norms")
    assert result.exit_code == 1
    assert "holds no record" in result.stderr
    assert _invoke(tmp_path / "empty", "-o", tmp_path / "out").exit_code == 0


def test_a_site_cannot_lead_out_of_the_directory(tmp_path):
    write_run(tmp_path / "run", sites=("../../evil/l0", ".."))
    assert _invoke(tmp_path / "run", "-o", tmp_path / "deep").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "run"]
