"""Gate adjoints against lag: through which gate the gradient passes, and where it dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradscope.diagnostics import decay_curve
from gradscope.errors import SettingError
from gradscope.plots import heatmap, marks, style, titles
from gradscope.plots.naming import line_names
from gradscope.plots.text import label
from gradscope.reading import select
from gradscope.reading.labelled import seeds_together
from gradscope.words import number

TITLE = "Gate adjoints against lag"
NEEDS = "the gate adjoints: quantities=[..., 'gates']"


#: More panels than this are not drawn.
MAX_PANELS = 12

LAG = "lag (recurrent steps back from the last)"
BAR = r"$\Vert \partial L/\partial a_t \Vert$"


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site, gate and lag: ``norm`` is the geometric mean over sequences of ∂L/∂(pre-activation).

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames, of_seed = [], seeds_together(runs)
    for name, run, at, _ in select.sites_with(runs, "gates", site):
        found = select.block(run, at, "gates", step)
        lags, values = select.laid(found.values, found.after)
        values = np.moveaxis(values, 2, 0).reshape(values.shape[2], -1, values.shape[-1])
        starts = np.repeat(found.after, found.lengths.shape[1])
        lengths = found.lengths.reshape(-1)
        there, reached = lengths > 0, lags < (starts + lengths).max()
        gates = run.site(at).gates or tuple(f"gate {i}" for i in range(len(values)))
        for gate, norms in zip(gates, values, strict=False):
            curve = decay_curve(
                lags[reached],
                norms[there][:, reached],
                lengths=(starts + lengths)[there],
                starts=starts[there],
                smallest_normal=found.smallest_normal,
            )
            zero = curve.n_zero + curve.n_unreached > 0  # before a loss in the middle a gate's adjoint is zero as well
            norm = np.where(np.isnan(curve.log10) & zero, 0.0, 10.0**curve.log10)
            norm = np.where(np.isnan(norm) & (curve.n_nonfinite > 0), np.inf, norm)
            rows = {"lag": curve.lags.astype(np.int64), "norm": norm, "n_sequences": curve.support}
            head = {"run": name, "line": of_seed[name], "site": at, "step": found.step, "gate": gate}
            frames.append(pd.DataFrame({**head, **rows}))
    data = pd.concat(frames, ignore_index=True)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), "no gate adjoints were recorded")
    return data


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    colorbar: bool = True,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Heatmap of one run and site: a row per gate, lag to the right, logarithmic colour; hatched is exactly zero.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax : Axes, optional
        A new figure's when not given.
    colorbar : bool
    limits : (low, high), optional
        Ends of the colour scale, to share it between panels.

    Raises
    ------
    SettingError
        The table holds more than one run and site.
    """
    ax = style.axes(ax, style=style_name, aspect=0.34)
    one_panel(data)
    gates = list(dict.fromkeys(data["gate"]))
    grid = data.pivot(index="gate", columns="lag", values="norm").loc[gates].to_numpy()
    mesh = heatmap.draw(ax, grid, left=float(data["lag"].min()), top=0, limits=limits)
    ax.set_yticks(range(len(gates)), [label(gate) for gate in gates])
    ax.set_ylim(len(gates) - 0.5, -0.5)
    marks.whole_x(ax, data["lag"])
    ax.set_xlim(data["lag"].min() - 0.5, data["lag"].max() + 0.5)
    ax.set_xlabel(LAG)
    ax.set_ylabel("gate")
    if colorbar:
        heatmap.bar([ax], mesh, BAR)
    return ax


def panels(data: pd.DataFrame, *, style_name: str = "screen", limit: int = MAX_PANELS) -> Figure:
    """One heatmap per run and site; where not all fit (``limit``) each model has one before a second seed."""
    data = data if "line" in data else data.assign(line=data["run"])
    every = list(data.groupby(["line", "run", "site"], sort=False))
    names = line_names([(run, site) for (_, run, site), _ in every])
    wide = style.preset(style_name).width > 4.5
    gates = int(max(rows["gate"].nunique() for _, rows in every))
    columns = 2 if wide and len(every) > 3 else 1
    many = len(every) > 3 * columns
    once = many and data.groupby(["run", "site"])["lag"].max().nunique() == 1  # the lags stand below the last alone
    each = (0.24 if once else 0.42) + 0.15 * gates if many else 0.5 + 0.2 * gates + 0.3 * (len(every) > 1)
    room = 72 * 0.85 * style.preset(style_name).width / columns
    if many and max(map(len, names)) * style.character() * style.small() > room:  # names on two lines
        each += 0.13
    kept = titles.chosen([key for key, _ in every], min(limit, columns * int((style.PAGE - 0.5) / each)))
    groups = [every[i] for i in kept]
    rows_of_panels = -(-len(groups) // columns)
    aspect = style.fitting(style_name, each * rows_of_panels + 0.35)
    fig, grid = style.figure(style_name, rows=rows_of_panels, columns=columns, aspect=aspect, exact=True)
    flat = list(np.ravel([grid]))
    limits = heatmap.color_limits(pd.concat([rows for _, rows in groups])["norm"].to_numpy())
    for i, (ax, (_, rows)) in enumerate(zip(flat, groups, strict=False)):
        draw(rows, ax, style_name=style_name, colorbar=False, limits=limits)
        if len(groups) > 1:
            last = i >= len(groups) - columns
            ax.tick_params(labelbottom=last or not once)
            ax.set_xlabel("")
            ax.set_ylabel(ax.get_ylabel() if i % columns == 0 and not many else "")
    for ax in flat[len(groups) :]:
        ax.remove()
    shown = flat[: len(groups)]
    if len(groups) > 1:  # once: beside each other they would run into their neighbours
        fig.supxlabel(LAG + style.not_drawn(names[len(groups) :]), fontsize=shown[0].xaxis.label.get_fontsize())
    heatmap.bar(shown, shown[0].collections[-1], BAR)
    if len(groups) > 1:
        titles.titles(fig, {ax: names[i] for ax, i in zip(shown, kept, strict=True)})
    return fig


def one_panel(data: pd.DataFrame) -> None:
    """Refuse a table of several runs or sites where a figure shows one.

    Raises
    ------
    SettingError
    """
    found = data[["run", "site"]].drop_duplicates()
    if len(found) > 1:
        names = ", ".join(f"{run}: {site}" for run, site in found.itertuples(index=False))
        raise SettingError(f"this figure shows one run and site, here are {len(found)} ({names}): select one.")


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    lost = "; white: below the smallest normal number" if data["norm"].isna().any() else ""
    keys = data[["run", "site"]].drop_duplicates()
    said = (
        f"Norm of the adjoint of each gate's pre-activation against lag ({data['lag'].min()} to {data['lag'].max()}), "
        f"geometric mean over up to {int(data['n_sequences'].max())} sequences, step {data['step'].max()}. Colours "
        f"span at most 12 decades. Hatched: exactly zero (grey) or not finite (red){lost}."
    )
    more = [_strongest(data)] if len(keys) == 1 else []
    if len(keys) > MAX_PANELS:
        more.append(
            f"Drawn are at most {MAX_PANELS} of {len(keys)} runs and sites, of every model where they have room."
        )
    return " ".join([said, *more, *select.left_out_words(data)])


def _strongest(data: pd.DataFrame) -> str:
    """Through which gate most passes, at both ends."""
    said = []
    for lag in (data["lag"].min(), data["lag"].max()):
        at = data[(data["lag"] == lag) & np.isfinite(data["norm"])]
        if len(at):
            top = at.loc[at["norm"].idxmax()]
            which = f"{top['gate']} ({number(top['norm'])})" if top["norm"] else "all are zero"
            said.append(f"at lag {lag} {which}")
    return f"Largest: {', '.join(said)}." if said else "No usable norm."
