"""How long the units of a layer retain what they hold, from their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from gradscope.diagnostics.gates import timescale_of_log
from gradscope.errors import NotRecordedError
from gradscope.plots import lines, marks, style
from gradscope.plots.naming import line_names, with_lines
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.reading.labelled import seeds_together
from gradscope.words import few, number, percent

TITLE = "Timescales of the retaining gate"
NEEDS = "the gate activations: quantities=[..., 'activations'] of an LSTM or GRU"

#: The gate that multiplies the old state. Torch's GRU is h = (1 - z) n + z h.
RETAINING = {"lstm": "f", "gru": "z"}
#: More lines than this are a box each instead of a histogram; more than so many boxes are not named.
MAX_LINES, MAX_ROWS = 3, 48
#: More than so many run into each other on a page.
_APART = 150


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site and unit.

    Returns
    -------
    DataFrame
        run, ``line`` (of which the runs are the seeds), site, step, gate, unit; ``timescale``: -1 / mean(ln gate) in
        steps (Tallec & Ollivier 2018), ``inf`` for a gate that never closed; ``length``: longest sequence, to compare
        with.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames, of_seed = [], seeds_together(runs)
    for name, run, at, _ in select.sites_with(runs, "activations", site):
        gates = run.site(at).gates
        gate = RETAINING.get(run.site(at).cell) or next((g for g in ("f", "z") if g in gates), None)
        if gate is None or gate not in gates:
            continue
        found = select.block(run, at, "gate_log_mean", step)
        log = np.nanmean(found.values[:, gates.index(gate)], axis=0)
        head = {"run": name, "line": of_seed[name], "site": at, "step": found.step, "gate": gate}
        head |= {"length": int(found.lengths.max())}
        frames.append(pd.DataFrame({**head, "unit": np.arange(log.size), "timescale": timescale_of_log(log)}))
    if not frames:
        raise NotRecordedError(
            "no recorded site has a gate that retains the old state (an LSTM's f, a GRU's z), so it has no timescales."
        )
    data = pd.concat(frames, ignore_index=True)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no gate that retains was recorded")
    return data


def draw(
    data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", bins: int = 24, legend: bool = True
) -> Axes:
    """Histogram over units on a logarithmic axis, a step line per run (seeds together) and site.

    More than ``MAX_LINES`` are a box each. Dotted: the longest sequence. Units whose timescale is infinite are counted
    in the last bin.
    """
    data = with_lines(data)
    rows = data["name"].nunique()
    boxes = rows > MAX_LINES
    height = 0.7 + 0.16 * min(rows, MAX_ROWS)
    ax = style.axes(ax, style=style_name, aspect=style.fitting(style_name, height) if boxes else 0.5)
    edges = _edges(data, bins)
    shown = data.assign(shown=np.clip(data["timescale"], edges[0], edges[-1] * 0.999))
    if boxes:
        _boxes(ax, shown)
    else:
        _histograms(ax, shown, edges, legend)
    length = float(data["length"].max())
    ax.axvline(length, color=style.GREY, linestyle=":", linewidth=1.1)
    above = boxes or rows == 1  # no legend stands there
    inwards = 1 if length < np.sqrt(edges[0] * edges[-1]) else -1
    ax.annotate(
        "sequence length", (length, 1.0), xycoords=ax.get_xaxis_transform(), ha="left" if inwards > 0 else "right",
        va="bottom" if above else "top", rotation=0 if above else 90, fontsize="small", color=style.GREY,
        xytext=(0 if above else 2 * inwards, 1 if above else -2), textcoords="offset points",
    )  # fmt: skip
    marks.log_x(ax, edges[0], edges[-1])
    ax.set_xlabel(r"timescale $\tau = -1\,/\,$mean$(\ln\,$gate$)$, steps")
    return ax


def _edges(data: pd.DataFrame, bins: int) -> np.ndarray:
    """Ends of the bins: around every finite timescale and the longest sequence, which may lie left of them all."""
    tau = data["timescale"].to_numpy()
    around = np.append(tau[np.isfinite(tau) & (tau > 0)], float(data["length"].max()))
    return np.geomspace(around.min() / 1.3, around.max() * 1.3, bins + 1)


def _boxes(ax: Axes, shown: pd.DataFrame) -> None:
    """Median, middle half and range of each line's units; of very many, sorted by the median, not named."""
    names = list(dict.fromkeys(shown["name"]))
    named = len(names) <= MAX_ROWS
    if not named:
        names = list(shown.groupby("name")["shown"].median().sort_values(ascending=False, kind="stable").index)
    if len(names) <= _APART:
        _rows(ax, shown, names, named)
    else:
        _areas(ax, shown, names)
    most = 34 if style.size_of(ax)[0] > 4.5 else 24
    ax.set_yticks(range(len(names)) if named else [], [label(name, most) for name in names] if named else None)
    ax.set_ylabel("" if named else f"{len(names)} lines, by their median")
    ax.set_ylim(len(names) - 0.5, -0.5)


def _rows(ax: Axes, shown: pd.DataFrame, names: list[str], named: bool) -> None:
    import seaborn

    look: dict[str, Any] = {
        "data": shown, "x": "shown", "y": "name", "order": names, "estimator": "median", "linestyle": "none",
        "color": style.PALETTE[0], "ax": ax,
    }  # fmt: skip
    seaborn.pointplot(**look, errorbar=("pi", 100), marker="none", err_kws={"linewidth": 0.8 if named else 0.4})
    thick = {"linewidth": 4.0 if named else 1.0, "alpha": 0.45}
    seaborn.pointplot(**look, errorbar=("pi", 50), marker="|", markersize=6 if named else 2, err_kws=thick)


def _areas(ax: Axes, shown: pd.DataFrame, names: list[str]) -> None:
    at = shown.groupby("name")["shown"].quantile([0.0, 0.25, 0.5, 0.75, 1.0]).unstack().loc[names].to_numpy()
    rows = np.arange(len(names))
    for low, high, alpha in ((0, 4, 0.25), (1, 3, 0.45)):
        ax.fill_betweenx(rows, at[:, low], at[:, high], step="mid", color=style.PALETTE[0], alpha=alpha, linewidth=0)
    ax.plot(at[:, 2], rows, color=style.PALETTE[0], linewidth=1.2)


def _histograms(ax: Axes, shown: pd.DataFrame, edges: np.ndarray, legend: bool) -> None:
    import seaborn

    looks = style.looks(list(dict.fromkeys(shown["name"])))
    seaborn.histplot(
        shown, x="shown", hue="name", hue_order=list(looks)[::-1], log_scale=True, bins=len(edges) - 1,
        binrange=tuple(np.log10(edges[[0, -1]])), element="step", alpha=0.14, legend=False, ax=ax,
        palette={name: look["color"] for name, look in looks.items()},
    )  # fmt: skip
    for artist, name in zip(ax.collections, looks, strict=False):  # seaborn draws the last hue first
        artist.set(linestyle=looks[name]["linestyle"], linewidth=1.3)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.set_ylabel("units")
    if legend and len(looks) > 1:
        named = {name: label(name, style.name_limit(ax)) for name in looks}
        style.legend(ax, lines.handles({name: {**look, "marker": ""} for name, look in looks.items()}, named))


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    longer = float(np.mean(data["timescale"] > data["length"]))
    medians = data.groupby(["run", "site"], sort=False)["timescale"].median()
    names = line_names(list(medians.index))
    each = few([f"{name} {number(value)}" for name, value in zip(names, medians, strict=True)])
    many = with_lines(data)["name"].nunique() > MAX_LINES
    what = "Timescales (box: median, middle half and range over the units)" if many else "Number of units by timescale"
    said = (
        f"{what} of the retaining gate (an LSTM's f, a GRU's z): −1 over the mean of ln gate over time and the sampled "
        f"sequences, step {data['step'].max()}; dotted: the longest sequence. {percent(longer)} of the units retain "
        f"longer than it. Median timescale: {each}. Infinite timescales are in the last bin."
    )
    return " ".join([said, *select.left_out_words(data)])
