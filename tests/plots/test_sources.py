"""A figure drawn from the CSV beside it is the figure of the runs."""

from __future__ import annotations

import pytest

from gradscope import plots
from gradscope.plots import figures, style
from gradscope.plots.saving import csv_bytes
from gradscope.plots.sources import read_table
from tests.made_runs import make_run
from tests.plots.test_figures import extras

FROM_RUNS = [name for name in plots.PLOTS if getattr(plots.load(name), "FROM_RUNS", True)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two cells at two thresholds, of which one diverged: some columns are known for some rows only."""
    root = tmp_path_factory.mktemp("runs")
    chance = {"init": "default", "seed": 0, "chance_loss": 2.3}
    return [
        make_run(
            root / f"{cell}-{threshold}", (-0.1, -0.05), cell=cell, threshold=threshold, inputs=True, seed=i,
            extra=extras(40, gates=4 if cell == "lstm" else 3), labels=chance,
            scalars={"held_out_accuracy": 0.5, "held_out_loss": 1.0}, diverges_at=5 if i == 3 else None,
        )
        for i, (cell, threshold) in enumerate((c, t) for c in ("lstm", "gru") for t in (0.5, None))
    ]  # fmt: skip


@pytest.mark.parametrize("kind", FROM_RUNS)
def test_every_kind_is_drawn_from_its_csv_as_from_the_runs(kind, runs, tmp_path):
    module = plots.load(kind)
    data = module.table(runs)
    path = tmp_path / "figure.csv"
    path.write_bytes(csv_bytes(data))
    again = read_table(path)
    data.attrs.clear()  # what is left out is no row of the CSV
    assert module.caption(again) == module.caption(data)
    with style.use("screen"):
        ours, theirs = (figures.figure_of(module, table, "screen") for table in (again, data))
        for drawn, known in zip(ours.axes, theirs.axes, strict=True):
            assert drawn.get_ylim() == pytest.approx(known.get_ylim())
        assert [len(ax.get_lines()) for ax in ours.axes] == [len(ax.get_lines()) for ax in theirs.axes]
