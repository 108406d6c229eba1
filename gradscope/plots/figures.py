"""From a table to a whole figure and its files, the same way for every kind of figure."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gradscope.errors import SettingError, UnknownNameError
from gradscope.plots import load
from gradscope.plots import style as styles
from gradscope.plots.saving import save


def drawer(module: ModuleType) -> Callable[..., Any]:
    """What draws the whole figure: ``panels`` (a grid) where the module has it, else ``draw`` (one Axes)."""
    found: Callable[..., Any] = getattr(module, "panels", module.draw)
    return found


def figure_of(module: ModuleType, data: pd.DataFrame, style: str = "screen", **options: Any) -> Figure:
    """The whole figure of a table. Call it, and save the figure, inside :func:`gradscope.plots.style.use`."""
    drawn = drawer(module)(data, style_name=style, **options)
    return drawn if isinstance(drawn, Figure) else drawn.figure


def plot_runs(kind: str, runs: Sequence[Any], *, ax: Any = None, **options: Any) -> Any:
    """Draw one figure of some runs, in the caller's own matplotlib style.

    Parameters
    ----------
    kind : str
        A key of ``gradscope.plots.PLOTS``.
    runs : sequence of Run
    ax : Axes, optional
        Drawn there; by default in a figure of its own, with as many panels as it needs.
    **options
        Of the figure's ``table``, ``draw`` or ``panels``.

    Returns
    -------
    Figure, or what the kind draws into ``ax`` where that was given

    Raises
    ------
    UnknownNameError
        No such figure, or no such option.
    SettingError
        The figure is not drawn from runs.
    """
    module = load(kind)
    if not getattr(module, "FROM_RUNS", True):
        raise SettingError(f"the figure {kind!r} is not drawn from a recording: it needs {module.NEEDS}.")
    draw = module.draw if ax is not None else drawer(module)
    gathers, looks = (set(inspect.signature(function).parameters) for function in (module.table, draw))
    for name in options:
        if name not in gathers | looks:
            raise UnknownNameError("option", name, (gathers | looks) - {"runs", "data", "ax", "style_name"})
    data = module.table(runs, **{name: value for name, value in options.items() if name in gathers})
    look = {name: value for name, value in options.items() if name in looks}
    if ax is not None:
        return draw(data, ax, **look)
    drawn = draw(data, **look)
    # A notebook shows a figure; an Axes is a line of text there.
    return drawn if isinstance(drawn, Figure) else drawn.figure


def provenance(runs: Sequence[Any]) -> dict[str, Any]:
    """What a figure was made from, for its metadata: no paths of the machine, no date of drawing."""
    return {"runs": [{"name": str(run.name), "created_at": run.meta.created_at} for run in runs]}


def write(
    module: ModuleType,
    data: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    style: str = "screen",
    runs: Sequence[Any] = (),
    **options: Any,
) -> list[Path]:
    """Draw ``data`` in a style and write it, with the data beside it.

    Parameters
    ----------
    module : module
        From :func:`gradscope.plots.load`.
    data : DataFrame
        From its ``table``.
    path : path
        Ends in .pdf, .svg, .png or .pgf.
    style : str
        A key of :data:`gradscope.plots.style.PRESETS`.
    runs : sequence of Run
        Named in the file's metadata.
    **options
        Of the module's ``draw`` or ``panels``.

    Returns
    -------
    list of Path

    Raises
    ------
    UnknownNameError, SettingError
    """
    with styles.use(style):
        figure = figure_of(module, data, style, **options)
        kind = module.__name__.rpartition(".")[2]
        return save(figure, path, data=data, title=module.TITLE, provenance={**provenance(runs), "plot": kind})
