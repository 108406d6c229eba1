"""Singular values of the Jacobian between two times: whether every direction survives, or only a few."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from gradscope.diagnostics.spectrum import spectrum_band
from gradscope.errors import SettingError
from gradscope.plots import marks, style

TITLE = "Singular values of the Jacobian against lag"
NEEDS = "a measurement on demand of ∂s_T/∂s_t, drawn with gradscope.plots.spectrum.draw(table(singular_values))"
FROM_RUNS = False

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


def table(singular_values: ArrayLike) -> pd.DataFrame:
    """Quantiles over the singular values at each lag.

    Parameters
    ----------
    singular_values : array_like, shape (L, S) or (L, ..., S)
        Of ∂s_T/∂s_t; row k is lag k. Axes between (sequences) are pooled.

    Returns
    -------
    DataFrame
        lag, ``smallest``, ``q25``, ``median``, ``q75``, ``largest``, ``effective_rank``.

    Raises
    ------
    SettingError
        Fewer than two axes.
    """
    values = np.asarray(singular_values, dtype=np.float64)
    if values.ndim < 2 or not values.size:
        raise SettingError(f"singular values come as (lag, ..., value), got shape {values.shape}.")
    band = spectrum_band(values, LEVELS)
    columns = dict(zip(("smallest", "q25", "median", "q75", "largest"), band.quantiles.T, strict=True))
    return pd.DataFrame({"lag": np.arange(len(values)), **columns, "effective_rank": band.effective_rank})


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Median (line), middle half and full range (bands) of the singular values; 1 is dotted."""
    ax = style.axes(ax, style=style_name)
    marks.whole_x(ax, data["lag"])
    colour = style.PALETTE[0]
    quantiles = ["smallest", "q25", "median", "q75", "largest"]
    marks.log_y(ax, [data[name] for name in quantiles])
    floor = ax.get_ylim()[0]  # a zero has no place on the axis, the band still reaches down to it
    for low, high in (("smallest", "largest"), ("q25", "q75")):
        marks.band(ax, data["lag"], data[low].clip(lower=floor), data[high].clip(lower=floor), colour)
    ax.plot(data["lag"], data["median"], color=colour, label="median")
    ax.plot(data["lag"], data["largest"], color=colour, linewidth=0.8, linestyle="--", label="largest")
    ax.plot(data["lag"], data["smallest"], color=colour, linewidth=0.8, linestyle=":", label="smallest")
    ax.axhline(1.0, color=style.GREY, linewidth=0.8, linestyle=":", label="_preserved")
    marks.at_edge(ax, data["lag"][data["smallest"] == 0], top=False, color=colour, label="zero")
    marks.at_edge(ax, data["lag"][~np.isfinite(data["largest"])], top=True, color=colour, label="not finite")
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(r"singular values of $\partial s_T/\partial s_t$")
    if legend:
        style.legend(ax)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    return (
        "Singular values of the Jacobian of the last joint state with respect to the joint state at each lag, 0 to "
        f"{data['lag'].max()}: median, middle half (dark band), full range (light band). Triangles: exactly zero."
    )
