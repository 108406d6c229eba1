"""Which timesteps the recurrent weight gradient comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import marks, style
from gradscope.plots.decay import line_names
from gradscope.plots.text import label
from gradscope.reading import select

TITLE = "Contribution of each timestep to the recurrent weight gradient"
NEEDS = "the per-timestep weight contribution: quantities=[..., 'weight']"


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site and timestep.

    Returns
    -------
    DataFrame
        run, site, step, time; ``norm``: Frobenius norm of the timestep's contribution to ∂L/∂W_hh, summed over the
        sampled sequences (several records of the step: their root mean square); ``share`` of the largest.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames = []
    for name, run, at, _ in select.sites_with(runs, "weight", site):
        found = select.block(run, at, "weight", step)
        there = ~np.isnan(found.values).all(axis=0)
        values = found.values[:, there]
        # Over the largest first: the squares of a vanished contribution would underflow.
        largest = np.nanmax(values, axis=0, initial=0.0)
        known = np.isfinite(largest) & (largest > 0)
        over = np.where(known, largest, 1.0)
        norm = over * np.sqrt(np.nanmean((values / over) ** 2, axis=0))
        finite = norm[np.isfinite(norm)]
        top = finite.max() if finite.size and finite.max() > 0 else 1.0
        rows = {"time": np.flatnonzero(there), "norm": norm, "share": norm / top}
        frames.append(pd.DataFrame({"run": name, "site": at, "step": found.step, **rows}))
    return pd.concat(frames, ignore_index=True)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Bars over time for one run and site, lines for several, on a logarithmic axis; zeros marked on the lower edge."""
    ax = style.axes(ax, style=style_name, aspect=0.45)
    lines = list(data.groupby(["run", "site"], sort=False))
    names = line_names([key for key, _ in lines])
    marks.whole_x(ax, data["time"])
    single = len(lines) == 1 and len(data) <= 400  # more bars than pixels are a filled area at best
    marks.log_y(ax, [data["norm"]])
    for i, (_, rows) in enumerate(lines):
        colour = style.look(i)["color"]
        if single:
            floor = ax.get_ylim()[0]
            height = (rows["norm"] - floor).where(np.isfinite(rows["norm"])).clip(lower=0)
            ax.bar(rows["time"], height, bottom=floor, color=colour, width=0.8, linewidth=0)
        else:
            every = style.mark_every(len(rows), i)
            named = label(names[i], style.name_limit(ax))
            ax.plot(rows["time"], rows["norm"], label=named, markevery=every, **style.look(i))
        marks.at_edge(ax, rows["time"][rows["norm"] == 0], top=False, color=colour, label="zero")
        bad = ~np.isfinite(rows["norm"])
        marks.at_edge(ax, rows["time"][bad], top=True, color=colour, label="not finite")
    if single:
        ax.set_xlim(data["time"].min() - 0.6, data["time"].max() + 0.6)
    ax.set_xlabel("timestep of the sequence")
    ax.set_ylabel(r"$\Vert \Sigma_b\, \delta_{t,b} \otimes h_{t-1,b} \Vert_F$")
    if legend and len(lines) > 1:
        style.legend(ax)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    steps = sorted(set(data["step"]))
    return (
        "Frobenius norm of each timestep's contribution to the gradient of the recurrent weights, summed over the "
        f"sampled sequences, timesteps {data['time'].min()} to {data['time'].max()}, step "
        f"{', '.join(map(str, steps[:4]))}. The contributions add up as matrices, not as norms."
    )
