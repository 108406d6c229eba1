import subprocess
import sys
from html import escape

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import gradscope
from gradscope import schema
from gradscope.errors import SettingError, UnknownNameError
from gradscope.plots import load
from gradscope.reading.answers import decay_fits
from tests.made_runs import make_run


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "lstm", np.linspace(-0.2, -0.1, 20))
    return gradscope.open_run(tmp_path / "lstm")


def test_a_fit_of_a_run_is_that_of_its_answer(run):
    fit = run.decay("lstm/l0")
    (said,) = run.answers()
    assert (fit.rate, fit.interval, fit.verdict) == (said.late.rate, said.late.interval, said.late.verdict)
    assert run.decay(part="first").rate == pytest.approx(-0.2, abs=0.01)  # one site need not be named
    assert run.decay("lstm/l0", lag_range=(10, 20)).lag_range == (10, 20)


def test_an_option_that_the_fit_does_not_have_is_named_beside_those_that_it_has(run):
    with pytest.raises(UnknownNameError, match=r"'lag_rang'. Did you mean 'lag_range'\? Known: confidence, horizon"):
        run.decay(lag_rang=(10, 20))
    with pytest.raises(UnknownNameError, match="'steps'"):  # known to the function, and taken from the run here
        run.decay(steps=[1])


def test_the_tenth_use_of_a_layer_comes_after_the_second_in_tables_and_legends(tmp_path):
    found = ("a/l0", "b/l0", "a/l0#10", "a/l0#9", "a/l0#2")  # a backward pass meets the last one first
    make_run(tmp_path / "run", sites=found)
    run = gradscope.open_run(tmp_path / "run")
    in_order = ["a/l0", "a/l0#2", "a/l0#9", "a/l0#10", "b/l0"]
    assert list(run.sites) == in_order
    assert [said.site for said in run.answers()] == in_order
    assert decay_fits(run).site.drop_duplicates().tolist() == in_order
    assert load("decay").table([run]).site.drop_duplicates().tolist() == in_order
    assert list(schema.in_order(["x", *found])) == ["x", *in_order]


def test_one_of_several_sites_is_to_be_named(tmp_path):
    make_run(tmp_path / "run", sites=("a/l0", "b/l0"))
    run = gradscope.open_run(tmp_path / "run")
    for ask in (run.decay, run.to_xarray):
        with pytest.raises(SettingError, match="2 sites; say which: a/l0, b/l0"):
            ask()
    with pytest.raises(UnknownNameError, match="Did you mean"):
        run.decay("a/l1")


def test_printing_a_run_answers_the_question(run):
    said = str(run)
    assert said.startswith("Run 'lstm': 20 records at 1 site, sealed")
    assert (
        f"  {run.decay().verdict.upper()}  lstm/l0 (cell), steps 180–190: the gradient reaching 39 steps back is"
        in said
    )
    assert "norm clipping at 1 changed" in said
    assert run.what_now()
    assert all(f"  {line}" in said for line in run.what_now())
    assert "<script>" not in run._repr_html_()
    assert run.answers()[0].sentence.split(": ", 1)[1].split(" [")[0] == str(run.decay())
    assert escape(str(run.decay())) in run.decay()._repr_html_()


def test_what_is_wrong_with_clipping_is_said_before_anything_else(tmp_path):
    rnn = torch.nn.RNN(2, 3)
    optimizer = torch.optim.SGD(rnn.parameters(), 0.1)
    with gradscope.record(rnn, tmp_path / "run", optimizer=optimizer, every=1):
        for _ in range(3):
            rnn(torch.randn(7, 2, 2))[0].sum().backward()
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(rnn.parameters(), 0.1)
            optimizer.zero_grad()
    first = str(gradscope.open_run(tmp_path / "run")).splitlines()[1]
    assert first.startswith("  3 of 3 clipping calls came after the update: ")


def test_a_run_without_a_record_is_printed_all_the_same(tmp_path):
    make_run(tmp_path / "empty", sites=())
    assert "no site has a curve" in str(gradscope.open_run(tmp_path / "empty"))


def test_names_from_a_stranger_do_not_become_markup(tmp_path):
    make_run(tmp_path / "run", sites=("<b>x</b>/l0",))
    assert "<b>x</b>" not in gradscope.open_run(tmp_path / "run")._repr_html_()


def test_clipping_and_thresholds_come_from_the_runs_own_norms(run):
    (clip,) = run.clipping()
    norms = run.clips()["norm_before"].to_numpy()
    assert clip.fraction_clipped == pytest.approx(np.mean(norms > 1))
    assert str(run.suggest_threshold()).startswith("Thresholds from ")
    assert run.suggest_threshold().median == pytest.approx(np.median(norms))


def test_a_run_is_drawn_into_an_axes_or_a_figure_of_its_own(run):
    matplotlib.use("agg")
    figure = Figure()
    ax = figure.add_subplot()
    assert run.plot("decay", ax=ax, relative=False) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 10 ** run.decay().curve.log10)
    assert isinstance(run.plot("decay", step="first"), Figure)
    assert isinstance(run.plot("training"), Figure)
    with pytest.raises(UnknownNameError, match="Did you mean 'quantity'"):
        run.plot("decay", quantty="cell")
    with pytest.raises(SettingError, match="not drawn from a recording"):
        run.plot("spectrum")


def test_a_figure_of_a_run_shows_itself_once_in_a_notebook(run):
    from matplotlib import pyplot

    figure = run.plot("decay")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []  # what pyplot knows is shown once more at the end of a cell


def test_xarray_holds_what_was_recorded(run):
    pytest.importorskip("xarray")
    data = run.to_xarray()
    assert data["cell"].dims == ("record", "sequence", "lag")
    np.testing.assert_array_equal(data["cell"], run.array("lstm/l0", "cell"))
    assert data["step"].to_numpy().tolist() == list(range(0, 200, 10))
    assert data.attrs["site"] == "lstm/l0"


def test_runs_are_compared_in_one_table(run, tmp_path):
    make_run(tmp_path / "rnn", (-0.3,), cell="rnn_tanh", sites=("rnn/l0",))
    other = gradscope.open_run(tmp_path / "rnn")
    table = gradscope.compare([run, other])
    assert table["run"].tolist() == ["lstm", "rnn"]
    assert table["rate"].tolist() == [run.decay().rate, other.decay().rate]


def test_opening_a_run_loads_no_more_than_the_store(run):
    code = (
        f"import sys, gradscope; gradscope.open_run({str(run.path)!r}).sites; "
        "print([m for m in ('torch', 'matplotlib', 'pandas', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_runs_are_compared_however_they_are_given(run):
    expected = gradscope.compare([run])
    for given in (run, run.path, str(run.path), [str(run.path)]):
        assert gradscope.compare(given).equals(expected)


def test_the_decay_of_one_recorded_step_is_asked_for_by_its_number(run):
    one, first = run.decay(step=0), run.decay(part="first")
    assert (one.rate, one.interval, one.n_steps) == (first.rate, first.interval, 1)
    assert run.decay(step=190).rate != one.rate
