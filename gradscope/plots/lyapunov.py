"""Lyapunov spectrum of the joint state: growth rates of all directions, largest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.errors import SettingError
from gradscope.plots import marks, style
from gradscope.plots.text import label

TITLE = "Lyapunov spectrum"
NEEDS = "the model itself: gradscope.spectrum(model, x), drawn by gradscope.plots.lyapunov"
FROM_RUNS = False


def table(spectra: Mapping[str, Any]) -> pd.DataFrame:
    """One row per exponent.

    Parameters
    ----------
    spectra : mapping of str to Spectrum or array_like, shape (k,)
        Name of a model or run to what :func:`gradscope.spectrum` measured, or to its exponents (ln per step).

    Returns
    -------
    DataFrame
        run, index (0 is the largest), exponent; ``-inf`` for a direction that is destroyed.

    Raises
    ------
    SettingError
        Nothing to draw.
    """
    frames = []
    for name, exponents in spectra.items():
        values = np.asarray(getattr(exponents, "exponents", exponents), dtype=np.float64).ravel()
        values = np.sort(values)[::-1]
        frames.append(pd.DataFrame({"run": name, "index": np.arange(values.size), "exponent": values}))
    if not frames or not any(len(frame) for frame in frames):
        raise SettingError("no exponents to draw: pass a mapping of names to exponents.")
    return pd.concat(frames, ignore_index=True)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Exponents in order of size, one line per run; 0 (preserved) dotted, destroyed directions marked below."""
    ax = style.axes(ax, style=style_name)
    lines = list(data.groupby("run", sort=False))
    marks.whole_x(ax, data["index"] + 1)
    for i, (name, rows) in enumerate(lines):
        look, every = style.look(i), style.mark_every(len(rows), i, 12)
        exponent = rows["exponent"].where(np.isfinite(rows["exponent"]))
        ax.plot(rows["index"] + 1, exponent, label=label(str(name), style.name_limit(ax)), markevery=every, **look)
        gone = rows["index"][np.isneginf(rows["exponent"])] + 1
        marks.at_edge(ax, gone, top=False, color=look["color"], label="destroyed")
    ax.axhline(0.0, color=style.GREY, linewidth=0.8, linestyle=":", label="_preserved", zorder=1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_xlabel("index of the exponent")
    ax.set_ylabel("exponent (ln per step)")
    if legend and len(lines) > 1:
        style.legend(ax)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    return (
        "Lyapunov exponents of the joint state in order of size, natural logarithm per step; at 0 a direction is "
        "preserved, above it grows. Triangles: directions that are destroyed."
    )
