from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from gradscope import store
from gradscope.cli import completing, main
from gradscope.plots import PLOTS
from tests.made_runs import make_run


def completed(line: str) -> list[str]:
    """What a shell is offered for the last word of a line."""
    *words, last = line.split(" ")
    return [
        item.value for item in ShellComplete(main, {}, "gradscope", "_GRADSCOPE_COMPLETE").get_completions(words, last)
    ]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "lstm", sites=("encoder.lstm/l0", "decoder.lstm/l0")).close()
    make_run(tmp_path / "runs" / "gru", sites=("gru/l0",), cell="gru").close()
    store.pack(tmp_path / "runs" / "gru", tmp_path / "gru.h5")
    monkeypatch.chdir(tmp_path)


def test_commands_figures_and_styles():
    assert completed("re") == ["record", "report", "repair"]
    assert completed("plot ") == list(PLOTS)
    assert completed("plot de") == ["decay"]
    assert completed("plot decay run --style ic") == ["iclr", "icml", "icml2"]


def test_tasks_and_the_last_name_of_a_list_of_cells_or_initialisations():
    assert completed("sweep --task ") == ["digits", "adding", "temporal_order", "copy", "sunspots"]
    assert completed("sweep --cell rnn,l") == ["rnn,lstm", "rnn,lru"]
    assert completed("sweep --init ch") == ["chrono"]


@pytest.mark.usefixtures("runs")
def test_runs_below_the_place_and_packed_files():
    assert completed("report ") == ["gru.h5", "runs/gru", "runs/lstm"]
    assert completed("inspect runs/l") == ["runs/lstm"]
    assert completed("plot decay ./runs/g") == ["./runs/gru"]
    here = Path.cwd()
    assert completed(f"validate {here}/runs/l") == [f"{here}/runs/lstm"]


@pytest.mark.usefixtures("runs")
def test_where_no_run_fits_the_shell_completes_files():
    shell = ShellComplete(main, {}, "gradscope", "_GRADSCOPE_COMPLETE")
    (item,) = shell.get_completions(["plot", "spectrum"], "probes/")
    assert (item.type, item.value) == ("file", "probes/")


@pytest.mark.usefixtures("runs")
def test_sites_of_the_runs_on_the_line():
    assert completed("plot decay runs/lstm --site ") == ["encoder.lstm/l0", "decoder.lstm/l0"]
    assert completed("plot decay runs/lstm runs/gru --site g") == ["gru/l0"]
    assert completed("export runs/gru --table norms --site ") == ["gru/l0"]
    assert completed("plot decay runs/none --site ") == []


def test_the_names_are_those_of_the_registries():
    style = pytest.importorskip("gradscope.plots.style")
    assert list(completing.STYLES) == list(style.PRESETS)
    pytest.importorskip("torch")
    from gradscope.lab.zoo import models, tasks

    assert list(completing.TASKS) == list(tasks.TASKS)
    assert list(completing.CELLS) == list(models.CELLS)
    assert list(completing.INITS) == list(models.INITS)


def test_a_keystroke_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys\nfrom click.shell_completion import ShellComplete\nfrom gradscope.cli import main\n"
        "shell = ShellComplete(main, {}, 'gradscope', 'X')\n"
        "plot = ['plot', 'decay', 'run', '--style']\n"
        "for words in (['plot'], plot, ['sweep', '--task'], ['sweep', '--cell'], ['report']):\n"
        "    assert shell.get_completions(words, '')\n"
        "assert not {'torch', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
