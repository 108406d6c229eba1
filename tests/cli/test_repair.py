import json

from gradscope import open_run
from gradscope.cli import main
from tests.cli.runs import write_run
from tests.commands import CliRunner
from tests.store.conftest import die


def test_a_dead_runs_journal_is_sealed(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    die(writer)
    result = CliRunner().invoke(main, ["repair", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["recovered"] == 2
    assert open_run(tmp_path / "run").sealed


def test_nothing_to_repair_is_said(tmp_path):
    write_run(tmp_path / "run")
    result = CliRunner().invoke(main, ["repair", str(tmp_path / "run")])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "nothing to repair" in result.stdout


def test_a_loss_is_named_and_exits_with_1(tmp_path):
    write_run(tmp_path / "run")
    segment = next((tmp_path / "run").rglob("*.h5"))
    segment.write_bytes(segment.read_bytes()[:100])
    result = CliRunner().invoke(main, ["repair", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert f"lost: the records of '{segment}'" in result.stdout
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "run")]).exit_code == 0
