"""Figures, one module each: ``table(runs, ...)`` gathers the data, ``draw(table, ax=None, ...)`` pictures it.

Every module has ``TITLE``, ``NEEDS`` (what to record for it), ``table``, ``draw`` and ``caption``; the table is exactly
what is drawn and what is saved as CSV. :mod:`gradscope.plots.style` holds the look, :mod:`gradscope.plots.saving`
the files.

    >>> from gradscope import open_run, plots
    >>> decay = plots.load("decay")                          # doctest: +SKIP
    >>> axes = decay.draw(decay.table([open_run("run")]))    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from types import ModuleType

from gradscope.errors import UnknownNameError

#: Figure name to the module that draws it. Loaded on first use: matplotlib is slow to import.
PLOTS: dict[str, str] = {
    "clipping": "gradscope.plots.clipping",
    "comparison": "gradscope.plots.comparison",
    "connectivity": "gradscope.plots.connectivity",
    "decay": "gradscope.plots.decay",
    "dynamics": "gradscope.plots.dynamics",
    "evidence": "gradscope.plots.evidence",
    "gates": "gradscope.plots.gates",
    "learning": "gradscope.plots.learning",
    "lyapunov": "gradscope.plots.lyapunov",
    "map": "gradscope.plots.map",
    "norm_distribution": "gradscope.plots.norm_distribution",
    "norms": "gradscope.plots.norms",
    "source_target": "gradscope.plots.source_target",
    "spectrum": "gradscope.plots.spectrum",
    "story": "gradscope.plots.story",
    "sweep_loss": "gradscope.plots.sweep_loss",
    "sweep_metric": "gradscope.plots.sweep_metric",
    "timescales": "gradscope.plots.timescales",
    "training": "gradscope.plots.training",
    "weight": "gradscope.plots.weight",
    "whatif": "gradscope.plots.whatif",
}

__all__ = ["PLOTS", "load"]


def load(name: str) -> ModuleType:
    """The module of the figure called ``name``.

    Raises
    ------
    UnknownNameError
        With the nearest names.
    """
    if name not in PLOTS:
        raise UnknownNameError("plot", name, PLOTS)
    return importlib.import_module(PLOTS[name])
