"""Decay through training: the curve of one site from the first record (light) to the last (dark)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gradscope.errors import SettingError
from gradscope.plots import decay, lines, marks, style, titles
from gradscope.plots.naming import line_names
from gradscope.reading import select
from gradscope.reading.curves import norms
from gradscope.reading.labelled import seeds_together
from gradscope.words import counted, number

TITLE = "Decay through training"
NEEDS = "records at two or more steps (every=... smaller than the number of training steps)"

#: More panels than this do not fit on a page.
MAX_PANELS = 12


def table(
    runs: Sequence[Any],
    *,
    site: str | Sequence[str] | None = None,
    quantity: str | None = None,
    curves: int = 8,
    coverage: float = 0.8,
) -> pd.DataFrame:
    """Rows of :func:`gradscope.plots.decay.table` for up to ``curves`` recorded steps, first and last included.

    Steps without a single usable norm are kept: a run that diverged shows it.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    select.per_lag(quantity)
    if curves < 1:
        raise SettingError(f"curves must be at least 1, got {curves}.")
    rows, of_seed = [], seeds_together(runs)
    for name, run, at, shown in select.sites_with(runs, quantity, site):
        found = norms(run, at, shown)
        steps = found.steps
        for i in titles.evenly(len(steps), curves):
            head = {"run": name, "site": at, "quantity": shown, "first_step": steps[i], "step": steps[i]}
            head["line"] = of_seed[name]
            rows.append(decay.curve_rows(found.curve(found.at(steps[i])), head, coverage))
    data = decay.together(rows)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), f"no {quantity or 'curve against lag'} there")
    return data


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    relative: bool = True,
    colorbar: bool = True,
    steps: tuple[int, int] | None = None,
    beside: pd.DataFrame | None = None,
) -> Axes:
    """Curves of one run and site, one hue from early to late. See :func:`panels` for several.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax : Axes, optional
        A new figure's when not given.
    relative : bool
        Divide each curve by its first usable value.
    colorbar : bool
        Beside the axes, with the steps drawn.
    steps : (first, last), optional
        Ends of the colour scale, to share it between panels.
    beside : DataFrame, optional
        All that the y axis is to hold, to share it between panels.

    Raises
    ------
    SettingError
        The table holds more than one run and site.
    """
    panels_in = data.groupby(["run", "site"], sort=False).ngroups
    if panels_in > 1:
        raise SettingError(f"one panel shows one run and site, the table has {panels_in}: select one, or use panels().")
    ax = style.axes(ax, style=style_name)
    column = "relative" if relative else "norm"
    drawn = sorted(set(data["step"]))
    scale = style.early_to_late(*(steps or (drawn[0], drawn[-1])))
    colours = [style.EARLY_TO_LATE(scale(step)) for step in drawn]
    marks.whole_x(ax, data["lag"])
    held = data if beside is None else beside
    curves = [rows[column].to_numpy() for _, rows in held.groupby(["run", "site", "step"], sort=False)]
    lines.limits(ax, curves, start=1.0 if relative else float(held["norm"].max(skipna=True) or 1.0))
    # The dash alternates too: in grey print neighbours must not merge.
    looks = {
        f"step {step}": {"color": to_hex(colour), "linestyle": style.DASHES[i % 2], "marker": ""}
        for i, (step, colour) in enumerate(zip(drawn, colours, strict=True))
    }
    named = data.assign(shown=data[column], name=[f"step {step}" for step in data["step"]])
    lines.draw(ax, named, looks, x="lag", y="shown", line="name")
    for name, rows in named.groupby("name", sort=False):
        decay.edges(ax, rows, looks[str(name)]["color"], of=data["run"].iloc[0])  # steps of one run may share a place
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(decay.y_label(list(dict.fromkeys(data["quantity"])), relative, decay.origin(data)))
    if not np.isfinite(data[column]).any():
        style.note(ax, "no usable norm")
    if len(drawn) == 1:
        ax.text(0.98, 0.95, f"step {drawn[0]} only", transform=ax.transAxes, ha="right", va="top", color=style.GREY)
    elif colorbar:
        _bar(ax.figure, [ax], drawn, scale)
    return ax


def _bar(fig: Any, axes: list[Axes], steps: list[int], scale: Any, rows: int = 1) -> None:
    bar = fig.colorbar(ScalarMappable(scale, style.EARLY_TO_LATE), ax=axes, pad=0.02, aspect=30 * rows)
    bar.outline.set_visible(False)
    bar.set_ticks(_few(steps))
    bar.set_ticklabels([str(step) for step in _few(steps)])
    bar.ax.minorticks_off()
    bar.set_label("training step")


def _few(steps: list[int]) -> list[int]:
    """At most six steps to label, far enough apart on the bar."""
    span, kept = steps[-1] - steps[0], [steps[0]]
    for step in steps[1:-1]:
        if step - kept[-1] >= span / 6 and steps[-1] - step >= span / 6:
            kept.append(step)
    return [*kept, steps[-1]]


def panels(data: pd.DataFrame, *, style_name: str = "screen", relative: bool = True, limit: int = MAX_PANELS) -> Figure:
    """One panel per run and site, with common scales, to compare how gradient flow opens.

    Of more than ``limit`` all lines have one before a second seed or the other sites of one do.
    """
    data = data if "line" in data else data.assign(line=data["run"])
    every = list(data.groupby(["line", "run", "site"], sort=False))
    kept_at = titles.chosen([key for key, _ in every], limit)
    groups = [every[i] for i in kept_at]
    wide = style.preset(style_name).width > 4.5
    columns = min(len(groups), (3 if len(groups) != 4 else 2) if wide else (1 if len(groups) < 4 else 2))
    rows = -(-len(groups) // columns)
    each = {1: 0.55, 2: 0.4, 3: 0.34}[columns] if wide else {1: 0.55, 2: 0.52}[columns]
    fig, grid = style.figure(style_name, rows=rows, columns=columns, aspect=each * rows)
    flat = list(np.ravel([grid]))
    kept = pd.concat([rows_of for _, rows_of in groups])
    steps = sorted(int(step) for step in set(kept["step"]))
    names = line_names([(run, site) for (_, run, site), _ in every])
    for ax, (_, rows_of) in zip(flat, groups, strict=False):
        draw(
            rows_of, ax, relative=relative, style_name=style_name, colorbar=False, steps=(steps[0], steps[-1]),
            beside=kept,
        )  # fmt: skip
    for ax in flat[len(groups) :]:
        ax.remove()
    if len(steps) > 1:
        _bar(fig, flat[: len(groups)], steps, style.early_to_late(steps[0], steps[-1]), rows)
    if len(groups) > 1:
        _once_per_grid(fig, flat[: len(groups)], columns, style.not_drawn(names[len(groups) :]))
    titles.titles(fig, {ax: names[i] for ax, i in zip(flat, kept_at, strict=False)})
    return fig


def _once_per_grid(fig: Figure, axes: list[Axes], columns: int, more: str) -> None:
    """Common labels instead of one per panel; numbers on the y axis at the left alone, as the scale is one."""
    labels = {ax.get_ylabel() for ax in axes}
    fig.supxlabel(axes[0].get_xlabel() + more, fontsize=axes[0].xaxis.label.get_fontsize())
    relative = any("relative" in text for text in labels)
    text = labels.pop() if len(labels) == 1 else decay.y_label(["", ""], relative)
    fig.supylabel(text, fontsize=axes[0].yaxis.label.get_fontsize())
    for i, ax in enumerate(axes):
        ax.set_xlabel("")
        ax.set_ylabel("")
        ax.tick_params(labelleft=i % columns == 0)


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    steps = sorted(set(data["step"]))
    quantities = " and ".join(decay.symbol_words(q) for q in dict.fromkeys(data["quantity"]))
    keys = list(data[["run", "site"]].drop_duplicates().itertuples(index=False, name=None))
    when = f"{len(steps)} recorded steps from {steps[0]} (light) to {steps[-1]} (dark)"
    when = f"step {steps[0]}" if len(steps) == 1 else when
    said = (
        f"Norm of the {quantities} against lag, relative to the first usable lag, at {when}; geometric mean over up to "
        f"{counted(int(data['n_sequences'].max()), 'sequence')}, lags {data['lag'].min()} to {data['lag'].max()}."
    )
    more = [_left_at_the_end(data)] if len(keys) <= 3 else []
    if len(keys) > MAX_PANELS:
        more.append(f"Drawn are {MAX_PANELS} of {len(keys)} runs and sites, of every model where they have room.")
    return " ".join([said, *more, decay.EDGE, *select.left_out_words(data)])


def _left_at_the_end(data: pd.DataFrame) -> str:
    """What is left at the last lag with a usable norm, which is not the same at every step: at the first and the last.

    A run that diverged has its last such step before.
    """
    usable = data[np.isfinite(data["relative"])]
    found = []
    groups = dict(list(usable.groupby(["run", "site"], sort=False)))
    for name, rows in zip(line_names(list(groups)), groups.values(), strict=True):
        ends = rows.sort_values("lag", kind="stable").groupby("step")[["lag", "relative"]].last()
        each = [f"{number(one.relative)} at lag {one.lag:g} (step {one.Index})" for one in ends.itertuples()]
        found.append(f"{name} {', '.join(dict.fromkeys([each[0], each[-1]]))}")
    return f"What is left: {'; '.join(found)}." if found else "No usable norm."
