"""Final metric against clipping threshold, one point per run; runs that diverged are shown as diverged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.plots import style
from gradscope.plots.text import label
from gradscope.reading import sweeps

TITLE = "Final metric against clipping threshold"
NEEDS = "a logged metric: recorder.log(loss=loss), or --metric of another name"


def table(
    runs: Sequence[Any], *, metric: str = "loss", thresholds: Sequence[float | None] | None = None
) -> pd.DataFrame:
    """One row per run: ``run, threshold, value, diverged, metric``.

    ``value`` is the mean of the last twentieth of what was logged, NaN for a run that diverged.

    Raises
    ------
    NotRecordedError, SettingError
    """
    rows = []
    for (run, threshold), trace in sweeps.traces(runs, metric, thresholds).groupby(["run", "threshold"], sort=False):
        gone = bool(trace["diverged"].any())
        value = trace["value"][np.isfinite(trace["value"])]
        last = value.iloc[-max(1, len(value) // 20) :].mean() if len(value) and not gone else float("nan")
        rows.append({"run": run, "threshold": threshold, "value": last, "diverged": gone, "metric": metric})
    return pd.DataFrame(rows)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """Points per run, a bar at the median; crosses on the upper edge count the runs that diverged."""
    ax = style.axes(ax, style=style_name)
    thresholds = sorted(set(data["threshold"]))
    for x, threshold in enumerate(thresholds):
        rows = data[data["threshold"] == threshold]
        kept, gone = rows[~rows["diverged"]], int(rows["diverged"].sum())
        at = x + _spread(len(kept))
        ax.plot(at, kept["value"], "o", color=style.PALETTE[0], markersize=4.5, alpha=0.75, label=f"_{threshold}")
        if len(kept):
            ax.hlines(kept["value"].median(), x - 0.25, x + 0.25, color=style.PALETTE[2], linewidth=1.6)
        if gone:
            ax.plot(
                x + _spread(gone), np.full(gone, 0.97), "x", color=style.ALERT, markersize=6, markeredgewidth=1.6,
                transform=ax.get_xaxis_transform(), label="_diverged",
            )  # fmt: skip
            ax.annotate(
                f"{gone} of {len(rows)} diverged", (x, 0.92), xycoords=ax.get_xaxis_transform(), ha="center", va="top",
                color=style.ALERT, fontsize="small",
            )  # fmt: skip
    ax.set_xticks(range(len(thresholds)), [sweeps.name_of(t) for t in thresholds])
    ax.set_xlim(-0.6, len(thresholds) - 0.4)
    if data["diverged"].all():
        ax.set_yticks([])  # a scale without a single value would be made up
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.18 * (high - low) if data["diverged"].any() else high)
    ax.set_xlabel("threshold of norm clipping")
    ax.set_ylabel(f"final {label(str(data['metric'].iloc[0]))}")
    return ax


def _spread(n: int) -> np.ndarray:
    """Offsets that keep equal values of several runs apart."""
    return (np.arange(n) - (n - 1) / 2) * min(0.08, 0.5 / max(n, 1))


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    gone = int(data["diverged"].sum())
    return (
        f"{_upper(str(data['metric'].iloc[0]))} at the end of training (mean of the last twentieth of the steps) "
        f"against the threshold of norm clipping (none: no clipping), one point per run ({len(data)} runs), bar: "
        f"median. {f'Crosses: runs that diverged ({gone}).' if gone else 'No run diverged.'}"
    )


def _upper(text: str) -> str:
    return label(text[:1].upper() + text[1:])
