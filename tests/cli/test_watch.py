from __future__ import annotations

import re
import threading

from gradscope.cli import main
from gradscope.cli.watch import _Screen
from gradscope.reading.watching import News, Watch
from gradscope.store import growing
from tests.cli.runs import write_run
from tests.commands import CliRunner
from tests.made_runs import make_run
from tests.store.conftest import die


def call(*args: object):
    return CliRunner().invoke(main, ["watch", *map(str, args)])


def test_a_sealed_run_is_told_step_by_step_and_ends_with_the_answer(tmp_path):
    make_run(tmp_path / "lstm", (-0.2, -0.1))
    done = call(tmp_path / "lstm")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert re.match(
        r"step +0  loss 2.3  clipped (100|0)% of 1 call  lstm/l0 \(cell\): \S+ at lag 39, −0.2 per", lines[0]
    )
    assert lines[1].startswith("step    10")
    assert "half-life" in lines[-2]
    assert "norm clipping at 1 changed" in lines[-1]
    assert "\x1b" not in done.output


def test_it_follows_until_the_run_is_closed(tmp_path):
    writer = write_run(tmp_path / "run", close=False)
    closing = threading.Timer(0.6, writer.close)
    closing.start()
    done = call(tmp_path / "run", "--interval", 0.1)
    closing.join()
    assert done.exit_code == 0, done.output
    assert done.stdout.count("step ") >= 2
    assert "2 records" in done.stdout


def test_a_run_whose_process_died_says_so_and_how_to_seal_it(tmp_path, monkeypatch):
    die(write_run(tmp_path / "run", close=False))
    monkeypatch.setattr(growing, "PATIENCE", 0.0)
    done = call(tmp_path / "run", "--interval", 0.1)
    assert done.exit_code == 1
    assert "gradscope repair" in done.stderr
    assert "2 records" in done.stdout


def test_no_run_and_no_such_quantity_are_errors(tmp_path):
    assert "there is no run" in call(tmp_path / "nowhere").stderr
    assert call(tmp_path / "nowhere", "--quantity", "weight").exit_code == 2


def test_a_terminal_is_drawn_over_and_never_overfull(tmp_path, monkeypatch, capsys):
    """The names of a stranger's sites do not steer it."""
    make_run(tmp_path / "run", [-0.1] * 12, every=1, sites=[f"{'a' * 300}\x1b[2J{i}/l0" for i in range(6)])
    news = Watch(tmp_path / "run").look()
    for width, height in ((40, 8), (100, 30), (20, 3)):
        monkeypatch.setattr("shutil.get_terminal_size", lambda size=(width, height): size)
        screen = _Screen("run")
        screen.add(news)
        first = capsys.readouterr().out
        assert "\x1b" not in first
        lines = first.splitlines()
        assert len(lines) < max(height, 4)
        assert max(map(len, lines)) < max(width, 21)
        assert lines[0].startswith("run: 12 recorded steps"[: width - 2])
        screen.add(News((), 0))
        assert capsys.readouterr().out == f"\x1b[{len(lines)}F\x1b[J{first}"
