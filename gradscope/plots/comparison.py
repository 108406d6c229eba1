"""Models side by side: how many parameters, how low a loss, how far the gradient reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscope.errors import SettingError
from gradscope.plots import marks, style
from gradscope.plots.naming import line_names
from gradscope.plots.text import label, metric_words
from gradscope.reading import select
from gradscope.reading.answers import answer
from gradscope.reading.labelled import seeds_together
from gradscope.reading.sweeps import final_value
from gradscope.words import number

TITLE = "Models compared"
NEEDS = "an adjoint of the state, which is recorded by default"

#: Column of the table to its axis label and whether it is drawn on a logarithmic axis.
COLUMNS = {
    "parameters": ("parameters", True),
    "metric": ("final {metric}", False),
    "half_life": ("half-life (steps)", True),
}
#: More runs and sites than this have one row for all sites of a model.
MAX_ROWS = 26
#: What words inside a panel are known by.
_INSIDE = "_inside"


def table(runs: Sequence[Any], *, site: str | Sequence[str] | None = None, metric: str = "loss") -> pd.DataFrame:
    """One row per run and site, at the end of training.

    Returns
    -------
    DataFrame
        run, ``line`` (of which the runs are the seeds), site, quantity, ``parameters`` (NaN unknown), ``metric`` and
        its ``metric_name``, ``half_life`` with ``half_life_lo``, ``half_life_hi`` (NaN where none may be quoted),
        ``rate``, ``r2``, ``verdict``.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError
    """
    rows, of_seed = [], seeds_together(runs)
    for name, run, at, _ in select.sites_with(runs, None, site):
        fit = answer(run, at).late
        low, high = fit.half_life_interval or (np.nan, np.nan)
        rows.append(
            {
                "run": name, "line": of_seed[name], "site": at, "quantity": select.curve_quantity(run, at),
                "parameters": run.model.get("parameters", np.nan), "metric": _final(run, metric), "metric_name": metric,
                "half_life": np.nan if fit.half_life is None else fit.half_life, "half_life_lo": low,
                "half_life_hi": high, "rate": fit.rate, "r2": fit.r2, "verdict": fit.verdict,
            }
        )  # fmt: skip
    data = pd.DataFrame(rows).astype({"parameters": float})
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no curve against lag")
    return data


def _final(run: Any, metric: str) -> float:
    value, _ = final_value(run, metric)
    return float("nan") if value is None else value


def rows_of(data: pd.DataFrame) -> pd.DataFrame:
    """The table with ``row``, the name of its row: a run and site, or a model of seeds or very many sites."""
    data = data if "line" in data else data.assign(line=data["run"])
    seeds = data["line"].nunique() < data["run"].nunique()
    if seeds or (len(data) > MAX_ROWS and data["run"].nunique() > 1):
        return data.assign(row=data["line"], shared=True)
    names = line_names(list(data[["run", "site"]].itertuples(index=False, name=None)))
    return data.assign(row=names, shared=False)


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", column: str = "half_life") -> Axes:
    """One column of the table, a row per run and site with the half-life's interval, or why there is none.

    Seeds share a row, and so do the sites of a run where there are very many: a dot each, and how many have none.

    Raises
    ------
    SettingError
        A column that is not in ``COLUMNS``.
    """
    if column not in COLUMNS:
        raise SettingError(f"column must be one of {', '.join(COLUMNS)}, got {column!r}.")
    import seaborn

    ax = style.axes(ax, style=style_name)
    data = rows_of(data) if "row" not in data else data
    text, logarithmic = COLUMNS[column]
    logarithmic = logarithmic or marks.over_decades(data[column])
    names = list(dict.fromkeys(data["row"]))
    shown = data if column == "half_life" else data.drop_duplicates("run") if data["shared"].any() else data
    value, y = (
        shown[column].to_numpy(dtype=float),
        shown["row"].map({name: i for i, name in enumerate(names)}).to_numpy(),
    )
    low, high = (shown[f"half_life_{end}"].to_numpy(dtype=float) for end in ("lo", "hi"))
    shared = bool(shown["shared"].any())
    if column == "half_life" and not shared:
        ax.hlines(y, low, high, color=style.PALETTE[0], linewidth=1.4)
    seaborn.scatterplot(
        x=value, y=y, color=style.PALETTE[0], s=16 if shared else 24, linewidth=0, alpha=0.55 if shared else 1.0, ax=ax,
        legend=False,
    )  # fmt: skip
    ends = [value, low, high] if column == "half_life" and not shared else [value]
    _limits(ax, np.concatenate(ends), logarithmic)
    ax.set_yticks(range(len(names)), [label(name, 30) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    _without(ax, shown, names, column)
    ax.set_xlabel(text.format(metric=metric_words(str(data["metric_name"].iloc[0]))))
    return ax


def _without(ax: Axes, shown: pd.DataFrame, names: Sequence[str], column: str) -> None:
    """What a row has no dot for: why in its place where it has none at all, how many behind it where some have."""
    for at, name in enumerate(names):
        of_row = shown[shown["row"] == name]
        none = of_row[~np.isfinite(of_row[column])]
        if not len(none):
            continue
        why = " or ".join(dict.fromkeys(none["verdict"])) if column == "half_life" else ""
        inside = len(none) == len(of_row)
        if inside:
            said = f"none: {why}" if why else "diverged or unknown"
        else:
            said = f"{len(none)} of {len(of_row)} {'none' if why else 'diverged'}"
        text = ax.text(
            0.03 if inside else 1.02, float(at), said, transform=ax.get_yaxis_transform(), va="center", ha="left",
            color=style.GREY, fontsize="small", label=_INSIDE if inside else "",
        )  # fmt: skip
        text.set_in_layout(not inside)  # words in the place of a dot must not take the room of the panels


def _fit(fig: Figure) -> None:
    """Words that stand in the place of a dot and are wider than their panel: why alone, or that there is none."""
    for ax in fig.axes:
        for text in [text for text in ax.texts if text.get_label() == _INSIDE]:
            for shorter in (text.get_text().removeprefix("none: "), "none"):
                if text.get_window_extent().x1 > ax.bbox.x1:
                    text.set_text(shorter)


def _limits(ax: Axes, values: np.ndarray, logarithmic: bool) -> None:
    values = values[np.isfinite(values)]
    if not values.size:
        ax.set_xticks([])  # a scale without a single value would be made up
    elif logarithmic:
        values = values[values > 0]
        low, high = (values.min(), values.max()) if values.size else (1.0, 10.0)
        spread = max(1.25, (high / low) ** 0.12)
        marks.log_x(ax, low / spread, high * spread)
    else:
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))


def panels(data: pd.DataFrame, *, style_name: str = "screen") -> Figure:
    """Parameters, final metric and half-life beside each other, with common rows; unknown columns left out.

    Of a single run parameters and metric are a number each, which the caption says. Where the page is narrow the panels
    stand below each other, those of the run with a row for each run. More rows than fit on a page are left to the data.
    """
    data = rows_of(data)
    several = data["run"].nunique() > 1
    shown = [name for name in COLUMNS if name == "half_life" or (several and np.isfinite(data[name]).any())]
    narrow = style.preset(style_name).width < 4.5
    room = int((style.PAGE - 0.7 * (len(shown) if narrow else 1)) / 0.16)
    of_runs = (
        data if data["shared"].any() or not narrow else data.drop_duplicates("run").assign(row=lambda at: at["run"])
    )
    each = room // len(shown) if narrow else room
    tables = [_first(of_runs, each)] * (len(shown) - 1)
    # A row for each run leaves room to the sites of few; rows that are the same in every panel end at the same one.
    left = each if data["shared"].any() else room - sum(rows["row"].nunique() for rows in tables)
    tables.append(_first(data, left if narrow else room))
    hidden = data["row"].nunique() - tables[-1]["row"].nunique()
    heights = [0.6 + max(0.16, 0.22 - 0.002 * n) * n for n in (rows["row"].nunique() for rows in tables)]
    aspect = style.fitting(style_name, sum(heights) if narrow else heights[0])
    shape = {"rows": len(shown), "heights": heights} if narrow else {"columns": len(shown)}
    fig, grid = style.figure(style_name, aspect=aspect, exact=True, **shape)
    grid = np.ravel([grid])
    for i, (ax, name, rows) in enumerate(zip(grid, shown, tables, strict=True)):
        draw(rows, ax, style_name=style_name, column=name)
        if i and not narrow:
            ax.tick_params(labelleft=False)
    if len(shown) > 1 and not narrow:  # panels beside each other leave less room to the names of their rows
        names = list(dict.fromkeys(data["row"]))
        most = int(0.3 * 72 * style.preset(style_name).width / (style.character() * style.small()))
        short = [label(name, min(most, 30)) for name in names]
        if len(set(short)) == len(names):
            grid[0].set_yticks(range(len(names)), short)
    if hidden > 0:
        ax.set_xlabel(f"{ax.get_xlabel()}\n{hidden} more rows: see CSV")
    marks.thin_x(fig)
    _fit(fig)
    return fig


def _first(data: pd.DataFrame, rows: int) -> pd.DataFrame:
    """What stands in the first rows."""
    return data[data["row"].isin(list(dict.fromkeys(data["row"]))[:rows])]


_INTERVAL = ", with its 95 % interval over recorded steps, or over the sequences of a single one"


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    known = data[np.isfinite(data["half_life"])].sort_values("half_life", ascending=False)
    data = rows_of(data)
    each = ", ".join(f"{row.run} {number(row.half_life)} steps" for row in known.head(6).itertuples())
    dots = " A dot for each site of each run." if data["shared"].any() else ""
    metric = metric_words(str(data["metric_name"].iloc[0]))
    alone = data["run"].nunique() == 1
    what = "Half-life" if alone else f"Number of parameters, final {metric} and half-life"
    known_of = {"parameters": data["parameters"].iloc[0], f"final {metric}": data["metric"].iloc[0]} if alone else {}
    of_run = [f"{name}: {number(value)}" for name, value in known_of.items() if np.isfinite(value)]
    said = (
        f"{what} of the gradient at the end of training{'' if dots else _INTERVAL}; no half-life is quoted where the "
        f"decay is not a straight line or the gradient does not fall.{dots}"
    )
    longest = [f"Longest half-lives: {each}."] if each else ["No half-life can be quoted."]
    beside = [f"{', '.join(of_run)}."] if of_run else []
    return " ".join([said, *longest, *(b[:1].upper() + b[1:] for b in beside), *select.left_out_words(data)])
