"""What each initialisation lets through before any training, against the number of steps back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.errors import UnknownNameError
from gradscope.plots import lines, marks, style, titles
from gradscope.plots.decay import y_label
from gradscope.plots.naming import short_sites

TITLE = "What each initialisation lets through"
NEEDS = "the model itself: gradscope.remedies(model, closure).plot()"
FROM_RUNS = False
#: More panels than this leave none of them room.
MAX_PANELS = 6


def table(measured: Any, *, site: str | None = None) -> pd.DataFrame:
    """One row per site, initialisation, draw and lag.

    Parameters
    ----------
    measured : Remedies
        From :func:`gradscope.remedies`.
    site : str, optional
        By default every site.

    Returns
    -------
    DataFrame
        ``site, quantity, initialisation, draw, lag, norm, relative``; ``relative`` to where the gradient enters.

    Raises
    ------
    UnknownNameError
    """
    if site is not None and site not in measured.sites:
        raise UnknownNameError("site", site, measured.sites)
    frames = []
    for one in measured.tried:
        if site not in (None, one.site):
            continue
        for draw, fit in enumerate(one.fits):
            curve = fit.curve
            with np.errstate(over="ignore", under="ignore"):
                norm = 10.0**curve.log10
                relative = 10.0 ** (curve.log10 - curve.log10[curve.first]) if curve.last >= curve.first else norm
            head = {"site": one.site, "quantity": one.quantity, "initialisation": one.name, "draw": draw}
            lags = curve.lags.astype(np.int64)
            frames.append(pd.DataFrame({**head, "lag": lags, "norm": norm, "relative": relative}))
    return pd.concat(frames, ignore_index=True)


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    legend: bool = True,
    among: Sequence[str] = (),
) -> Axes:
    """One line per initialisation at one site, its draws together as their geometric mean with a band.

    ``among`` are all initialisations that the figure shows, so that one looks the same in every panel.
    """
    ax = style.axes(ax, style=style_name)
    names = list(dict.fromkeys([*among, *data["initialisation"]]))
    logs = data.assign(log10=np.log10(data["relative"].where(data["relative"] > 0)))
    looks = {name: style.look(i) for i, name in enumerate(names)}
    for name, rows in logs.groupby("initialisation", sort=False):
        mean = rows.groupby("lag", as_index=False).agg(y=("log10", "mean"), low=("log10", "min"), high=("log10", "max"))
        if rows["draw"].nunique() > 1:
            marks.band(ax, mean["lag"], 10 ** mean["low"], 10 ** mean["high"], looks[name]["color"], name)
        shown = {"markevery": style.mark_every(len(mean), names.index(name)), **looks[name]}
        sns.lineplot(x=mean["lag"], y=10 ** mean["y"], ax=ax, label=name, legend=False, **shown)
    marks.log_y(ax, [data["relative"]])
    marks.whole_x(ax, data["lag"])
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(_y_label(data))
    if legend:
        named = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
        style.legend(ax, named, title=str(data["site"].iloc[0]))
    return ax


def panels(data: pd.DataFrame, *, style_name: str = "screen") -> Figure:
    """One panel per site, below one legend of them all; the first six of more."""
    every = list(dict.fromkeys(data["site"]))
    if len(every) == 1:
        return cast("Figure", draw(data, style_name=style_name).figure)
    sites, names = every[:MAX_PANELS], list(dict.fromkeys(data["initialisation"]))
    width = style.preset(style_name).width
    entry = (max(map(len, names)) * style.character() + 4.5) * style.small() / 72
    across = max(1, min(len(names), int(0.95 * width / entry)))
    rows = -(-len(sites) // 2)
    height = 1.5 * rows + 0.2 * -(-len(names) // across) + 0.5
    fig, grid = style.figure(style_name, rows=rows, columns=2, aspect=style.fitting(style_name, height), exact=True)
    axes = list(np.ravel([grid]))
    for ax, site in zip(axes, sites, strict=False):
        draw(data[data["site"] == site], ax, style_name=style_name, legend=False, among=names)
        ax.set(xlabel="", ylabel="")
    for ax in axes[len(sites) :]:
        ax.remove()
    entries = lines.handles({name: style.look(i) for i, name in enumerate(names)})
    fig.legend(handles=entries, loc="outside upper left", ncols=across)
    label_size = axes[0].xaxis.label.get_fontsize()
    more = f"\n{len(sites)} of {len(every)} sites; plot(site=...) draws one" if len(every) > len(sites) else ""
    fig.supxlabel(f"lag (recurrent steps back from the last){more}", fontsize=label_size)
    fig.supylabel(_y_label(data), fontsize=label_size)
    short = short_sites(sites)
    titles.titles(fig, {ax: short[site] for ax, site in zip(axes, sites, strict=False)})
    return fig


def _y_label(data: pd.DataFrame) -> str:
    return y_label(list(dict.fromkeys(map(str, data["quantity"]))), relative=True, to="where it enters")


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    draws = int(data["draw"].max()) + 1
    band = (
        f" Lines are geometric means of up to {draws} draws; bands reach from the smallest to the largest."
        if draws > 1
        else ""
    )
    return (
        "Gradient of the loss against lag before any training, relative to where it enters, geometric mean over the "
        f"sequences of one batch, with the model as it is and under each initialisation.{band}"
    )


def show(measured: Any, ax: Axes | None = None, *, site: str | None = None) -> Figure | Axes:
    """Draw a measurement: into ``ax`` where it is given and one site is meant, else as a figure of its own."""
    data = table(measured, site=site or (measured.sites[0] if ax is not None else None))
    if ax is not None:
        return draw(data, ax)
    return panels(data)
