"""Which figures a report shows, and what to record for those it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradscope import plots
from gradscope.errors import EmptyRunError, NotRecordedError
from gradscope.reading import read_all
from gradscope.reading.labelled import SEED, labels_of
from gradscope.reading.select import recorded
from gradscope.report.telling import Picture


@dataclass(frozen=True)
class Wanted:
    """A figure of the report: its file name, the plot that draws it, how it is named and parametrised."""

    name: str
    plot: str
    title: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    when: Callable[[Sequence[Any]], bool] = lambda runs: True


def _several_steps(runs: Sequence[Any]) -> bool:
    return any(run.records(site)["step"].nunique() > 1 for run in read_all(runs) for site in _recorded_sites(run))


def _recorded_sites(run: Any) -> list[str]:
    return [site for site in run.sites if recorded(run, site)]


def _labelled(runs: Sequence[Any]) -> bool:
    """Whether runs say what tells them apart: then one figure tells their story."""
    return len(runs) > 1 and any({"init", SEED} & set(labels_of(run)) for run in runs)


_ABSOLUTE = {"absolute": {"relative": False}}

#: In the order of the page: the answer, how it came about, clipping, then what only some runs have.
WANTED = (
    Wanted("story", "story", when=_labelled),
    Wanted("decay", "decay", "Decay of the gradient at the end of training", views=_ABSOLUTE),
    Wanted("decay_input", "decay", "Gradient of the input at the end of training", {"quantity": "input"}, _ABSOLUTE),
    Wanted("decay_start", "decay", "Decay of the gradient at the start", {"step": "early"}, when=_several_steps),
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

#: Rows of the table behind a figure. Of more, which very many sites of long sequences have, some lags are left out.
MOST_ROWS = 500_000

#: Not from a recording, whatever it holds: the page says how to measure them.
MEASURED = ("source_target", "connectivity", "spectrum", "lyapunov", "dynamics", "whatif")


def pictures_of(
    runs: Sequence[Any], *, sweep: bool = False, shown: Sequence[str] | None = None, quantity: str | None = None
) -> tuple[list[Picture], dict[str, str]]:
    """Every figure (of those ``shown``) the runs' data allow, and for the others (by title) what to record.

    ``quantity`` is what the curves against lag are of, in place of what describes each site.
    """
    found, missing = [], {}
    for wanted in (*SWEEP, *WANTED) if sweep else WANTED:
        module = plots.load(wanted.plot)
        if not wanted.when(runs) or (shown is not None and wanted.name not in shown):
            continue
        title = wanted.title or module.TITLE
        options = wanted.options
        if quantity is not None and wanted.plot in ("decay", "training"):
            if "quantity" in options:
                continue  # shown already
            options = {**options, "quantity": quantity}
        try:
            data = module.table(runs, **options)
        except (NotRecordedError, EmptyRunError):
            missing[title] = module.NEEDS
            continue
        words = module.caption(data)
        kept, thinned = _thinned(data)
        found.append(
            Picture(
                wanted.name, wanted.plot, title, words, kept, gathered=options, views=wanted.views, thinned=thinned
            )
        )  # fmt: skip
    if shown is None:
        missing |= {module.TITLE: module.NEEDS for module in map(plots.load, MEASURED)}
    return found, missing


def _thinned(data: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table as a page can hold it, and which part of it that is: with fewer lags, where it is very long.

    They are still more than a figure has pixels for, and the runs have them all.
    """
    across = next((name for name in ("lag", "time") if name in data), "")
    every = -(-len(data) // MOST_ROWS)
    if every < 2 or not across:
        return data, ""
    at = data[across]
    kept = data[(at % every == 0) | (at == at.max())].reset_index(drop=True)
    return kept, f"one {'lag' if across == 'lag' else 'timestep'} in {every}"
