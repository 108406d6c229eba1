from __future__ import annotations

import subprocess
import sys

import click
import pytest

from gradscope.cli import COMMANDS, main
from gradscope.cli.group import Entry, build_main
from gradscope.errors import GradscopeError, RunError, UsageError
from tests.commands import CliRunner

GOOD = """
import click
from gradscope.errors import GradscopeError, RunError, UsageError

@click.command()
@click.argument("kind")
def act(kind):
    click.echo("before")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "lines":
        for number in range(200_000):  # more than a pipe holds
            print(number)
    errors = {"base": GradscopeError, "usage": UsageError, "run": RunError}
    if kind in errors:
        raise errors[kind]("what was wrong and what to do")
"""


@pytest.fixture
def group(tmp_path, monkeypatch):
    (tmp_path / "good_command.py").write_text(GOOD)
    (tmp_path / "broken_command.py").write_text("import a_module_that_nobody_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield build_main(
        {
            "act": Entry("good_command:act", "Act."),
            "broken": Entry("broken_command:act", "Break."),
            "absent": Entry("no_such_module_here:act", "Not there."),
        }
    )
    sys.modules.pop("good_command", None)


@pytest.mark.parametrize(("kind", "error"), [("base", GradscopeError), ("usage", UsageError), ("run", RunError)])
def test_an_error_is_one_line_on_stderr_and_its_own_exit_code(group, kind, error):
    result = CliRunner().invoke(group, ["act", kind])
    assert result.exit_code == error.exit_code
    assert result.stderr == "gradscope: error: what was wrong and what to do\n"
    assert result.stdout == "before\n"


def test_success_is_0_and_a_missing_argument_is_2(group):
    assert CliRunner().invoke(group, ["act", "well"]).exit_code == 0
    assert CliRunner().invoke(group, ["act"]).exit_code == 2


def test_a_command_that_trains_says_what_to_install_where_torch_is_missing(tmp_path):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"from gradscope.cli import main; main(['demo', '-o', {str(tmp_path / 'demo')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'gradscope demo' trains networks and needs PyTorch, which is not installed" in done.stderr
    assert "python -m pip install torch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists()


def test_an_interrupt_ends_with_the_shells_code_and_no_traceback(group):
    result = CliRunner().invoke(group, ["act", "interrupt"])
    assert result.exit_code == 130
    assert result.stderr == "gradscope: interrupted\n"


def test_help_lists_commands_without_importing_them(group):
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("act", "broken", "absent"))
    assert "good_command" not in sys.modules


def test_a_registered_command_whose_module_is_absent_says_so(group):
    result = CliRunner().invoke(group, ["absent"])
    assert result.exit_code == 1
    assert "not part of gradscope" in result.stderr


def test_a_missing_dependency_of_a_command_is_not_mistaken_for_a_missing_command(group):
    result = CliRunner().invoke(group, ["broken"])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert result.exception.name == "a_module_that_nobody_installed"


def test_a_mistyped_command_is_a_usage_error_with_the_nearest_name():
    result = CliRunner().invoke(main, ["reprot"])
    assert result.exit_code == 2
    assert "Did you mean report" in result.stderr


def test_an_unrecognisable_command_lists_what_there_is(group):
    result = CliRunner().invoke(group, ["zzzzzz"])
    assert result.exit_code == 2
    assert "Known: act, broken, absent" in result.stderr


def test_an_unknown_option_is_a_usage_error():
    assert CliRunner().invoke(main, ["--nonsense"]).exit_code == 2


def test_a_reader_that_left_early_is_no_traceback(group, tmp_path):
    code = "from gradscope.cli.group import *; build_main({'act': Entry('good_command:act', '')})()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "act", "lines"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    assert process.stdout.readline() == "before\n"
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert stderr == ""


def test_python_dash_m_is_the_command():
    result = subprocess.run(
        [sys.executable, "-m", "gradscope", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("gradscope ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_registered_command_exists_and_its_help_works(name):
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
