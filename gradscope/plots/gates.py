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
from gradscope.plots import heatmap, marks, style
from gradscope.plots.decay import line_names
from gradscope.plots.text import label
from gradscope.reading import select

TITLE = "Gate adjoints against lag"
NEEDS = "the gate adjoints: quantities=[..., 'gates']"


BAR = r"$\Vert \partial L/\partial a_t \Vert$"


def table(
    runs: Sequence[Any], *, site: str | Sequence[str] | None = None, step: int | str | None = None
) -> pd.DataFrame:
    """One row per run, site, gate and lag: ``norm`` is the geometric mean over sequences of ∂L/∂(pre-activation).

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    frames = []
    for name, run, at, _ in select.sites_with(runs, "gates", site):
        found = select.block(run, at, "gates", step)
        values = np.moveaxis(found.values, 2, 0)
        values = values.reshape(len(values), -1, values.shape[-1])
        lengths = found.lengths.reshape(-1)
        gates = run.site(at).gates or tuple(f"gate {i}" for i in range(len(values)))
        for gate, norms in zip(gates, values, strict=False):
            kept, longest = norms[lengths > 0], int(lengths.max())
            curve = decay_curve(
                np.arange(longest),
                kept[:, :longest],
                lengths=lengths[lengths > 0],
                smallest_normal=found.smallest_normal,
            )
            norm = np.where(np.isnan(curve.log10) & (curve.n_zero > 0), 0.0, 10.0**curve.log10)
            norm = np.where(np.isnan(norm) & (curve.n_nonfinite > 0), np.inf, norm)
            rows = {"lag": np.arange(longest), "norm": norm, "n_sequences": curve.support}
            frames.append(pd.DataFrame({"run": name, "site": at, "step": found.step, "gate": gate, **rows}))
    return pd.concat(frames, ignore_index=True)


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    colorbar: bool = True,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Heatmap of one run and site: a row per gate, lag to the right, logarithmic colour; grey is exactly zero.

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
    mesh = heatmap.draw(ax, grid, left=0, top=0, limits=limits)
    ax.set_yticks(range(len(gates)), [label(gate) for gate in gates])
    ax.set_ylim(len(gates) - 0.5, -0.5)
    marks.whole_x(ax, data["lag"])
    ax.set_xlim(-0.5, data["lag"].max() + 0.5)
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel("gate")
    if colorbar:
        heatmap.bar([ax], mesh, BAR)
    return ax


def panels(data: pd.DataFrame, *, style_name: str = "screen", limit: int = 6) -> Figure:
    """One heatmap per run and site (the first ``limit``), below each other."""
    groups = list(data.groupby(["run", "site"], sort=False))[:limit]
    names = line_names([key for key, _ in groups])
    height = (0.45 + 0.22 * len(groups[0][1]["gate"].unique()) + 0.25 * (len(groups) > 1)) * len(groups) + 0.25
    aspect = height / style.preset(style_name).width
    fig, grid = style.figure(style_name, rows=len(groups), aspect=aspect, exact=True)
    flat = list(np.ravel([grid]))
    limits = heatmap.color_limits(pd.concat([rows for _, rows in groups])["norm"].to_numpy())
    for ax, name, (_, rows) in zip(flat, names, groups, strict=True):
        draw(rows, ax, style_name=style_name, colorbar=False, limits=limits)
        if len(groups) > 1:
            ax.set_title(label(name, style.name_limit(ax)), loc="left")
            ax.set_xlabel(ax.get_xlabel() if ax is flat[-1] else "")
    heatmap.bar(flat, flat[0].collections[-1], BAR)
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
    return (
        f"Norm of the adjoint of each gate's pre-activation against lag (0 to {data['lag'].max()}), geometric mean "
        f"over up to {int(data['n_sequences'].max())} sequences, step {data['step'].max()}. Colours span at most "
        f"12 decades. Grey: exactly zero; red: not finite{lost}."
    )
