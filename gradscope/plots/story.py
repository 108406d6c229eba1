"""The whole answer in one figure: what arrives before training, what the threshold made of it, and what was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradscope.errors import NotRecordedError, SettingError
from gradscope.plots import lines, marks, style
from gradscope.plots.norms import running_median, smoothing
from gradscope.plots.text import label, metric_words, norm_symbol, symbol
from gradscope.reading import select, story
from gradscope.words import number

TITLE = "What arrives at the first input, and what clipping made of it"
NEEDS = "the gradient of the input, which is recorded by default (quantities=['input'])"

PANELS = ("initial", "through", "loss")
#: From this share on a gradient is said to arrive.
ARRIVES = 0.01
_SHADED = "> 1 % arrives"
#: More lines are not listed in the caption, nor are longer names of a family.
MAX_LISTED, MAX_FAMILY = 8, 40

table = story.table

_NOTHING = {
    "initial": "no run was recorded at step 0",
    "through": "no run was recorded at two steps or more",
    "loss": "no run logged a loss at two steps or more: recorder.log(loss=loss)",
}
_CELLS = {"RNN": (style.PALETTE[1], "o"), "LSTM": (style.PALETTE[0], "s"), "GRU": (style.PALETTE[3], "^")}
_OTHERS = (style.PALETTE[2], *style.PALETTE[4:])


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", panel: str = "initial") -> Axes:
    """One panel.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax : Axes, optional
    panel : {"initial", "through", "loss"}

    Raises
    ------
    SettingError
    """
    if panel not in PANELS:
        raise SettingError(f"panel must be one of {', '.join(PANELS)}, got {panel!r}.")
    ax = style.axes(ax, style=style_name)
    rows = data[data["panel"] == panel]
    if not rows["value"].notna().any():
        ax.set_axis_off()
        style.note(ax, _NOTHING[panel])
        return ax
    {"initial": _initial, "through": _through, "loss": _loss}[panel](ax, rows)
    return ax


def _initial(ax: Axes, rows: pd.DataFrame) -> None:
    """What arrives at each input before training, a line per cell and initialisation, seeds as its band."""
    looks = looks_of_models(rows)
    marks.whole_x(ax, rows["x"])
    lines.limits(ax, [of_run["value"] for _, of_run in rows.groupby(["line", "run"])])
    _arriving(ax)
    lines.draw(ax, rows, looks, x="x", y="value", line="line", band=True)
    _name_arriving(ax)
    first = middle_at(rows, "first")
    _edges(ax, rows, looks)
    order = sorted(looks, key=lambda name: -first.get(name, -1.0))
    named = {name: f"{label(name, 34)}  {_arrives(first.get(name, np.nan))}" for name in order}
    width, height = style.size_of(ax)
    # The curves cross the panel: their names stand beside it, or below it where the page is narrow; as many as fit.
    narrow = width < 4.5
    most = 8 if narrow else max(3, int(0.72 * height * 72 / (1.45 * style.small())) - 1)
    handles = lines.handles({name: looks[name] for name in order[:most]}, named)
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.3) if narrow else (1.0, 1.0),
        ncols=2 if narrow and max(map(len, named.values())) < 22 else 1, handlelength=2.7, labelspacing=0.3,
        borderaxespad=0.1, handletextpad=0.5, columnspacing=1.0, title=f"at $t=1$:{_more(len(order) - len(handles))}",
        alignment="left", title_fontsize=style.small(),
    )  # fmt: skip
    ax.set_xlabel("timestep $t$ of the input (1 = read first)")
    ax.set_ylabel(_ratio(rows, "t"))


def _arrives(value: float) -> str:
    return "not finite" if np.isinf(value) else number(value, 1)


def _edges(ax: Axes, rows: pd.DataFrame, looks: dict[str, Any]) -> None:
    """Marks where the median of a line leaves the axis, and where a run set aside is not finite."""
    aside = rows["aside"] if "aside" in rows else pd.Series(False, index=rows.index)
    for name, look in looks.items():
        of_line = rows["line"] == name
        middle = rows[of_line & ~aside].groupby("x")["value"].median()
        lines.leaving(ax, middle.index, middle, look["color"])
        gone = rows["x"][of_line & aside & np.isinf(rows["value"])]
        marks.at_edge(ax, gone, top=True, color=look["color"], label="not finite")


def _more(hidden: int) -> str:
    return f" ({hidden} more: see CSV)" if hidden > 0 else ""


def _through(ax: Axes, rows: pd.DataFrame) -> None:
    """What arrives at the first input through training, a line per threshold."""
    looks = looks_of_thresholds(rows)
    rows = _steady(rows)
    marks.whole_x(ax, rows["x"])
    lines.limits(ax, [of_run["value"] for _, of_run in rows.groupby(["line", "run"])])
    _arriving(ax)
    lines.draw(ax, rows, looks, x="x", y="value", line="line", band="runs")
    _edges(ax, rows, looks)
    ends = middle_at(rows[~rows["aside"]], "last")
    _ends(ax, looks, {name: (ends.get(name, np.nan), name) for name in looks})
    ax.set_xlabel("training step")
    ax.set_ylabel(_ratio(rows, "1"))


def _loss(ax: Axes, rows: pd.DataFrame) -> None:
    """The loss of the same runs, with what was reached on held-out data at the ends."""
    looks = looks_of_thresholds(rows)
    smooth = lines.set_aside(pd.concat([_smooth(of_run) for _, of_run in rows.groupby("run", sort=False)]))
    chance = rows["chance"].dropna()
    marks.whole_x(ax, rows["x"])
    top = loss_limits(ax, [of_line["value"] for _, of_line in smooth.groupby("run")], chance)
    lines.draw(ax, smooth, looks, x="x", y="value", line="line", band="runs", log=False)
    if len(chance):
        ax.axhline(float(chance.iloc[0]), color=style.GREY, linestyle=":", linewidth=0.9, zorder=1)
    for _, of_run in smooth.groupby("run", sort=False):
        line = of_run["line"].iloc[0]
        colour, over, gone = looks[line]["color"], of_run["x"][of_run["value"] > top], of_run["x"][of_run["diverged"]]
        marks.at_edge(ax, over[:1], top=True, color=colour, label="leaves the axis", marker="^", of=line)
        marks.at_edge(ax, gone[:1], top=True, color=colour, label="diverged", of=line)
    ends, parted = middle_at(smooth[~smooth["aside"]], "last"), lines.parted(rows)
    reached = _reached(rows)
    named = {}
    for name in looks:
        gone = parted[name][0] == parted[name][1]
        said = f"\n{reached[name]}" if reached[name] else ""
        named[name] = (np.inf if gone else ends.get(name, np.inf), f"{name}{said}")
    _ends(ax, looks, named)
    ax.set_xlabel("training step")
    ax.set_ylabel("loss")


def _steady(rows: pd.DataFrame) -> pd.DataFrame:
    """Those whose gradient is not finite at the end, set aside where others of their line go on."""
    at_end = rows["x"] == rows.groupby("run")["x"].transform("max")
    return lines.set_aside(rows.assign(diverged=at_end & np.isinf(rows["value"])))


def _reached(rows: pd.DataFrame) -> dict[str, str]:
    """What each line reached on held-out data, in words: the median of the runs that its line stands for."""
    middle = lines.set_aside(rows).query("not aside").groupby("line")["accuracy"].median()
    found = {}
    for name, (gone, of) in lines.parted(rows).items():
        unknown = "diverged" if gone == of else ""
        found[name] = unknown if np.isnan(middle[name]) else _metric(float(middle[name]), rows)
    return found


def _smooth(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values("x")
    value = rows["value"].to_numpy(dtype=float)
    return rows.assign(value=running_median(value, smoothing(int(np.isfinite(value).sum()))))


def loss_limits(ax: Axes, curves: Sequence[Any], chance: Any = ()) -> float:
    """A linear axis from the lowest loss to where training starts, and a third beyond; returns its upper end.

    What rises further leaves the axis: one run that went astray must not squeeze the others.
    """
    finite = [values[np.isfinite(values)] for values in (np.asarray(c, dtype=float) for c in curves)]
    finite = [values for values in finite if values.size]
    if not finite:
        return np.inf
    lowest, highest = min(v.min() for v in finite), max(v.max() for v in finite)
    usual = max([float(np.median([v[0] for v in finite])), *np.asarray(chance, dtype=float)[:1]])
    top = min(highest, max(usual + (usual - lowest) / 3, lowest + 1e-12))
    pad = 0.05 * (top - lowest) or 0.1 * abs(top) or 0.1
    ax.set_ylim(lowest - pad, top + pad)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return float(top + pad)


def _metric(value: float, rows: pd.DataFrame) -> str:
    share = str(rows["metric"].iloc[0]).endswith(("accuracy", "acc"))
    return f"{100 * value:.0f} %" if share else number(value)


def _ends(ax: Axes, looks: dict[str, Any], named: dict[str, tuple[float, str]]) -> None:
    """Names, each with what follows it, beside the ends of the lines; too many of them in a legend."""
    if len(looks) > lines.MAX_ENDS:
        style.legend(ax, lines.handles(looks, {name: label(name, style.name_limit(ax)) for name in looks}))
        return
    ends = [(y, f"{label(name, 18)}{text.removeprefix(name)}", looks[name]) for name, (y, text) in named.items()]
    lines.name_ends(ax, ends)


def _arriving(ax: Axes) -> None:
    """Where more than a hundredth arrives."""
    low, high = ax.get_ylim()
    if low < ARRIVES < high:
        ax.axhspan(ARRIVES, high, color=style.PALETTE[3], alpha=0.07, linewidth=0, zorder=0)


def _name_arriving(ax: Axes) -> None:
    """Says what the shade is, once, where the curves leave room for it; the caption says it as well."""
    low, high = ax.get_ylim()
    if not low < ARRIVES < high:
        return
    edge = float(ax.transLimits.transform(ax.transScale.transform((1.0, ARRIVES)))[1])
    tall = style.size_of(ax)[1] * ax.get_position(original=True).height * 72
    height = 1.5 * style.least() / tall
    width = len(_SHADED) * style.character() * style.least() / (72 * style.width_of(ax)) + 0.02
    corners = [(x, y) for y in (1.0 - height, edge) for x in np.linspace(0.0, 1.0 - width, 9)]
    for x, y in corners:
        if y >= edge and not lines.crosses(ax, x, y, width, height):
            ax.text(
                x + 0.01, y + height / 2, _SHADED, transform=ax.transAxes, va="center", fontsize=style.least(),
                color=style.GREY, zorder=1,
            )  # fmt: skip
            return


def _ratio(rows: pd.DataFrame, at: str) -> str:
    quantity = str(rows["quantity"].iloc[0])
    top = norm_symbol(quantity).replace("_t", f"_{at}")
    return rf"{top} / {norm_symbol(quantity).replace('_t', '_T')}"


def looks_of_models(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Hue and marker by cell, dash by initialisation: grey print keeps two of them."""
    heads = rows.groupby("line", sort=False)[["cell", "init"]].first()
    if heads.duplicated().any() or (heads["init"] == "").any():  # told apart by something else
        return {str(name): style.look(i) for i, name in enumerate(heads.index)}
    inits = sorted(dict.fromkeys(heads["init"]), key=lambda init: init != "default")  # the default is the solid one
    others = style.distinct([c for c in heads["cell"] if c not in _CELLS])
    found = {}
    for name, cell, init in heads.itertuples():
        at = others.get(cell, 0)
        colour, marker = _CELLS.get(cell, (_OTHERS[at % len(_OTHERS)], style.MARKERS[(3 + at) % len(style.MARKERS)]))
        dash = style.DASHES[inits.index(init) % len(style.DASHES)]
        found[str(name)] = {"color": colour, "linestyle": dash, "marker": marker}
    return found


def looks_of_thresholds(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """From light (tight) to dark (loose), black without clipping; other lines as they come."""
    names = list(dict.fromkeys(rows.sort_values("threshold", kind="stable")["line"]))
    if "by" in rows and rows["by"].iloc[0] != "threshold":
        return looks_of_models(rows)
    limited = [name for name in names if name != "no clip"]
    found = {}
    for i, name in enumerate(names):
        shade = 0.15 + 0.6 * (limited.index(name) / max(1, len(limited) - 1)) if name in limited else 1.0
        colour = "#000000" if name not in limited else to_hex(style.ORDERED(shade))
        found[name] = {
            "color": colour, "linestyle": style.DASHES[i % len(style.DASHES)],
            "marker": style.MARKERS[i % len(style.MARKERS)],
        }  # fmt: skip
    return found


def middle_at(rows: pd.DataFrame, end: str) -> dict[str, float]:
    """Median over the runs of each line at its first or last position with a value: where the line is drawn to end.

    That of a gradient is of its logarithms, as the axis is: of two runs it lies in the middle of the decades.
    """
    known = rows[rows["value"].notna()]
    ends = known.groupby("line", sort=False)["x"].transform("min" if end == "first" else "max")
    at = known[known["x"] == ends].groupby("line", sort=False)["value"]
    if "panel" not in rows or (rows["panel"] == "loss").any():
        return {str(name): float(value) for name, value in at.median().items()}
    with np.errstate(divide="ignore"):
        middle = {str(name): float(np.median(np.log10(values))) for name, values in at}
    return {name: 0.0 if np.isnan(value) else 10.0**value for name, value in middle.items()}


def panels(data: pd.DataFrame, *, style_name: str = "screen") -> Figure:
    """The panels beside each other, below each other where the page is narrow; without those that have nothing."""
    width = style.preset(style_name).width
    shown = [panel for panel in PANELS if data["value"][data["panel"] == panel].notna().any()]
    if not shown:
        raise NotRecordedError("no run holds what the figure shows: " + "; ".join(_NOTHING.values()) + ".")
    if len(shown) == 1 or (width >= 4.5 and len(shown) == 2):
        fig, grid = style.figure(style_name, columns=len(shown), aspect=0.45 if len(shown) > 1 else 0.55)
        axes = list(np.ravel([grid]))
    elif width >= 4.5:
        fig, _ = style.figure(style_name, aspect=0.76, exact=True)
        fig.clear()
        # Apart, so that the names beside the one do not narrow the others.
        parts: Any = fig.subfigures(2, 1)
        axes = [parts[0].subplots(), *parts[1].subplots(1, 2)]
    else:
        fig, grid = style.figure(style_name, rows=len(shown), aspect=0.72 * len(shown), exact=True)
        axes = list(np.ravel([grid]))
    for letter, ax, panel in zip("abc", axes, shown, strict=False):
        draw(data, ax, style_name=style_name, panel=panel)
        title = heading(data[data["panel"] == panel], panel)
        ax.set_title(f"{letter}  {title}" if len(shown) > 1 else title, loc="left")
    return fig


def heading(rows: pd.DataFrame, panel: str) -> str:
    """What a panel shows, in few words."""
    if panel == "initial":
        seeds = int(rows.groupby("line")["run"].nunique().max())
        return "before training" + (f", {seeds} seeds" if seeds > 1 else "")
    whose = str(rows["family"].iloc[0])
    whose = label(whose) if len(whose) <= 20 else "several models"
    if panel == "through":
        return f"{whose} by threshold" if rows["by"].iloc[0] == "threshold" else "through training"
    return f"loss; {metric_words(str(rows['metric'].iloc[0]))}" if rows["accuracy"].notna().any() else "loss"


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, with its numbers."""
    initial, through, loss = (data[data["panel"] == panel] for panel in PANELS)
    quantity = symbol(str(data["quantity"].iloc[0])).strip("$").replace(r"\partial ", "∂").replace("_t", "")
    said = []
    if initial["value"].notna().any():
        n = int(initial.groupby("line")["run"].nunique().max())
        band = f"median over up to {n} seeds, band from the lowest to the highest" if n > 1 else "one run each"
        said.append(
            f"Norm of {quantity} at each input before the first update, over that at the last input{_entry(initial)}: "
            f"{band}. "
            f"At the first input: {_listed(middle_at(initial, 'first'))}. Shaded: more than 1 % arrives."
        )
    else:
        said.append(f"Before training: {_NOTHING['initial']}.")
    for rows, what in ((through, "through"), (loss, "loss")):
        same = what == "loss" and set(rows["run"]) == set(through["run"])
        said.append(_course(rows, what, same) if rows["value"].notna().any() else f"{_NOTHING[what].capitalize()}.")
    seeds = int(through.groupby("line")["run"].nunique().max()) if len(through) else 1
    over = "median over the runs that did not diverge" if loss["diverged"].eq(True).any() else "median"
    said += [f"Through training: {over}; {lines.around_words(seeds)}."] if seeds > 1 else []
    said += ["Triangles on the edge: there a line leaves the axis; crosses: not finite, or diverged."]
    return " ".join([*said, *select.left_out_words(data)])


def _listed(ends: dict[str, float]) -> str:
    """What lines come to, the most first; of very many those at both ends."""
    ordered = [
        f"{name}: {'not finite' if np.isinf(value) else number(value)}"
        for name, value in sorted(ends.items(), key=lambda one: -one[1])
    ]
    if len(ordered) <= MAX_LISTED:
        return ", ".join(ordered)
    half = MAX_LISTED // 2
    return f"{', '.join(ordered[:half])} ... {', '.join(ordered[-half:])} ({len(ordered)} in all)"


def _entry(initial: pd.DataFrame) -> str:
    """Where some run's gradient enters before its last input, a loss in the middle: there it is compared with that."""
    last = initial[initial["x"] == initial.groupby("run")["x"].transform("max")]
    return " that it reaches" if last["value"].isna().any() else ""


def _course(rows: pd.DataFrame, what: str, same: bool = False) -> str:
    rows = _steady(rows) if what == "through" else lines.set_aside(rows)
    ends, family, n = middle_at(rows[~rows["aside"]], "last"), str(rows["family"].iloc[0]), rows["run"].nunique()
    of = "" if len(family) > MAX_FAMILY or n == 1 else f" of {family}"
    whose = "one run" if n == 1 else f"the {'same' if same else n} runs{of * (not same)}"
    if what == "through":
        return f"At the first input through training, {whose}: at the end {_listed(ends)}."
    reached, parted = _reached(rows), lines.parted(rows)
    each = ", ".join(
        f"{name}: {'diverged' if parted[name][0] == parted[name][1] else number(value)}"
        + (f" ({reached[name]})" if reached[name] not in ("", "diverged") else "")
        for name, value in ends.items()
    )  # fmt: skip
    metric = metric_words(str(rows["metric"].iloc[0]))
    dotted = " Dotted: chance." if rows["chance"].notna().any() else ""
    return f"Loss of {whose}, at the end (with {metric or 'nothing held out'}): {each}.{dotted}"
