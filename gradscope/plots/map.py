"""A number over two settings, such as length and threshold, with its interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.plots import heatmap, style
from gradscope.plots.sweep_metric import around, student
from gradscope.plots.text import label, metric_words, powers
from gradscope.reading import select, story
from gradscope.reading.labelled import Labelled, differing, init_words, labelled
from gradscope.reading.sweeps import final_value, name_of
from gradscope.words import capital, given, number

TITLE = "Over length and threshold, or any two settings"
NEEDS = "runs that say what tells them apart: record(..., labels={'length': 50, 'init': 'chrono', 'seed': 0})"

#: Settings in the order in which they are laid out where none are named: rows, then columns.
PREFERRED = ("length", "init", "cell", "threshold")
#: Line spacing of what a cell says, and where powers of ten stand in it.
_SPACING, _OF_POWERS = 0.95, 1.25
#: What reaches the first input, over what reaches the last, at the end of training.
REACH = "reach"


def table(
    runs: Sequence[Any],
    *,
    rows: str | None = None,
    columns: str | None = None,
    metric: str | None = None,
) -> pd.DataFrame:
    """One row per cell of the map.

    Parameters
    ----------
    runs : sequence of Run
    rows, columns : str, optional
        A label of the runs, ``cell``, ``init`` or ``threshold`` (of norm clipping, as used); by default the first of
        length, initialisation, cell and threshold in which they differ.
    metric : str, optional
        A logged scalar (its mean over the last twentieth), or ``reach``; what was reached on held-out data, or else the
        loss, when not given.

    Returns
    -------
    DataFrame
        rows, row, columns, column, metric; ``value``: mean (of ``reach`` the geometric one) over the runs that did not
        diverge; ``low``, ``high``: its 95 % interval (Student's; NaN of a single run); ``n`` runs, and how many
        ``diverged``.

    Raises
    ------
    SettingError
        The runs differ in nothing that could be laid out.
    UnknownNameError, NotRecordedError
    """
    known = labelled(runs)
    settings = _settings(known)
    down, across = _axes(settings, rows, columns)
    name = metric or _metric(known)
    every = {one.name: _value(one, name) for one in known}
    values = {run: value for run, value in every.items() if value is not None}
    if not values:
        raise NotRecordedError(f"no run logged {name!r}. Log it with recorder.log({name}=...), or choose --metric.")
    found = []
    for (row, column), group in _groups(known, settings, down, across).items():
        there = [values[one.name] for one in group if one.name in values]
        kept = pd.Series([value for value in there if np.isfinite(value)], dtype=float)
        value, low, high = _mean(kept, name)
        found.append(
            {
                "rows": down, "row": row, "columns": across, "column": column, "metric": name,
                "value": value, "low": low, "high": high, "n": len(there),
                "diverged": len(there) - len(kept),
            }
        )  # fmt: skip
    data = pd.DataFrame(found)
    data.attrs["left_out"] = select.left_out(runs, values, f"{name!r} was not logged")
    return data


def _mean(values: pd.Series, metric: str) -> tuple[float, float, float]:
    """Mean and its interval; of what arrives, over decades, the geometric mean."""
    if not len(values):
        return np.nan, np.nan, np.nan
    if metric != REACH:
        return (float(values.mean()), *around(values, metric))
    logs = np.log10(values.clip(lower=1e-300))
    low, high = student(logs)
    with np.errstate(under="ignore", over="ignore"):
        return float(10 ** logs.mean()), float(10.0**low), float(10.0**high)


def _settings(known: Sequence[Labelled]) -> dict[str, dict[str, Any]]:
    """Name of every setting in which the runs differ, to its value for each run."""
    found: dict[str, dict[str, Any]] = {name: {one.name: one.labels[name] for one in known if name in one.labels}
                                        for name in differing(known, ("clip", "threshold"))}  # fmt: skip
    found["init"] = {one.name: one.init for one in known if one.init}
    found["cell"] = {one.name: one.cell for one in known}
    found["threshold"] = {one.name: one.threshold for one in known}
    return {name: values for name, values in found.items() if len(values) == len(known)}


def _axes(settings: dict[str, dict[str, Any]], rows: str | None, columns: str | None) -> tuple[str, str]:
    for asked in (rows, columns):
        if asked is not None and asked not in settings:
            raise UnknownNameError("setting of the runs", asked, settings)
    vary = [name for name, values in settings.items() if len(set(values.values())) > 1]
    order = sorted(vary, key=lambda name: PREFERRED.index(name) if name in PREFERRED else -1)
    free = [name for name in order if name not in (rows, columns)]
    if columns is None:
        columns = "threshold" if "threshold" in free and rows != "threshold" else (free[-1] if free else None)
        free = [name for name in free if name != columns]
    if rows is None:
        rows = free[0] if free else "cell"
    if columns is None or rows == columns:
        raise SettingError("the runs differ in no two settings that are known: record them with labels={...}.")
    return rows, columns


def _groups(
    known: Sequence[Labelled], settings: dict[str, dict[str, Any]], down: str, across: str
) -> dict[tuple[Any, Any], list[Labelled]]:
    groups: dict[tuple[Any, Any], list[Labelled]] = {}
    for one in known:
        groups.setdefault((settings[down][one.name], settings[across][one.name]), []).append(one)
    return groups


def _metric(known: Sequence[Labelled]) -> str:
    logged = [column for one in known for column in one.run.steps().columns]
    metrics = [name for name in logged if name in story.METRICS or name.startswith("held_out_")]
    held_out = [name for name in metrics if name != "held_out_loss"]
    return held_out[0] if held_out else "loss"


def _value(one: Labelled, metric: str) -> float | None:
    if metric != REACH:
        value, _ = final_value(one.run, metric)
        # A training whose loss diverged has reached nothing, whatever was logged at its end.
        gone = value is not None and final_value(one.run, "loss")[1] is not None
        return float("nan") if gone else value
    data = story.table([one.run])
    through = data[data["panel"] == "through"].sort_values("x")
    last = through if len(through) else data[(data["panel"] == "initial") & (data["x"] == 1)]
    return float(last["value"].iloc[-1]) if len(last) else None


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen") -> Axes:
    """A cell per pair of settings, with its mean, interval and number of runs; crossed out where all diverged."""
    import seaborn

    across, down = _ordered(data["column"]), _ordered(data["row"])
    ax = style.axes(ax, style=style_name, aspect=style.fitting(style_name, 0.9 + 0.55 * len(down)))
    grid = data.pivot(index="row", columns="column", values="value").reindex(index=down, columns=across)
    counted = data["n"].nunique() > 1  # else the caption says it for all
    words = data.assign(words=[_words(row, counted) for row in data.itertuples()])
    text = words.pivot(index="row", columns="column", values="words").reindex(index=down, columns=across).fillna("")
    shown = grid.astype(float)
    reach = data["metric"].iloc[0] == REACH
    metric = "what arrives at the first input" if reach else metric_words(str(data["metric"].iloc[0]))
    norm = LogNorm(*heatmap.color_limits(shown.to_numpy())) if reach else None
    text = text.apply(lambda column: column.map(lambda words: _fitting(words, ax, len(across))))
    said: dict[str, Any] = {"fontsize": style.small()}
    said["linespacing"] = _OF_POWERS if "$" in "".join(text.to_numpy().flat) else _SPACING
    seaborn.heatmap(
        shown, annot=text, fmt="", cmap=style.MAGNITUDE, linewidths=1, ax=ax,
        annot_kws=said, cbar_kws={"label": metric, "pad": 0.02},
        mask=shown.isna(), norm=norm,
    )  # fmt: skip
    for y, row in enumerate(down):
        for x, column in enumerate(across):
            if np.isnan(shown.loc[row, column]) and text.loc[row, column]:
                ax.text(
                    x + 0.5, y + 0.5, text.loc[row, column], ha="center", va="center", color=style.ALERT, **said
                )  # fmt: skip
    ax.grid(False)
    names = {
        of: [powers(_tick(value, data[of].iloc[0])) for value in at] for of, at in (("columns", across), ("rows", down))
    }
    ax.set_xticks(np.arange(len(across)) + 0.5, names["columns"], rotation=0)
    ax.set_yticks(np.arange(len(down)) + 0.5, names["rows"], rotation=0)
    ax.set_xlabel(_setting(str(data["columns"].iloc[0])))
    ax.set_ylabel(_setting(str(data["rows"].iloc[0])))
    return ax


def _ordered(values: pd.Series) -> list[Any]:
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))


def _words(row: Any, counted: bool) -> str:
    if np.isnan(row.value):
        return "diverged" if row.n == 1 else f"all {row.n} diverged" if row.n else ""
    value = number(row.value)
    spread = "" if np.isnan(row.low) else f"\n{number(row.low)}–{number(row.high)}"
    of = f"\n{row.diverged} of {row.n} diverged" if row.diverged else f"\nn = {row.n}" if counted else ""
    return f"{value}{spread}{of}"


def _fitting(words: str, ax: Axes, columns: int) -> str:
    """Lines that are wider than a cell, broken behind a dash or at a space."""
    room = 0.68 * 72 * style.width_of(ax) / columns / (style.character() * style.small())
    said = []
    for line in words.split("\n"):
        if len(line) <= room:
            said.append(line)
        else:
            said += line.replace("–", "–\n").replace(" div", "\ndiv").split("\n")
    return powers("\n".join(said))


def _tick(value: Any, setting: str) -> str:
    if setting == "threshold":
        return name_of(float(value))
    words = init_words(str(value)) if setting == "init" else given(value) if isinstance(value, float) else str(value)
    return label(words, 16)


def _setting(name: str) -> str:
    return {"threshold": "threshold of norm clipping", "init": "initialisation"}.get(name, label(name))


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, with the best and the worst of it."""
    known = data[np.isfinite(data["value"])]
    names = data["rows"].iloc[0], data["columns"].iloc[0]
    ends = ""
    if len(known):
        top, low = known.loc[known["value"].idxmax()], known.loc[known["value"].idxmin()]
        ends = " ".join(
            f"{word}: {number(row['value'])} ({names[0]} {_tick(row['row'], names[0])}, {names[1]} "
            f"{_tick(row['column'], names[1])})."
            for word, row in (("Highest", top), ("Lowest", low))
        )
    kept = data["n"] - data["diverged"]
    fewest, most = kept.min(), kept.max()
    runs = f"{most}" if fewest == most else f"{fewest} to {most}"
    mean = "geometric mean" if data["metric"].iloc[0] == REACH else "mean"
    said = (
        f"{metric_words(str(data['metric'].iloc[0]))} over {_setting(names[0])} and {_setting(names[1])}: {mean} over "
        f"the runs that did not diverge ({runs} a cell) and its 95 % interval (Student's t). {ends}"
    )
    return " ".join([capital(said), *select.left_out_words(data)])
