"""Which figures a report shows, and what to record for those it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope import plots
from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.plots import style
from gradscope.plots.figures import figure_of
from gradscope.plots.saving import render
from gradscope.reading import read_all
from gradscope.reading.select import recorded

FORMATS = ("pdf", "png", "svg")


@dataclass(frozen=True)
class Wanted:
    """A figure of the report: its file name, the plot that draws it, how it is named and parametrised."""

    name: str
    plot: str
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    when: Callable[[Sequence[Any]], bool] = lambda runs: True


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure as files: bytes per format, the table behind it, and words."""

    name: str
    title: str
    caption: str
    files: dict[str, bytes]
    data: pd.DataFrame


def _several_steps(runs: Sequence[Any]) -> bool:
    return any(run.records(site)["step"].nunique() > 1 for run in read_all(runs) for site in _recorded_sites(run))


def _recorded_sites(run: Any) -> list[str]:
    return [site for site in run.sites if recorded(run, site)]


#: In the order of the page: the answer, how it came about, clipping, then what only some runs have.
WANTED = (
    Wanted("decay", "decay", "Decay of the gradient at the end of training"),
    Wanted("decay_start", "decay", "Decay of the gradient at the start", {"step": "early"}, _several_steps),
    Wanted("training", "training", when=_several_steps),
    Wanted("comparison", "comparison", when=lambda runs: len(runs) > 1),
    Wanted("norms", "norms"),
    Wanted("clipping", "clipping"),
    Wanted("gates", "gates"),
    Wanted("timescales", "timescales"),
    Wanted("weight", "weight"),
)

#: For runs that differ in their clipping threshold and seed only; drawn first, because the threshold is the question.
SWEEP = (
    Wanted("sweep_loss", "sweep_loss"),
    Wanted("sweep_metric", "sweep_metric"),
    Wanted("norm_distribution", "norm_distribution"),
)

#: Not from a recording, whatever it holds: the page says how to measure them.
MEASURED = ("source_target", "spectrum", "lyapunov", "whatif")


def draw_all(
    runs: Sequence[Any], provenance: dict[str, Any], *, sweep: bool = False, shown: Sequence[str] | None = None
) -> tuple[list[Drawn], dict[str, str]]:
    """Every figure (of those ``shown``) the runs' data allow, and for the others (by title) what to record."""
    drawn, missing = [], {}
    for wanted in (*SWEEP, *WANTED) if sweep else WANTED:
        module = plots.load(wanted.plot)
        if not wanted.when(runs) or (shown is not None and wanted.name not in shown):
            continue
        try:
            data = module.table(runs, **wanted.options)
        except (NotRecordedError, EmptyRunError):
            missing[wanted.title or module.TITLE] = module.NEEDS
            continue
        drawn.append(_draw(wanted, module, data, provenance))
    if shown is None:
        missing |= {module.TITLE: module.NEEDS for module in map(plots.load, MEASURED)}
    return drawn, missing


def _draw(wanted: Wanted, module: Any, data: pd.DataFrame, provenance: dict[str, Any]) -> Drawn:
    title = wanted.title or module.TITLE
    with style.use("screen"):
        figure = figure_of(module, data, "screen")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough for all formats, and they agree
        facts = {**provenance, "plot": wanted.plot, "options": wanted.options}
        files = {kind: render(figure, kind, title=title, provenance=facts, dpi=200) for kind in FORMATS}
    return Drawn(wanted.name, title, module.caption(data), files, data)
