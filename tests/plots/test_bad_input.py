"""Runs that do not fit together, or hold next to nothing: a figure or a sentence, never an empty axis."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gradscope import plots
from gradscope.errors import GradscopeError
from gradscope.plots import figures, style
from gradscope.reading.answers import decay_fits
from gradscope.schema import ClipEvent, RunMeta, StepRow
from gradscope.store import RunWriter, open_run, pack, validate
from tests.made_runs import as_format_1_0, make_run
from tests.plots.test_figures import assert_whole, extras

FROM_RUNS = [name for name in plots.PLOTS if getattr(plots.load(name), "FROM_RUNS", True)]
LONG = "a_rather_long_name." * 12


def unlike(root):
    """No site, cell or quantity in common, and one of them with a single record."""
    first = make_run(root / "lstm", extra=extras(40), sites=("encoder/l0",))
    return [first, make_run(root / "gru", (-0.1,), cell="gru", sites=("decoder.rnn/l0",), threshold=None, lags=7)]


MAKE = {
    "unlike": unlike,
    "one record": lambda root: [make_run(root / "r", (-0.2,), sequences=1, threshold=None, inputs=True)],
    "zeros": lambda root: [make_run(root / "r", norms=lambda i: np.zeros((6, 40)), inputs=True)],
    "never finite": lambda root: [make_run(root / f"r{i}", diverges_at=0, inputs=True) for i in range(2)],
    "explodes": lambda root: [make_run(root / "r", (6.0, 5.0), inputs=True), make_run(root / "s", inputs=True)],
    "long names": lambda root: [
        make_run(
            root / (LONG + str(i)), sites=(f"{LONG}{LONG}{i}/l0",), extra=extras(40), labels={"init": LONG, "seed": i}
        )
        for i in range(3)
    ],
    "one timestep": lambda root: [make_run(root / "r", lags=1, extra=extras(1))],
}


FAST = ("unlike", "long names")


@pytest.fixture(
    scope="module", params=[case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in MAKE]
)
def runs(request, tmp_path_factory):
    return MAKE[request.param](tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("name", FROM_RUNS)
def test_a_figure_or_a_sentence(name, runs):
    drawn = shown(plots.load(name), runs)
    if isinstance(drawn, str):
        assert len(drawn) > 30
        return
    data, words, figure = drawn
    assert len(words) > 60
    assert_nothing_is_empty(figure)
    names = set(data["run"]) if "run" in data else set()
    told = {*names, *data.attrs.get("left_out", {})}
    assert all(any(str(run.name) in one for one in told) for run in runs) or not names, "a run is gone without a word"


def shown(module, runs):
    """Table, caption and figure; or the sentence on why there is none."""
    try:
        data = module.table(runs)
        words = module.caption(data)
        with style.use("icml"):
            figure = figures.figure_of(module, data, "icml")
            assert_whole(figure)
    except GradscopeError as error:
        return str(error)
    return data, words, figure


def assert_nothing_is_empty(figure: Figure) -> None:
    """Every axes holds a mark, a cell, a bar or a word."""
    for ax in figure.axes:
        lines = [line for line in ax.get_lines() if np.isfinite(np.asarray(line.get_xdata(), dtype=float)).any()]
        assert lines or ax.collections or ax.patches or ax.texts or ax.images, "an axes without anything"


def told(name, runs):
    """Table and caption of a kind; or the sentence on why there is none."""
    module = plots.load(name)
    try:
        data = module.table(runs)
        return data, module.caption(data)
    except GradscopeError as error:
        return None, str(error)


def test_runs_of_mixed_formats_say_what_runs_of_one_format_say(tmp_path):
    runs = [make_run(tmp_path / name, (-0.2, -0.1), extra=extras(40), labels={"seed": name}) for name in "ab"]
    expected = {name: told(name, runs) for name in FROM_RUNS}
    mixed = [as_format_1_0(runs[0]), open_run(runs[1].path)]
    assert validate(mixed[0].path) == []
    for name, (data, words) in expected.items():
        found, said = told(name, mixed)
        assert said == words
        assert (found is None) == (data is None)
        if data is not None:
            pd.testing.assert_frame_equal(found, data)


def test_a_run_that_went_on_in_a_newer_format_reads_and_packs(tmp_path):
    as_format_1_0(make_run(tmp_path / "run", (-0.2, -0.1)))
    writer = RunWriter(tmp_path / "run", RunMeta("", "0", "0", {}, {}), restart=True)
    writer.add_step(StepRow(20, 0.0, {"loss": 0.5}))
    writer.add_clip(ClipEvent(20, "norm", 1.0, 2.0, 1.0, 0.5, 1.0, 1.0, place="update"))
    writer.close()
    runs = [open_run(tmp_path / "run"), open_run(pack(tmp_path / "run", tmp_path / "one.h5"))]
    for run in runs:
        assert run.n_records == 2
        assert run.clips()["place"].tolist() == [""] * 11 + ["update"]
        assert len(run.apart.clips()) == 12
    assert decay_fits(runs[0]).equals(decay_fits(runs[1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_RUNS)
def test_a_thousand_runs_on_one_axis(name, tmp_path_factory):
    first = make_run(tmp_path_factory.mktemp("many") / "r", (-0.1, -0.05), extra=extras(40))
    many = [Renamed(first, f"run-{i}", first.held) for i in range(1000)]
    drawn = shown(plots.load(name), many)
    if not isinstance(drawn, str):
        assert_nothing_is_empty(drawn[2])
        assert drawn[2].get_size_inches()[1] <= style.PAGE


@pytest.mark.slow
def test_two_hundred_runs_stand_on_one_page(tmp_path):
    first = make_run(tmp_path / "r", (-0.1, -0.05))
    many = [Renamed(first, f"run-{i}") for i in range(200)]
    for name in ("decay", "norms", "comparison", "sweep_metric"):
        module = plots.load(name)
        data = module.table(many)
        with style.use("neurips"):
            figure = figures.figure_of(module, data, "neurips")
            assert_whole(figure)
        assert figure.get_size_inches()[1] <= style.PAGE
        assert json.dumps(module.caption(data))


class Renamed:
    """The same run under another name."""

    def __init__(self, run, name, held=None) -> None:
        self._run, self.name, self.held = run, name, {} if held is None else held

    def __getattr__(self, name):
        return getattr(self._run, name)
