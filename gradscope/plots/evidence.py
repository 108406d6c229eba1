"""What was measured for a statement, seed by seed, against what would confirm it."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.plots import marks, style
from gradscope.plots.text import apart, label, visible

TITLE = "Statements and what was measured"
NEEDS = "claims of the lab"
FROM_RUNS = False

# Colour and shape both say whether a question was met: grey print keeps the second.
_LOOKS = {"met": (style.PALETTE[3], "o"), "not met": (style.PALETTE[1], "X"), "open": (style.GREY, "D")}
_MET = {True: "met", False: "not met", None: "open"}
_LOWEST = 1e-20
# Inches: of a question, and of a figure before the next one begins; characters in an inch of a line of words.
_ROW, _TALL, _CHARACTERS = 0.34, 6.5, 8.5


def table(claims: Sequence[Any]) -> pd.DataFrame:
    """One row per claim, question and seed.

    Parameters
    ----------
    claims : sequence
        Each with ``statement``, ``outcome`` and ``answers``; an answer with ``asked`` (``where``, ``what``, ``low``,
        ``high``, ``log``), ``values``, ``mean``, ``interval`` and ``met``.
    """
    rows = []
    for claim in claims:
        for answer in claim.answers:
            low, high = answer.interval or (np.nan, np.nan)
            head = {
                "statement": claim.statement, "outcome": claim.outcome, "where": answer.asked.where,
                "what": answer.asked.what, "asked_low": answer.asked.low, "asked_high": answer.asked.high,
                "log": answer.asked.log, "met": _MET[answer.met], "mean": answer.mean, "low": low, "high": high,
            }  # fmt: skip
            rows += [{**head, "seed": seed, "value": value} for seed, value in enumerate(answer.values)]
    return pd.DataFrame(rows)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """One quantity: a row per question, its seeds, mean and interval; shaded is what was asked for."""
    ax = style.axes(ax, style=style_name, aspect=0.12 + 0.06 * data["where"].nunique())
    groups = list(data.groupby("where", sort=False))
    low, high, log = _limits(data)
    room = int(72 * style.width_of(ax) / style.least() / style.character())
    names = apart([visible(str(where)) for where, _ in groups], room)
    for y, (name, (_, rows)) in enumerate(zip(names, groups, strict=True)):
        _row(ax, rows, y, low, high, log)
        ax.annotate(
            label(name, room), (0.005, y - 0.22), xycoords=ax.get_yaxis_transform(),
            ha="left", va="bottom", fontsize=style.least(), zorder=5,
        )  # fmt: skip
    if log:
        marks.log_x(ax, low, high)
    ax.set_xlim(low, high)
    ax.set_ylim(len(groups) - 0.4, -0.75)
    ax.set_yticks([])
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("\n".join(_wrapped(label(str(data["what"].iloc[0]), 200), style_name)))
    ax.set_ylabel(" ")
    return ax


def _limits(data: pd.DataFrame) -> tuple[float, float, bool]:
    """What must be in view: values, intervals, and the finite ends of what was asked."""
    log = bool(data["log"].any())
    seen = data[["value", "low", "high", "asked_low", "asked_high"]].to_numpy(dtype=float).ravel()
    if not log:
        seen = seen[np.isfinite(seen)]
        low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
        pad = 0.06 * (high - low) or 0.1
        return low - pad, high + pad, False
    seen = np.append(seen[np.isfinite(seen) & (seen > 0)], [0.9, 1.1])
    seen = np.maximum(seen, _LOWEST)
    pad = max((seen.max() / seen.min()) ** 0.06, 1.05)
    return float(seen.min() / pad), float(seen.max() * pad), True


def _row(ax: Axes, rows: pd.DataFrame, y: int, low: float, high: float, log: bool) -> None:
    first = rows.iloc[0]
    color, marker = _LOOKS[first["met"]]
    left, right = max(low, first["asked_low"]), min(high, first["asked_high"])
    ax.fill_between([left, right], y - 0.18, y + 0.3, color=style.PALETTE[6], alpha=0.22, linewidth=0, zorder=0)
    values = np.clip(rows["value"].to_numpy(dtype=float), low, high)
    ax.plot(values, np.full(values.size, y + 0.06), "|", color=color, markersize=8, markeredgewidth=1.1, zorder=3)
    if np.isfinite(first["low"]):
        ax.plot(np.clip([first["low"], first["high"]], low, high), [y + 0.06] * 2, color=color, linewidth=1.6, zorder=3)
    mean = float(np.clip(first["mean"], low, high))
    ax.plot([mean], [y + 0.06], marker, color=color, markersize=6, zorder=4, clip_on=False)
    if log and first["mean"] < low:
        ax.annotate(
            "0", (low, y + 0.06), xytext=(7, 0), textcoords="offset points", va="center", fontsize=style.least()
        )


def parts(data: pd.DataFrame, *, style_name: str = "screen") -> list[pd.DataFrame]:
    """Cut the table into as many figures as it takes for none to be crowded; a statement stays whole where it can."""
    found: list[list[pd.DataFrame]] = [[]]
    used = 0.0
    for _, rows in data.groupby(["statement", "what"], sort=False):
        height = _height(rows, style_name)
        if found[-1] and used + height > _TALL:
            found.append([])
            used = 0.0
        found[-1].append(rows)
        used += height
    return [pd.concat(group, ignore_index=True) for group in found if group]


def panels(data: pd.DataFrame, *, style_name: str = "screen") -> Figure:
    """One panel per statement and quantity, below each other."""
    groups = list(data.groupby(["statement", "what"], sort=False))
    heights = [_height(group, style_name) for _, group in groups]
    fig, _ = style.figure(style_name, rows=1, aspect=sum(heights) / style.preset(style_name).width, exact=True)
    fig.clear()
    grid = fig.add_gridspec(len(groups), 1, height_ratios=[group["where"].nunique() for _, group in groups])
    for i, (_, group) in enumerate(groups):
        ax = fig.add_subplot(grid[i])
        draw(group, ax, style_name=style_name)
        ax.set_title("\n".join(_wrapped(_title(group), style_name)), loc="left", fontsize="medium")
    return fig


def _title(group: pd.DataFrame) -> str:
    return f"{label(group['statement'].iloc[0], 200)} ({group['outcome'].iloc[0]})"


def _wrapped(words: str, style_name: str) -> list[str]:
    return wrap(words, int(_CHARACTERS * style.preset(style_name).width))


def _height(group: pd.DataFrame, style_name: str) -> float:
    """Of a panel with its title and the words below it, inches."""
    lines = len(_wrapped(_title(group), style_name)) + len(_wrapped(str(group["what"].iloc[0]), style_name))
    return _ROW * float(group["where"].nunique()) + 0.18 * lines + 0.4


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    return (
        f"Ticks: one value per seed ({data['seed'].nunique()} seeds); line: 95 % interval of the mean over seeds; "
        "shaded: what the statement asks for. Circle: the whole interval lies in it; cross: outside; diamond: across, "
        "or no interval."
    )
