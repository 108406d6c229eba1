from __future__ import annotations

import h5py
import numpy as np
import pytest

from gradscope.cli import main
from gradscope.lab.demo import trainings
from gradscope.store import open_run
from gradscope.words import number
from tests.commands import CliRunner


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
    assert "what was learnt, and at which threshold, says nothing yet" in said
    names = [plan.name for plan in trainings.plans()]
    for name in names:
        with open_run(out / "runs" / name) as run:
            assert run.records("recurrent/l0")["step"].min() == 0
    vanished = [number(first_input(out / "runs", name), 1) for name in ("rnn", "lstm", "gru")]
    kept = [number(first_input(out / "runs", name), 1) for name in ("lstm-chrono", "gru-chrono")]
    assert f"{vanished[0]}, {vanished[1]} and {vanished[2]} arrives at the first" in said
    assert f"With chrono biases {kept[0]} arrives in the LSTM and {kept[1]} in the GRU" in said


def first_input(runs, network):
    """Share of ∂L/∂x at the last input that arrives at the first, before training: median of the seeds, from HDF5."""
    arrives = []
    for name in [network, *(f"{network}-initial-seed-{seed}" for seed in range(1, 5))]:
        with h5py.File(next((runs / name).glob("attempt-1/rank-0/*.h5"))) as file:
            norms = np.log10(file["sites/recurrent/l0/input"][0])  # (sequence, lag)
        arrives.append(10 ** (norms[:, -1] - norms[:, 0]).mean())
    return float(np.median(arrives))


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
