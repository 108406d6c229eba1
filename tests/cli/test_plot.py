from __future__ import annotations

import pytest

from gradscope import plots
from gradscope.cli import main
from tests.commands import CliRunner
from tests.made_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "lstm"
    make_run(path).close()
    return path


def call(*args: object):
    return CliRunner().invoke(main, ["plot", *map(str, args)])


@pytest.mark.parametrize("kind", ["decay", "training", "clipping", "norms"])
def test_it_writes_the_figure_and_its_data(run, tmp_path, kind):
    out = tmp_path / "figure.pdf"
    done = call(kind, run, "-o", out)
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"%PDF")
    assert done.stdout.split() == [str(out), str(out.with_suffix(".csv"))]
    assert "run," in out.with_suffix(".csv").read_text()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["decy"], 2, "Did you mean 'decay'"),
        (["decay", "--quantity", "input"], 1, "quantities=[..., 'input']"),
        (["decay", "--quantity", "hiden"], 2, "hidden"),
        (["decay", "--site", "lstm/l7"], 2, "lstm/l0"),
        (["decay", "--style", "neurisp"], 2, "neurips"),
        (["decay", "--step", "soon"], 2, "one of first, early, late, last, all"),
        (["norms", "--site", "lstm/l0"], 2, "does not apply"),
        (["source_target"], 2, "gradscope.source_target("),
        (["map"], 2, "labels"),
        (["gates"], 1, "quantities=[..., 'gates']"),
    ],
)
def test_a_wrong_call_says_what_to_do_and_writes_nothing(run, tmp_path, args, code, words):
    done = call(args[0], run, "-o", tmp_path / "figure.svg", *args[1:])
    assert done.exit_code == code
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_existing_figure_or_its_data_is_replaced_only_when_forced(run, tmp_path):
    out, table = tmp_path / "figure.svg", tmp_path / "figure.csv"
    out.write_text("mine")
    refused = call("decay", run, "-o", out)
    assert (refused.exit_code, out.read_text()) == (2, "mine")
    assert f"{out} exists already; choose another -o, or replace it with --force." in refused.stderr
    out.unlink()
    table.write_text("my,own\n")
    refused = call("decay", run, "-o", out)
    assert (refused.exit_code, table.read_text(), out.exists()) == (2, "my,own\n", False)
    assert f"{table} exists already" in refused.stderr
    assert call("decay", run, "-o", out, "--force").exit_code == 0
    assert "run," in table.read_text()
    assert call("decay", run, "-o", out.with_suffix(".png")).exit_code == 0  # the same data in a second format


def test_help_lists_every_figure():
    shown = call("--help").stdout
    assert all(name in shown for name in plots.PLOTS)


def test_options_reach_the_figure(run, tmp_path):
    out = tmp_path / "f.svg"
    assert call("decay", run, "-o", out, "--step", "first", "--quantity", "hidden", "--absolute").exit_code == 0
    rows = out.with_suffix(".csv").read_text().splitlines()
    assert rows[1].split(",")[2:4] == ["hidden", "0"]


def test_a_figure_is_drawn_again_from_its_data_alone(run, tmp_path):
    assert call("decay", run, "-o", tmp_path / "first.svg").exit_code == 0
    done = call("decay", tmp_path / "first.csv", "-o", tmp_path / "again.svg")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "first.csv").read_text()
    foreign = call("sweep_loss", tmp_path / "first.csv", "-o", tmp_path / "no.svg")
    assert foreign.exit_code == 2
    assert "not the data of a figure 'sweep_loss', it has no column threshold; that is the CSV" in foreign.stderr


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Every kind of probe, saved: a spectrum at two steps, a matrix, a what-if."""
    import torch
    from torch import nn

    import gradscope

    root, module, x = tmp_path_factory.mktemp("probes"), nn.GRU(2, 3), torch.randn(6, 2, 2)
    for step in (0, 10):
        gradscope.spectrum(module, x).save(root / f"spectrum{step}.npz", step=step)
    gradscope.source_target(module, lambda: module(x)[0].pow(2).sum(2)).save(root / "matrix.npz")
    gradscope.clip_whatif(module, lambda: module(x)[0][-1].sum(), [1e-2]).save(root / "whatif.npz")
    return root


@pytest.mark.parametrize(
    ("kind", "files", "options"),
    [
        ("spectrum", ["spectrum0"], []),
        ("lyapunov", ["spectrum0", "spectrum10"], []),
        ("dynamics", ["spectrum0", "spectrum10"], []),
        ("source_target", ["matrix"], []),
        ("connectivity", ["matrix"], ["--target", "3", "--tokens", "a,b,c,d,e,f"]),
        ("whatif", ["whatif"], []),
    ],
)
def test_what_was_measured_on_demand_is_drawn_from_its_file(probes, tmp_path, kind, files, options):
    done = call(kind, *(probes / f"{name}.npz" for name in files), "-o", tmp_path / "f.png", *options)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "f.png").stat().st_size > 3000
    wrong = call("decay", probes / "matrix.npz", "-o", tmp_path / "no.png")
    assert wrong.exit_code == 2
    assert "drawn from runs" in wrong.stderr
