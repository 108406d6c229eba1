import json
import subprocess
import sys

from gradscope.cli import main
from gradscope.store import pack
from tests.cli.runs import write_run
from tests.commands import CliRunner
from tests.store.conftest import record
from tests.store.conftest import write_run as write_passes


def test_a_run_is_described_with_what_it_missed(tmp_path):
    write_run(tmp_path / "run")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert result.stderr == ""
    for said in (
        "run  (sealed)",
        "Net, 1,234 parameters",
        "2 of steps 0 to 10; scalars of 2 steps and 2 clipping calls",
        "lstm/l0  lstm, 2 records of up to 2 sequences, 3 steps: hidden, cell",
        "missing: lstm/l1 (2 records): dropout between layers",
        "loss",
    ):
        assert said in result.stdout


def test_passes_that_fed_no_update_are_counted_by_what_they_were(tmp_path):
    writer = write_passes(tmp_path / "run", close=False)
    for role, count in ((1, 3), (2, 1)):
        for step in range(count):
            writer.add_record(record(step, micro=-1, role=role, parameters={}))
    writer.close()
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert "records:    3 of steps 0 to 2" in result.stdout
    assert "apart:      records of passes that fed no update: 3 whose gradient was zeroed, 1 of" in result.stdout


def test_json_is_a_list_with_one_object_per_run(tmp_path):
    write_run(tmp_path / "run", close=False)
    packed = pack(tmp_path / "run", tmp_path / "packed.h5")
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run"), str(packed), "--json"])
    directory, file = json.loads(result.stdout)
    assert (directory["name"], directory["sealed"]) == ("run", False)
    assert (file["name"], file["sealed"]) == ("packed", True)
    assert directory["sites"] == file["sites"]
    assert directory["sites"][0]["longest"] == 3
    assert directory["recorded_steps"] == [0, 10]


def test_an_empty_run_is_described_too(tmp_path):
    write_run(tmp_path / "run", steps=())
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert "none has a record" in result.stdout


def test_names_of_a_stranger_do_not_steer_the_terminal(tmp_path):
    write_run(tmp_path / "run", sites=("\x1b[2Jlstm/l0",))
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "run")])
    assert "\x1b" not in result.stdout
    assert r"\x1b[2Jlstm/l0" in result.stdout


def test_a_missing_and_a_damaged_run_are_errors_on_stderr(tmp_path):
    missing = CliRunner().invoke(main, ["inspect", str(tmp_path / "nowhere")])
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "nowhere" in missing.stderr
    (tmp_path / "file.h5").write_bytes(b"hello")
    damaged = CliRunner().invoke(main, ["inspect", str(tmp_path / "file.h5")])
    assert damaged.exit_code == 1
    assert "file.h5" in damaged.stderr


def test_reading_commands_never_load_torch(tmp_path):
    write_run(tmp_path / "run")
    run = str(tmp_path / "run")
    calls = [["inspect", run], ["export", run, "--table", "norms"], ["validate", run], ["pack", run], ["repair", run]]
    code = (
        f"import sys; from gradscope.cli import main\nfor args in {calls!r}:\n    main(args, standalone_mode=False)\n"
        "sys.exit(', '.join({'torch', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
