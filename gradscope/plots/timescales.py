"""How long the units of a layer retain what they hold, from their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.diagnostics.gates import timescale_of_log
from gradscope.errors import NotRecordedError
from gradscope.plots import marks, style
from gradscope.plots.decay import line_names
from gradscope.plots.text import label
from gradscope.reading import select

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
    return pd.concat(frames, ignore_index=True)


def draw(
    data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", bins: int = 24, legend: bool = True
) -> Axes:
    """Histogram over units on a logarithmic axis, a step line per run and site; dotted: the longest sequence.

    Units whose timescale is infinite are counted in the last bin.
    """
    ax = style.axes(ax, style=style_name, aspect=0.5)
    lines = list(data.groupby(["run", "site"], sort=False))
    names = line_names([key for key, _ in lines])
    tau = data["timescale"].to_numpy()
    finite = tau[np.isfinite(tau) & (tau > 0)]
    length = float(data["length"].max())
    ends = [finite.min(), finite.max()] if finite.size else [1.0]
    low, high = min(*ends, length), max(*ends, length)  # a short sequence may lie left of every timescale
    edges = np.geomspace(low / 1.3, high * 1.3, bins + 1)
    for i, (_, rows) in enumerate(lines):
        look = style.look(i)
        counts, _ = np.histogram(np.clip(rows["timescale"], edges[0], edges[-1] * 0.999), edges)
        fill = len(lines) <= 3
        ax.stairs(
            counts, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.3,
            label=label(names[i], style.name_limit(ax)),
        )  # fmt: skip
        if fill:
            ax.stairs(counts, edges, color=look["color"], fill=True, alpha=0.14, label="_")
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
    if legend and len(lines) > 1:
        style.legend(ax, list(ax.patches))
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    longer = float(np.mean(data["timescale"] > data["length"]))
    return (
        "Number of units by the timescale of their retaining gate (an LSTM's f, a GRU's z), -1 over the mean of ln "
        f"gate over time and the sampled sequences, step {data['step'].max()}; dotted: the longest sequence. "
        f"{100 * longer:.0f} % of the units retain longer than it. Infinite timescales are in the last bin."
    )
