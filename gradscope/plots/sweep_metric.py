"""Final metric against clipping threshold, one point per run; runs that diverged are shown as diverged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.markers import CARETUPBASE
from scipy import stats

from gradscope.plots import marks, style
from gradscope.plots.text import metric_words, powers
from gradscope.reading import select, sweeps
from gradscope.words import capital, counted, within

TITLE = "Final metric against clipping threshold"
NEEDS = "a logged metric: recorder.log(loss=loss), or --metric of another name"


def table(
    runs: Sequence[Any], *, metric: str = "loss", thresholds: Sequence[float | None] | None = None
) -> pd.DataFrame:
    """One row per run: ``run, threshold, value, diverged, chance, metric``.

    ``value`` is the mean of the last twentieth of what was logged, NaN for a run that diverged.

    Raises
    ------
    NotRecordedError, SettingError
    """
    rows = []
    traces = sweeps.traces(runs, metric, thresholds)
    for (run, threshold), trace in traces.groupby(["run", "threshold"], sort=False):
        gone = bool(trace["diverged"].any())
        value = trace["value"][np.isfinite(trace["value"])]
        last = value.iloc[-max(1, len(value) // 20) :].mean() if len(value) and not gone else float("nan")
        head = {"run": run, "threshold": threshold, "value": last, "diverged": gone}
        rows.append({**head, "chance": trace["chance"].iloc[0], "metric": metric})
    data = pd.DataFrame(rows)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), f"{metric!r} was not logged")
    return data


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """Points per run, the mean over them with its 95 % interval; crosses on the upper edge: runs that diverged.

    The interval is Student's; two runs have a wide one, one has none. Dotted: what guessing comes to.
    """
    import seaborn

    ax = style.axes(ax, style=style_name)
    names = [sweeps.name_of(t) for t in sorted(set(data["threshold"]))]
    data = data.assign(name=[sweeps.name_of(t) for t in data["threshold"]])
    kept, metric = data[~data["diverged"] & np.isfinite(data["value"])], str(data["metric"].iloc[0])
    # An interval that reaches below 0 has no lower end on a logarithmic axis.
    floor = 1e-3 * float(kept["value"].min()) if marks.over_decades(kept["value"]) else -np.inf
    if len(kept):
        seaborn.pointplot(
            kept, x="name", y="value", order=names, errorbar=partial(_in_view, metric=metric, floor=floor),
            linestyle="none", marker="_", markersize=11, color=style.PALETTE[2], err_kws={"linewidth": 1.3},
            capsize=0.12, ax=ax,
        )  # fmt: skip
        seaborn.scatterplot(
            x=_beside(kept, names), y=kept["value"].to_numpy(), s=15, color=style.PALETTE[0], alpha=0.6, linewidth=0,
            zorder=1.6, legend=False, ax=ax,
        )  # fmt: skip
    else:
        ax.set_yticks([])  # a scale without a single value would be made up
        ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_xticks(range(len(names)), [powers(name) for name in names])
    chance = list(dict.fromkeys(data["chance"].dropna()))[:1] if "chance" in data else []
    for value in chance:
        ax.axhline(value, color=style.GREY, linestyle=":", linewidth=0.9, zorder=1, label="_chance")
        ax.annotate(
            "chance", (0.0, value), xycoords=ax.get_yaxis_transform(), xytext=(2, 1.5), textcoords="offset points",
            color=style.GREY, fontsize="small",
        )  # fmt: skip
    _window(ax, kept["value"], chance)
    _diverged(ax, data, names)
    _beyond(ax, [around(kept.loc[kept["name"] == name, "value"], metric) for name in names])
    ax.set_xlabel("threshold of norm clipping")
    ax.set_ylabel(f"final {metric_words(metric)}")
    return ax


def _beside(kept: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Where the runs of a threshold stand: beside each other in their order, not at places drawn by chance."""
    of_name = kept.groupby("name", sort=False)["value"]
    apart = np.minimum(0.08, 0.3 / of_name.transform("size"))
    at = kept["name"].map({name: i for i, name in enumerate(names)})
    return np.asarray(at + (of_name.cumcount() - (of_name.transform("size") - 1) / 2) * apart, dtype=float)


def student(values: pd.Series) -> tuple[float, float]:
    """95 % interval of a mean by Student's t; (NaN, NaN) of fewer than two values."""
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    arm = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return float(np.mean(values)) - arm, float(np.mean(values)) + arm


def around(values: pd.Series, metric: str) -> tuple[float, float]:
    """The interval of a mean; that of an accuracy, where all values are shares, does not leave 0 to 1."""
    low, high = student(values)
    if metric.endswith(("accuracy", "acc")) and values.between(0, 1).all():
        return max(low, 0.0), min(high, 1.0)
    return low, high


def _in_view(values: pd.Series, metric: str, floor: float) -> tuple[float, float]:
    low, high = around(values, metric)
    return max(low, floor), high


def _window(ax: Axes, values: pd.Series, chance: Sequence[float]) -> None:
    """Around the runs and chance: the interval of two runs may be so wide that it would squeeze them."""
    seen = np.array([*values, *chance])
    if marks.over_decades(values):  # one run that went astray must not squeeze the others
        marks.log_y(ax, [seen])
    elif seen.size:
        low, high = float(seen.min()), float(seen.max())
        pad = 0.35 * (high - low) or 0.1 * abs(high) or 0.1
        ax.set_ylim(max(low - pad, min(low, 0.0)), high + pad)


def _beyond(ax: Axes, intervals: Sequence[tuple[float, float]]) -> None:
    """An arrow where an interval goes on past the edge; the upper one stands above the crosses of what diverged."""
    bottom, top = ax.get_ylim()
    for x, (low, high) in enumerate(intervals):
        for past, edge, arrow in ((low < bottom, 0.0, "v"), (high > top, 1.0, CARETUPBASE)):
            if past:
                ax.plot(
                    x, edge, marker=arrow, linestyle="none", color=style.PALETTE[2], markersize=4.5,
                    transform=ax.get_xaxis_transform(), clip_on=False, label="_beyond",
                )  # fmt: skip


def _diverged(ax: Axes, data: pd.DataFrame, names: Sequence[str]) -> None:
    for x, name in enumerate(names):
        rows = data[data["name"] == name]
        gone = int(rows["diverged"].sum())
        if gone:
            ax.plot(
                x + (np.arange(gone) - (gone - 1) / 2) * min(0.08, 0.5 / gone), np.full(gone, 0.97), "x",
                color=style.ALERT, markersize=6, markeredgewidth=1.6, transform=ax.get_xaxis_transform(),
                label="_diverged",
            )  # fmt: skip
            ax.annotate(
                f"{gone} of {len(rows)}\ndiverged", (x, 0.93), xycoords=ax.get_xaxis_transform(), ha="center",
                va="top", color=style.ALERT, fontsize="small", zorder=5,
                # The interval runs through here where it is wide.
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    if data["diverged"].any():
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.3 if ax.get_yscale() == "log" else high + 0.15 * (high - low))


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    gone = int(data["diverged"].sum())
    kept = data[~data["diverged"] & np.isfinite(data["value"])]
    each = []
    for threshold, values in kept.groupby("threshold")["value"]:
        bounds = around(values, str(data["metric"].iloc[0])) if len(values) > 1 else None
        mean, interval = within(float(values.mean()), bounds)
        each.append(f"{sweeps.name_of(float(threshold))} {mean} {interval}".rstrip())
    metric = metric_words(str(data["metric"].iloc[0]))
    said = (
        f"{capital(metric)} at the end of training (mean of the last twentieth of the steps) "
        f"against the threshold of norm clipping (none: no clipping by norm), one point per run "
        f"({counted(len(data), 'run')}); bar: mean with its 95 % interval over the runs that did not diverge: "
        f"{', '.join(each) or 'none'}. {f'Crosses: runs that diverged ({gone}).' if gone else 'No run diverged.'}"
    )
    return " ".join([said, *select.left_out_words(data)])
