from gradscope import open_run
from gradscope.cli import main
from tests.cli.runs import write_run
from tests.commands import CliRunner


def test_a_run_becomes_one_file_beside_it(tmp_path):
    write_run(tmp_path / "run")
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "run")])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'run.h5'}\n")
    assert open_run(tmp_path / "run.h5").n_records == 2


def test_a_file_that_exists_is_kept(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "out.h5").write_text("mine")
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "run"), "-o", str(tmp_path / "out.h5")])
    assert result.exit_code == 2
    assert (tmp_path / "out.h5").read_text() == "mine"


def test_a_missing_run_packs_nothing(tmp_path):
    result = CliRunner().invoke(main, ["pack", str(tmp_path / "nowhere")])
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []
