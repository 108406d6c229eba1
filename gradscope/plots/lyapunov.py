"""Lyapunov spectrum of the joint state: growth rates of all directions, largest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.errors import SettingError
from gradscope.plots import lines, marks, style
from gradscope.words import few, number

TITLE = "Lyapunov spectrum"
NEEDS = "the model itself: gradscope.spectrum(model, x), drawn by gradscope.plots.lyapunov"
FROM_RUNS = False
PROBES = "Spectrum"


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
    own, ax = ax is None, style.axes(ax, style=style_name)
    looks = style.looks(list(dict.fromkeys(data["run"])))
    shown = data.assign(index=data["index"] + 1)
    marks.whole_x(ax, shown["index"])
    lines.draw(ax, shown, looks, x="index", y="exponent", line="run", log=False)
    destroyed = shown[np.isneginf(shown["exponent"])]
    for name, rows in destroyed.groupby("run", sort=False):
        marks.at_edge(ax, rows["index"], top=False, color=looks[str(name)]["color"], label="destroyed")
    ax.axhline(0.0, color=style.GREY, linewidth=0.8, linestyle=":", label="_preserved", zorder=1)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_xlabel("index of the exponent")
    ax.set_ylabel("exponent (ln per step)")
    if legend and len(looks) > 1:
        ends = data[np.isfinite(data["exponent"])].groupby("run")["exponent"].last().to_dict()
        lines.name(ax, looks, ends, beside=own)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    top = data[data["index"] == 0]
    each = few([f"{row.run} {number(row.exponent)}" for row in top.itertuples()])
    return (
        "Lyapunov exponents of the joint state in order of size, natural logarithm per step; at 0 a direction is "
        f"preserved, above it grows. Largest: {each}. Triangles: directions that are destroyed."
    )
