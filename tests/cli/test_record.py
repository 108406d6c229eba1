"""``gradscope record script`` does what ``python script`` does, and records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gradscope
from gradscope.cli import main
from tests.commands import CliRunner

pytest.importorskip("torch")  # it trains

EXAMPLES = Path(__file__).parents[2] / "examples"
OURS = "gradscope: "


def start(arguments, cwd, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def outcome(process):
    stdout, stderr = process.communicate(timeout=120)
    ours = [line for line in stderr.splitlines() if line.startswith(OURS)]
    theirs = [line for line in stderr.splitlines() if not line.startswith(OURS)]
    return (process.returncode, stdout, theirs), ours


def both(cwd, *arguments):
    """Return what came of the script alone and recorded, and what gradscope said."""
    cwd.mkdir(exist_ok=True)
    alone, recorded = start(arguments, cwd), start(["-m", "gradscope", "record", *arguments], cwd)
    expected, nothing = outcome(alone)
    assert nothing == []
    return expected, *outcome(recorded)


# -- what python does ------------------------------------------------------------------------------------------------

SCRIPTS = {
    "arguments": """
        import argparse, sys
        parser = argparse.ArgumentParser()
        parser.add_argument("--every", type=int)
        parser.add_argument("rest", nargs="*")
        print(parser.parse_args(), sys.argv, sys.path[0], __file__, __name__, __package__, __spec__, list(globals()))
        """,
    "help": "import argparse; argparse.ArgumentParser(description='mine').parse_args(['--help'])",
    "usage": "import argparse; argparse.ArgumentParser(description='mine').parse_args(['--nonsense'])",
    "exit code": "import sys; print('out'); sys.exit(3)",
    "exit message": "import sys; sys.exit('why it ended')",
    "uncaught": """
        def broken():
            try:
                {}['key']
            except KeyError as error:
                raise ValueError('second') from error
        def main():
            broken()
        if __name__ == '__main__':
            main()
        """,
    "an error of gradscope": "from gradscope.errors import SettingError; raise SettingError('in the script')",
    "syntax": "print('never'\nx = = 1\n",
    "hook": "import sys; sys.excepthook = lambda *_: print('my own hook'); 1 / 0",
    "exit functions": "import atexit; atexit.register(print, 'at the end'); raise SystemExit",
    "late thread": """
        import threading, time
        threading.Thread(target=lambda: (time.sleep(0.2), print('after the last line'))).start()
        """,
    "pickle": """
        import pickle
        class Mine: pass
        print(pickle.loads(pickle.dumps(Mine())).__class__ is Mine, Mine.__module__)
        """,
    "spawn": """
        import multiprocessing, sys
        class Mine:
            def __repr__(self): return 'Mine'
        def work(x):
            return f'{x} {__name__}'
        if __name__ == '__main__':
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                print(pool.map(work, [Mine()]))
        """,
    "os._exit": "import os; print('out', flush=True); os._exit(5)",
    "interrupt": "import os, signal; print('out', flush=True); os.kill(os.getpid(), signal.SIGINT); input()",
    "termination": "import os, signal; print('out', flush=True); os.kill(os.getpid(), signal.SIGTERM); input()",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_output_errors_and_exit_are_those_of_python(tmp_path, kind):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPTS[kind]))
    arguments = ["script.py", "--every", "3", "a", "--", "b c"] if kind == "arguments" else ["script.py"]
    expected, recorded, ours = both(tmp_path, *arguments)
    assert recorded == expected
    ended_itself = kind not in ("os._exit", "termination")
    assert ours == [f"{OURS}nothing was recorded: the script never imported torch"] * ended_itself


def test_the_statuses_above_are_what_they_should_be(tmp_path):
    for kind, expected in {"exit code": 3, "uncaught": 1, "interrupt": -signal.SIGINT}.items():
        (tmp_path / "script.py").write_text(SCRIPTS[kind].replace("\n        ", "\n"))
        (status, _, _), _ = outcome(start(["-m", "gradscope", "record", "script.py"], tmp_path))
        assert status == expected


def test_a_module_is_run_as_by_python_dash_m(tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("VALUE = 7\n")
    code = (
        "import sys\nfrom .other import VALUE\n"
        "print(VALUE, sys.argv, sys.path[0], __name__, __package__, __spec__.name)\n"
    )
    (package / "train.py").write_text(code)
    (package / "__main__.py").write_text(code)
    for name in ("mine.train", "mine"):
        expected, recorded, _ = both(tmp_path, "-m", name, "--help", "x")
        assert expected[0] == 0
        assert recorded == expected


def test_ctrl_c_in_a_script_that_handles_it_is_the_scripts_own(tmp_path):
    (tmp_path / "script.py").write_text(
        "import time\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved a checkpoint')\n"
    )
    process = start(["-m", "gradscope", "record", "script.py"], tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    (status, stdout, theirs), _ = outcome(process)
    assert (status, stdout, theirs) == (0, "saved a checkpoint\n", [])


# -- wrong commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.py"], "'absent.py' does not exist"),
        (["."], "'.' is a directory"),
        (["-m", "no_such_module_here"], "no module named 'no_such_module_here'"),
        (["--out", "taken", "script.py"], "'taken' exists already"),
        (["--every", "0", "script.py"], "--every"),
        (["--samples", "0", "script.py"], "--samples must be a whole number of at least 1, or all, not '0'"),
        (["--quantities", "hiden", "script.py"], "Did you mean 'hidden'?"),
        (["--quantities", ",", "script.py"], "--quantities is empty"),
        (["--sites", "", "script.py"], "--sites is empty"),
        ([], "Missing argument 'SCRIPT'"),
    ],
)
def test_a_wrong_command_is_2_before_the_script_runs(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "script.py").write_text("open('it_ran', 'w')\n")
    (tmp_path / "taken").mkdir()
    result = CliRunner().invoke(main, ["record", *arguments])
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py", "taken"]


# -- with torch ------------------------------------------------------------------------------------------------------

REAL = """
import argparse
import os
import sys

print(sorted({"torch", "numpy", "h5py"} & sys.modules.keys()), file=sys.stderr)
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    args = parser.parse_args()
    torch.manual_seed(5)
    loader = DataLoader(TensorDataset(torch.randn(24, 9, 2), torch.randn(24, 1)), 4, shuffle=True, num_workers=1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    os.chdir("/")
    for x, y in loader:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        print(loss.item())
    print(sum(p.double().sum().item() for p in model.parameters()), torch.rand(1).item())


if __name__ == "__main__":
    main()
"""


# One process has torch loaded and is forked for each script: a second instead of five for each.
FORKING = """
import atexit, json, os, runpy, sys
import torch, torch.utils.data
import gradscope.capture.launcher
from gradscope.cli import main
torch.set_num_threads(1)
for line in sys.stdin:
    script, arguments, out, alone = json.loads(line)
    if (child := os.fork()) == 0:
        for number in (1, 2):
            os.dup2(os.open(f"{out}.{number}", os.O_CREAT | os.O_WRONLY), number)
        try:
            if alone:
                sys.argv, sys.path[0], code = [script, *arguments], os.path.dirname(script), 0
                runpy.run_path(script, run_name="__main__")
            else:
                main(["record", "--every", "2", "--out", f"{out}.run", script, *arguments])
        except SystemExit as error:
            code = error.code or 0
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forking():
    process = start(["-c", FORKING], None, stdin=subprocess.PIPE)

    def run(script, arguments, out, alone):
        process.stdin.write(json.dumps([str(script), arguments, str(out), alone]) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return status, Path(f"{out}.1").read_text(), Path(f"{out}.2").read_text()

    yield run
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()
    process.stderr.close()


def test_a_real_training_is_recorded_and_bit_identical(forking, tmp_path):
    (tmp_path / "train.py").write_text(REAL)
    command = ["-m", "gradscope", "record", "--every", "2", "--samples", "all", "--quantities", "hidden,input"]
    recorded = start([*command, "train.py", "--lr", "0.1"], tmp_path)
    alone = forking(tmp_path / "train.py", ["--lr", "0.1"], tmp_path / "alone", True)
    (status, stdout, theirs), ours = outcome(recorded)
    assert (status, stdout) == alone[:2]
    assert status == 0
    assert theirs == ["[]"]  # torch and its like were not imported ahead of the script
    assert ours == [f"{OURS}3 records of 6 steps of Net in {Path('runs', 'train')}"]
    run = gradscope.open_run(tmp_path / "runs" / "train")
    assert run.sites == ("rnn/l0", "rnn/l1")
    assert run.quantities("rnn/l1") == ("hidden", "input")
    assert run.records("rnn/l0")["step"].tolist() == [0, 2, 4]
    assert run.array("rnn/l0", "hidden").shape == (3, 4, 9)
    assert run.steps()["lr"].tolist() == [0.1, 0.05, 0.025]
    assert len(run.clips()) == 6
    assert run.sealed


TEXT = "the rain in spain stays mainly in the plain and again and again. " * 12


@pytest.mark.parametrize(
    ("example", "arguments", "sites"),
    [
        ("char_lm.py", ["--epochs", "1", "--hidden", "16", "--text", "text.txt"], {"lstm/l0", "lstm/l1"}),
        ("sunspots.py", ["--epochs", "1", "--hidden", "6", "--history", "24", "--batch-size", "400"], {"gru/l0"}),
        (
            "seq2seq.py",
            ["--epochs", "1", "--pairs", "120", "--hidden", "12"],
            {"encoder.rnn/l0", "encoder.rnn/l0_reverse", "decoder.cell"},
        ),
    ],
)
def test_an_example_says_the_same_and_has_its_sites_recorded(forking, tmp_path, example, arguments, sites):
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = [str(tmp_path / a) if a == "text.txt" else a for a in arguments]
    expected = forking(EXAMPLES / example, arguments, tmp_path / "alone", True)
    status, stdout, stderr = forking(EXAMPLES / example, arguments, tmp_path / "recorded", False)
    assert (status, stdout) == expected[:2]
    assert status == 0, stderr
    run = gradscope.open_run(tmp_path / "recorded.run")
    assert set(run.sites) == sites
    assert {line.status for line in run.coverage} == {"recorded"}
    assert run.n_records == (len(run.clips().query("kind == 'norm'")) + 1) // 2 or example == "seq2seq.py"
    assert run.lost == {}
    assert stderr.startswith(f"{OURS}{run.n_records} records of")


def test_a_killed_script_keeps_what_was_flushed(forking, tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, time, torch\n"
        "layer = torch.nn.LSTM(1, 3)\n"
        "optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)\n"
        "for step in range(3):\n"
        "    layer(torch.ones(4, 1, 1))[0].sum().backward()\n"
        "    optimizer.step()\n"
        "    time.sleep(2.1 * (step == 1))\n"  # the journal is written every two seconds
        "os._exit(9)\n"
    )
    status, _, _ = forking(tmp_path / "script.py", [], tmp_path / "killed", False)
    assert status == 9
    run = gradscope.open_run(tmp_path / "killed.run")
    assert run.n_records >= 1
    assert not run.sealed
