"""How long the units of a layer retain what they hold, from their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.diagnostics.gates import timescale_of_log
from gradscope.errors import NotRecordedError
from gradscope.plots import lines, marks, style
from gradscope.plots.naming import with_lines
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.words import number

TITLE = "Timescales of the retaining gate"
NEEDS = "the gate activations: quantities=[..., 'activations'] of an LSTM or GRU"

#: The gate that multiplies the old state. Torch's GRU is h = (1 - z) n + z h.
RETAINING = {"lstm": "f", "gru": "z"}


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site and unit.

    Returns
    -------
    DataFrame
        run, site, step, gate, unit; ``timescale``: -1 / mean(ln gate) in steps (Tallec & Ollivier 2018), ``inf`` for a
        gate that never closed; ``length``: longest sequence, to compare with.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames = []
    for name, run, at, _ in select.sites_with(runs, "activations", site):
        gates = run.site(at).gates
        gate = RETAINING.get(run.site(at).cell) or next((g for g in ("f", "z") if g in gates), None)
        if gate is None or gate not in gates:
            continue
        found = select.block(run, at, "gate_log_mean", step)
        log = np.nanmean(found.values[:, gates.index(gate)], axis=0)
        head = {"run": name, "site": at, "step": found.step, "gate": gate, "length": int(found.lengths.max())}
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
    """Histogram over units on a logarithmic axis, a step line per run and site; dotted: the longest sequence.

    Units whose timescale is infinite are counted in the last bin.
    """
    import seaborn

    ax = style.axes(ax, style=style_name, aspect=0.5)
    data = with_lines(data)
    looks = style.looks(list(dict.fromkeys(data["name"])))
    tau = data["timescale"].to_numpy()
    finite = tau[np.isfinite(tau) & (tau > 0)]
    length = float(data["length"].max())
    ends = [finite.min(), finite.max()] if finite.size else [1.0]
    low, high = min(*ends, length), max(*ends, length)  # a short sequence may lie left of every timescale
    edges = np.geomspace(low / 1.3, high * 1.3, bins + 1)
    shown = data.assign(shown=np.clip(data["timescale"], edges[0], edges[-1] * 0.999))
    fill = len(looks) <= 3
    seaborn.histplot(
        shown, x="shown", hue="name", hue_order=list(looks)[::-1], log_scale=True, bins=bins,
        binrange=tuple(np.log10(edges[[0, -1]])), element="step", fill=fill, alpha=0.14, legend=False, ax=ax,
        palette={name: look["color"] for name, look in looks.items()},
    )  # fmt: skip
    for artist, name in zip(ax.collections if fill else ax.get_lines(), looks, strict=False):
        artist.set(
            linestyle=looks[name]["linestyle"], linewidth=1.3, **({} if fill else {"alpha": 1.0})
        )  # seaborn draws the last hue first
    ax.axvline(length, color=style.GREY, linestyle=":", linewidth=1.1)
    inwards = 1 if length < np.sqrt(edges[0] * edges[-1]) else -1
    ax.annotate(
        "sequence length", (length, 1.0), xycoords=ax.get_xaxis_transform(), ha="left" if inwards > 0 else "right",
        va="top", rotation=90, fontsize="small", color=style.GREY, xytext=(2 * inwards, -2), textcoords="offset points",
    )  # fmt: skip
    marks.log_x(ax, edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel(r"timescale $\tau = -1\,/\,$mean$(\ln\,$gate$)$, steps")
    ax.set_ylabel("units")
    if legend and len(looks) > 1:
        named = {name: label(name, style.name_limit(ax)) for name in looks}
        style.legend(ax, lines.handles({name: {**look, "marker": ""} for name, look in looks.items()}, named))
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    longer = float(np.mean(data["timescale"] > data["length"]))
    medians = data.groupby(["run", "site"], sort=False)["timescale"].median()
    each = ", ".join(f"{run} {number(value)}" for (run, _), value in medians.head(6).items())
    said = (
        "Number of units by the timescale of their retaining gate (an LSTM's f, a GRU's z), -1 over the mean of ln "
        f"gate over time and the sampled sequences, step {data['step'].max()}; dotted: the longest sequence. "
        f"{100 * longer:.0f} % of the units retain longer than it. Median timescale: {each}. Infinite timescales are "
        "in the last bin."
    )
    return " ".join([said, *select.left_out_words(data)])
