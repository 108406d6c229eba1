from __future__ import annotations

import pytest
from click.testing import CliRunner

from gradscope.cli import main
from gradscope.lab.demo import trainings
from gradscope.store import open_run


@pytest.mark.slow
def test_the_demo_ends_with_a_report_and_says_where(tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["demo", "--quick", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out / "report" / "index.html") in result.stdout
    assert (out / "report" / "index.html").stat().st_size > 10_000
    said = " ".join(result.stdout.split())
    for told in ("Vanishing: in RNN, LSTM and GRU alike", "Preserved, to within a factor of", "The threshold decides"):
        assert told in said
    names = [plan.name for plan in trainings.plans()]
    for name in names:
        with open_run(out / "runs" / name) as run:
            assert run.records("recurrent/l0")["step"].min() == 0


def test_the_demo_overwrites_nothing(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--quick", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert not any(tmp_path.iterdir())


def test_an_interrupted_demo_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "train", interrupt)
    result = CliRunner().invoke(main, ["demo", "--quick", "-o", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert not any(tmp_path.iterdir())
