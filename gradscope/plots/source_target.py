"""Source–target matrix: how much of the loss at step t depends on the state at step s."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import heatmap, style

TITLE = "Gradient from each target to each source step"
NEEDS = "the model itself: gradscope.source_target(model, closure), drawn by gradscope.plots.source_target"
FROM_RUNS = False
PROBES = "SourceTarget"

QUANTITIES = ("hidden", "cell")


def table(measured: Any, *, quantity: str | None = None) -> pd.DataFrame:
    """The matrix as rows ``quantity, target, source, norm``.

    Parameters
    ----------
    measured : SourceTarget or array_like, shape (N, T)
        From :func:`gradscope.source_target`; or ‖∂L_t/∂h_s‖ at [t, s] for N targets and T source steps.
    quantity : str, optional
        ``hidden`` or ``cell``; by default what describes the memory of the site. An array is what you say it is.

    Returns
    -------
    DataFrame
        Of a square matrix the half that is zero throughout (sources after their target; before it, at a reverse site)
        is left out: there causality allows no gradient, so a zero says nothing of the model.

    Raises
    ------
    SettingError
        Not a matrix.
    UnknownNameError, NotRecordedError
        A quantity that does not exist, or that this site has not.
    """
    values, name = _read(measured, quantity)
    targets, sources = values.shape
    target, source = (index.ravel() for index in np.indices(values.shape))
    kept = np.ones(target.size, dtype=bool)
    if targets == sources and targets > 1:
        later, earlier = np.triu(values, 1).any(), np.tril(values, -1).any()
        if not later and (earlier or not _reverse(measured)):
            kept = source <= target
        elif not earlier:
            kept = source >= target
    rows = {"target": target[kept], "source": source[kept], "norm": values.ravel()[kept]}
    return pd.DataFrame({"quantity": name, **rows})


def _read(measured: Any, quantity: str | None) -> tuple[Any, str]:
    if quantity is not None and quantity not in QUANTITIES:
        raise UnknownNameError("quantity", quantity, QUANTITIES)
    values, name = measured, quantity or "hidden"
    if hasattr(measured, "info"):
        name = quantity or measured.info.curve
        values = getattr(measured, name)
        if values is None:
            raise NotRecordedError(f"{measured.info.site} has no cell state: ask for quantity='hidden'.")
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise SettingError(f"a source-target matrix is (targets, steps), got shape {matrix.shape}.")
    return matrix, name


def _reverse(measured: Any) -> bool:
    return bool(getattr(getattr(measured, "info", None), "reverse", False))


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """Targets downwards, source steps to the right, logarithmic colour; grey is exactly zero, white impossible."""
    targets, sources = int(data["target"].max()) + 1, int(data["source"].max()) + 1
    square = targets == sources
    aspect = 0.8 if square else float(np.clip(0.25 + 0.5 * targets / sources, 0.3, 0.8))
    ax = style.axes(ax, style=style_name, aspect=aspect)
    grid = np.full((targets, sources), np.nan)
    grid[data["target"], data["source"]] = data["norm"]
    mesh = heatmap.draw(ax, grid, left=0, top=0)
    ax.set_xlim(-0.5, sources - 0.5)
    ax.set_ylim(targets - 0.5, -0.5)
    if square:
        ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.set_xlabel("source step $s$")
    ax.set_ylabel("target step $t$" if square else "target $t$")
    state = "c" if data["quantity"].iloc[0] == "cell" else "h"
    heatmap.bar([ax], mesh, rf"$\Vert \partial L_t/\partial {state}_s \Vert$")
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    targets, sources = int(data["target"].max()) + 1, int(data["source"].max()) + 1
    state = "cell" if data["quantity"].iloc[0] == "cell" else "hidden"
    if len(data) == targets * sources:
        blank = ""
    elif (data["source"] <= data["target"]).all():
        blank = " Sources after their target cannot matter and are left blank."
    else:
        blank = " This direction runs backwards: sources before their target cannot matter and are left blank."
    return (
        f"Norm of the gradient of each of {targets} losses (rows) with respect to the {state} state at each of "
        f"{sources} source steps.{blank} Colours span at most {heatmap.MAX_DECADES:.0f} decades. Grey: exactly zero."
    )
