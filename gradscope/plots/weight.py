"""Which timesteps the recurrent weight gradient comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import decay_map, lines, marks, style
from gradscope.plots.naming import line_names, with_lines
from gradscope.reading import select
from gradscope.reading.labelled import seeds_together
from gradscope.words import few, number

TITLE = "Contribution of each timestep to the recurrent weight gradient"
NEEDS = "the per-timestep weight contribution: quantities=[..., 'weight']"

ACROSS = "timestep of the sequence"
SYMBOL = r"$\Vert \Sigma_b\, \delta_{t,b} \otimes h_{t-1,b} \Vert_F$"


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site and timestep.

    Returns
    -------
    DataFrame
        run, ``line`` (of which the runs are the seeds), site, step, time; ``norm``: Frobenius norm of the timestep's
        contribution to ∂L/∂W_hh, summed over the sampled sequences (several records of the step: their root mean
        square); ``share`` of the largest.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames, of_seed = [], seeds_together(runs)
    for name, run, at, _ in select.sites_with(runs, "weight", site):
        found = select.block(run, at, "weight", step)
        times, values = select.laid(found.values, found.carried)
        there = ~np.isnan(values).all(axis=0)
        values = values[:, there]
        # Over the largest first: the squares of a vanished contribution would underflow.
        largest = np.nanmax(values, axis=0, initial=0.0)
        known = np.isfinite(largest) & (largest > 0)
        over = np.where(known, largest, 1.0)
        norm = over * np.sqrt(np.nanmean((values / over) ** 2, axis=0))
        finite = norm[np.isfinite(norm)]
        top = finite.max() if finite.size and finite.max() > 0 else 1.0
        rows = {"time": times[there].astype(np.int64), "norm": norm, "share": norm / top}
        frames.append(pd.DataFrame({"run": name, "line": of_seed[name], "site": at, "step": found.step, **rows}))
    data = pd.concat(frames, ignore_index=True)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no weight contributions were recorded")
    return data


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Bars over time for one run and site, lines for several, on a logarithmic axis; zeros marked on the lower edge.

    Of very many, a map: a row each.
    """
    data = with_lines(data)
    if decay_map.is_map(data):
        zero = {"n_zero": (data["norm"] == 0).astype(int), "n_below_normal": 0, "n_sequences": 0}
        named = data.assign(lag=data["time"], shown=data["norm"].mask(data["norm"] == 0), **zero)
        return decay_map.draw(named, ax, style_name, SYMBOL, across=ACROSS, arrives="first")
    own, ax = ax is None, style.axes(ax, style=style_name, aspect=0.45)
    looks = style.looks(list(dict.fromkeys(data["name"])))
    marks.whole_x(ax, data["time"])
    single = len(looks) == 1 and len(data) <= 400  # more bars than pixels are a filled area at best
    usual = float(data[np.isfinite(data["norm"])].groupby("name")["norm"].max().median())
    lines.limits(ax, [rows["norm"] for _, rows in data.groupby(["name", "run"])], start=usual if usual > 0 else 1.0)
    if single:
        floor = ax.get_ylim()[0]
        height = (data["norm"] - floor).where(np.isfinite(data["norm"])).clip(lower=0)
        ax.bar(data["time"], height, bottom=floor, color=style.PALETTE[0], width=0.8, linewidth=0)
        ax.set_xlim(data["time"].min() - 0.6, data["time"].max() + 0.6)
    else:
        several = bool(data.groupby("name")["run"].nunique().max() > 1)
        lines.draw(ax, data, looks, x="time", y="norm", line="name", band="runs" if several else False)
    for (name, _), rows in data.groupby(["name", "run"], sort=False):
        finite = rows["norm"].where(~rows["norm"].isna(), np.inf)
        lines.leaving(ax, rows["time"], finite, looks[str(name)]["color"], of=name)
    ax.set_xlabel(ACROSS)
    ax.set_ylabel(SYMBOL)
    if legend and len(looks) > 1:
        ends = (
            data[np.isfinite(data["norm"])].groupby(["name", "run"])["norm"].last().groupby("name").median().to_dict()
        )
        lines.name(ax, looks, ends, beside=own)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    steps = sorted(set(data["step"]))
    said = (
        "Frobenius norm of each timestep's contribution to the gradient of the recurrent weights, summed over the "
        f"sampled sequences, timesteps {data['time'].min()} to {data['time'].max()}, step "
        f"{', '.join(map(str, steps[:4]))}. The contributions add up as matrices, not as norms."
    )
    usable = data[np.isfinite(data["norm"])]
    tops = usable.loc[usable.groupby(["run", "site"], sort=False)["norm"].idxmax()] if len(usable) else usable
    names = line_names(list(tops[["run", "site"]].itertuples(index=False, name=None)))
    each = few([
        f"{name} {f'{number(row.norm)} at {row.time}' if row.norm else '0 throughout'}"
        for name, row in zip(names, tops.itertuples(), strict=True)
    ])  # fmt: skip
    a_map = decay_map.is_map(with_lines(data))
    beyond = "Hatched: zero. An arrow at the end of the scale: a few lines go further." if a_map else lines.EDGE
    return " ".join([said, *([f"Largest: {each}."] if each else []), beyond, *select.left_out_words(data)])
