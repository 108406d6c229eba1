"""What every figure must hold to, on ordinary, short, long, diverged, single-record and hostile runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from gradscope import plots
from gradscope.errors import GradscopeError, SettingError, UnknownNameError
from gradscope.plots import figures, style
from gradscope.plots.saving import render
from tests.made_runs import make_run

#: A map needs runs that differ in two settings; it has tests of its own.
FROM_RUNS = [name for name in plots.PLOTS if getattr(plots.load(name), "FROM_RUNS", True) and name != "map"]


def clipped(n: int) -> SimpleNamespace:
    """What ``gradscope.clip_whatif`` gives, for curves that fall by a tenth of a decade per lag."""
    fall = 10.0 ** (-0.1 * np.arange(n))
    thresholds = (np.inf, 1e-1, 1e-2)
    curves = np.stack([np.broadcast_to(np.minimum(fall, c), (4, n)) for c in thresholds])
    share = np.stack([(fall >= c).astype(float) for c in thresholds])
    info = SimpleNamespace(site="lstm/l0", curve="cell")
    return SimpleNamespace(
        info=info, thresholds=thresholds, lags=np.arange(n), norms={"hidden": curves, "cell": curves / 2}, clipped=share
    )


def claims(n: int) -> list[SimpleNamespace]:
    """Statements with a ratio and a difference each, met, not met and open; a value of zero; long words."""
    ratio = SimpleNamespace(where="at $initialisation_ on the digits " * 2, what="ratio", low=0.0, high=0.5, log=True)
    plain = SimpleNamespace(where="after training", what="difference of rates", low=-np.inf, high=0.0, log=False)
    values = [10.0**-i for i in range(min(n, 12))]
    answers = [
        SimpleNamespace(asked=ratio, values=values, mean=1e-3, interval=(1e-4, 1e-2), met=True),
        SimpleNamespace(asked=plain, values=values, mean=0.3, interval=(0.1, 0.5), met=False),
        SimpleNamespace(asked=replace_where(ratio, "zero"), values=[0.0] * 2, mean=0.0, interval=None, met=None),
    ]
    return [SimpleNamespace(statement=f"So it is, number {i}.", outcome="refined", answers=answers) for i in range(2)]


def replace_where(asked: SimpleNamespace, where: str) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(asked), "where": where})


def probe(step: int, lost: float = 0.0) -> SimpleNamespace:
    """What ``gradscope.spectrum`` gives at a step of training."""
    logs = np.stack([np.zeros((2, 2)), np.full((2, 2), -float(step))], axis=-1) - np.array([0.0, lost])
    return SimpleNamespace(lags=np.arange(2), log_singular_values=logs, exponents_per_sequence=np.full((2, 3), -step))


FROM_ARRAYS = {
    "evidence": lambda n: claims(n),
    "learning": lambda n: {
        "rnn": [(1 / np.arange(1, n + 1), {1: 1.0, n: 0.1}), (2 / np.arange(1, n + 1), {1: 2.0, n: 0.5})],
        "a_$": [([np.nan] * n, {})],
    },
    "connectivity": lambda n: SimpleNamespace(
        info=SimpleNamespace(site="lstm/l0", curve="cell"), input=np.tril(np.full((n, n), 0.5))
    ),
    "dynamics": lambda n: {"a": {3 * i: probe(i) for i in range(min(n, 9))}, "b_$": {0: probe(1, np.inf)}},
    "source_target": lambda n: np.tril(10.0 ** -np.abs(np.subtract.outer(np.arange(n), np.arange(n)) * 0.1)),
    "spectrum": lambda n: 10.0 ** (-0.1 * np.arange(n)[:, None] * np.linspace(0, 2, 5)),
    "lyapunov": lambda n: {"a": -np.arange(n) / 4.0, "b_$": [-0.5] * n},
    "whatif": lambda n: clipped(n),
}


def extras(lags: int, gates: int = 4, sequences: int = 6) -> dict[str, np.ndarray]:
    fall = 10.0 ** (-0.05 * np.arange(lags))
    return {
        "gates": np.broadcast_to(fall, (sequences, gates, lags)) * np.arange(1, gates + 1)[:, None],
        "input": np.broadcast_to(fall, (sequences, lags)).copy(),
        "weight": fall[::-1].copy(),
        "gate_mean": np.full((gates, 8), 0.8),
        "gate_log_mean": -np.geomspace(0.01, 3, 8 * gates).reshape(gates, 8),
        "gate_low": np.zeros(gates),
        "gate_high": np.zeros(gates),
    }


def _several(root):
    thresholds = (None, 1.0, 5.0)
    rates = [(-0.1, -0.05 * i) for i in range(14)]
    return [
        make_run(root / f"run_{i}", r, threshold=thresholds[i % 3], seed=i, extra=extras(40))
        for i, r in enumerate(rates)
    ]


MAKE = {
    "ordinary": lambda root: [make_run(root / "lstm", extra=extras(40))],
    "short": lambda root: [make_run(root / "short", lags=3, extra=extras(3))],
    "long": lambda root: [make_run(root / "long", (-0.01, -0.02), lags=5000, extra=extras(5000))],
    "diverged": lambda root: [make_run(root / "diverged", diverges_at=15, extra=extras(40))],
    "single": lambda root: [make_run(root / "single", (-0.2,), sequences=1, extra=extras(40, sequences=1))],
    "zeros": lambda root: [make_run(root / "zeros", norms=lambda i: np.zeros((6, 40)), extra=extras(40))],
    "hostile": lambda root: [
        make_run(root / "a_$b$ %&#", sites=("very." * 20 + "_x$\\alpha$\n/l0",), extra=extras(40))
    ],
    "several": _several,
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def runs(case):
        if case not in made:
            made[case] = MAKE[case](tmp_path_factory.mktemp("runs"))
        return made[case]

    return runs


def drawn(name: str, data, preset: str) -> Figure:
    return figures.figure_of(plots.load(name), data, preset)


FAST, SLOW = ("ordinary", "diverged"), ("hostile", "short", "long", "single", "zeros", "several")


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
@pytest.mark.parametrize("name", FROM_RUNS)
def test_every_figure_can_be_drawn_in_a_column_and_nothing_is_cut_off(name, case, cases):
    data = plots.load(name).table(cases(case))
    with style.use("icml"):
        figure = drawn(name, data, "icml")
        assert_whole(figure)
        assert figure.get_size_inches()[0] == pytest.approx(3.25)


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FAST, *SLOW])
@pytest.mark.parametrize("name", FROM_RUNS)
def test_every_figure_can_be_drawn_on_a_page_and_nothing_is_cut_off(name, case, cases):
    with style.use("screen"):
        assert_whole(drawn(name, plots.load(name).table(cases(case)), "screen"))


@pytest.mark.parametrize("size", [1, 50, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 700))])
@pytest.mark.parametrize("name", FROM_ARRAYS)
def test_every_figure_of_arrays_can_be_drawn_and_nothing_is_cut_off(name, size):
    data = plots.load(name).table(FROM_ARRAYS[name](size))
    with style.use("icml"):
        assert_whole(drawn(name, data, "icml"))


def assert_whole(figure: Figure) -> None:
    """Every text and legend lies within the page, and no axes has collapsed."""
    figure.draw_without_rendering()
    page = figure.bbox.padded(1.0)
    for ax in figure.axes:
        assert ax.bbox.width > 3
        assert ax.bbox.height > 10
        texts = [ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title, *ax.get_xticklabels(), *ax.get_yticklabels()]
        boxes = [t.get_window_extent() for t in texts if t.get_text() and t.get_visible() and _in_view(ax, t)]
        if ax.get_legend():
            boxes.append(ax.get_legend().get_window_extent())
        for box in boxes:
            assert page.x0 <= box.x0, "cut off on the left"
            assert page.x1 >= box.x1, "cut off on the right"
            assert page.y0 <= box.y0, "cut off below"
            assert page.y1 >= box.y1, "cut off above"


def _in_view(ax, text) -> bool:
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        labels = axis.get_ticklabels()
        if text in labels:
            at = axis.get_ticklocs()[labels.index(text)]
            return bool(min(limits) <= at <= max(limits))
    return True


@pytest.mark.parametrize("name", [*FROM_RUNS, *FROM_ARRAYS])
def test_axes_are_labelled_and_the_caption_speaks(name, cases):
    module = plots.load(name)
    data = module.table(FROM_ARRAYS[name](20) if name in FROM_ARRAYS else cases("ordinary"))
    with style.use("screen"):
        ax = module.draw(data)
    assert ax.get_xlabel() or ax.figure.axes[-1].get_xlabel()  # stacked panels share one
    assert ax.get_ylabel() or name == "comparison"
    assert len(module.caption(data)) > 60
    assert module.TITLE
    assert module.NEEDS


@pytest.mark.parametrize("name", [*FROM_RUNS, *FROM_ARRAYS])
def test_an_axes_that_is_given_is_the_one_drawn_on(name, cases):
    module = plots.load(name)
    data = module.table(FROM_ARRAYS[name](20) if name in FROM_ARRAYS else cases("ordinary"))
    with style.use("screen"):
        figure = Figure(figsize=(4, 3))
        ax = figure.subplots()
        assert module.draw(data, ax) is ax
    assert tuple(figure.get_size_inches()) == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "norms", "gates"])
def test_the_same_runs_give_the_same_bytes(name, cases):
    module = plots.load(name)

    def once() -> bytes:
        data = module.table(cases("ordinary"))
        with style.use("neurips"):
            return render(figures.figure_of(module, data, "neurips"), "svg")

    assert once() == once()


@pytest.mark.parametrize("name", ["decay", "training"])
def test_unknown_sites_and_quantities_are_named(name, cases):
    module = plots.load(name)
    with pytest.raises(UnknownNameError, match="lstm/l0"):
        module.table(cases("ordinary"), site="lstm/l1")
    with pytest.raises(UnknownNameError, match="hidden"):
        module.table(cases("ordinary"), quantity="hiden")


@pytest.mark.parametrize(("name", "option"), [("decay", "recurrent"), ("training", "cell_carry")])
def test_a_quantity_that_was_not_recorded_says_what_to_record(name, option, cases):
    with pytest.raises(GradscopeError, match=rf"quantities=\[\.\.\., '{option}'\]"):
        plots.load(name).table(cases("ordinary"), quantity=option)


def test_a_step_that_was_not_recorded_names_the_nearest(cases):
    with pytest.raises(SettingError, match="nearest recorded step is 10"):
        plots.load("decay").table(cases("ordinary"), step=12)


def test_an_unknown_plot_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'decay'"):
        plots.load("decy")
