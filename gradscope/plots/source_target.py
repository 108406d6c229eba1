"""Source–target matrix: how much of the loss at step t depends on the state at step s."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from gradscope.errors import SettingError
from gradscope.plots import heatmap, style

TITLE = "Gradient from each target step to each source step"
NEEDS = "a measurement on demand of ‖∂L_t/∂h_s‖, drawn with gradscope.plots.source_target.draw(table(matrix))"
FROM_RUNS = False


def table(matrix: ArrayLike) -> pd.DataFrame:
    """The matrix as rows ``target, source, norm``; sources after their target (exactly 0 by causality) are left out.

    Parameters
    ----------
    matrix : array_like, shape (T, T)
        ‖∂L_t/∂h_s‖ at [t, s].

    Raises
    ------
    SettingError
        It is not square.
    """
    values: Any = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise SettingError(f"a source-target matrix is square, (T, T), got shape {values.shape}.")
    target, source = np.tril_indices(len(values))
    return pd.DataFrame({"target": target, "source": source, "norm": values[target, source]})


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """Lower triangle: target steps downwards, source steps to the right, logarithmic colour; grey is exactly zero."""
    ax = style.axes(ax, style=style_name, aspect=0.8)
    size = int(data["target"].max()) + 1
    grid = np.full((size, size), np.nan)
    grid[data["target"], data["source"]] = data["norm"]
    mesh = heatmap.draw(ax, grid, left=0, top=0)
    ax.set_xlim(-0.5, size - 0.5)
    ax.set_ylim(size - 0.5, -0.5)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.set_xlabel("source step $s$")
    ax.set_ylabel("target step $t$")
    heatmap.bar([ax], mesh, r"$\Vert \partial L_t/\partial h_s \Vert$")
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    return (
        f"Norm of the gradient of the loss at each target step with respect to the hidden state at each source step, "
        f"{int(data['target'].max()) + 1} steps. Later sources cannot matter and are left blank. "
        "Colours span at most 12 decades. Grey: exactly zero."
    )
