import json

from gradscope.cli import main
from tests.cli.runs import write_run
from tests.commands import CliRunner


def test_a_good_run_is_0_and_a_changed_one_1(tmp_path):
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad")
    segment = next((tmp_path / "bad").rglob("*.h5"))
    segment.write_bytes(segment.read_bytes() + b"x")
    good = CliRunner().invoke(main, ["validate", str(tmp_path / "good")])
    assert (good.exit_code, good.stderr) == (0, "")
    assert "whole and unaltered" in good.stdout
    both = CliRunner().invoke(main, ["validate", str(tmp_path / "good"), str(tmp_path / "bad"), "--json"])
    assert both.exit_code == 1
    first, second = json.loads(both.stdout)
    assert first["problems"] == []
    assert "differs from its checksum" in second["problems"][0]


def test_a_missing_run_is_an_error(tmp_path):
    result = CliRunner().invoke(main, ["validate", str(tmp_path / "nowhere")])
    assert (result.exit_code, result.stdout) == (1, "")
