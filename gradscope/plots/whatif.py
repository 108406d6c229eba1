"""Decay curves as they would be with the adjoint clipped at every timestep (Graves 2013), per threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.diagnostics import decay_curve
from gradscope.errors import SettingError, UnknownNameError
from gradscope.plots import decay, lines, marks, style
from gradscope.words import given

TITLE = "Decay under per-timestep clipping of the adjoint"
NEEDS = "the model itself: gradscope.clip_whatif(model, closure, thresholds), drawn by gradscope.plots.whatif"
FROM_RUNS = False
PROBES = "ClipWhatIf"


def table(measured: Any, *, quantity: str | None = None, coverage: float = 0.8) -> pd.DataFrame:
    """One row per threshold and lag.

    Parameters
    ----------
    measured : ClipWhatIf
        From :func:`gradscope.clip_whatif`.
    quantity : str, optional
        ``hidden`` or ``cell``; by default what describes the memory of the site.
    coverage : float
        Share of sequences inside the band.

    Returns
    -------
    DataFrame
        threshold (inf: none), site, quantity; ``clipped``: share of the pre-activation adjoints at this lag that lie
        on the threshold; then the columns of :func:`gradscope.plots.decay.table` from ``lag`` on.

    Raises
    ------
    UnknownNameError, SettingError
    """
    if not 0 < coverage < 1:
        raise SettingError(f"coverage must lie between 0 and 1, got {coverage}.")
    name = quantity or measured.info.curve
    if name not in measured.norms:
        raise UnknownNameError("quantity", name, measured.norms)
    frames = []
    for threshold, norms, clipped in zip(measured.thresholds, measured.norms[name], measured.clipped, strict=True):
        head = {"threshold": threshold, "site": measured.info.site, "quantity": name}
        frame = decay.curve_frame(decay_curve(measured.lags, norms), head, coverage)
        frame.insert(len(head), "clipped", 0.0 if np.isinf(threshold) else clipped)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True).sort_values(["threshold", "lag"], ascending=[False, True])


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    share_ax: Axes | None = None,
    style_name: str = "screen",
    legend: bool = True,
) -> Axes:
    """One curve per threshold, the unclipped first; below it, on ``share_ax``, how much was clipped at each lag.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax, share_ax : Axes, optional
        Without ``ax`` a figure with both panels is made; with ``ax`` alone the share is left out.
    """
    if ax is None:
        _, grid = style.figure(style_name, rows=2, aspect=0.75)
        ax, share_ax = grid[0], grid[1]
        ax.sharex(share_ax)
        ax.tick_params(labelbottom=False)
    names = {t: "none" if np.isinf(t) else given(t, 3) for t in dict.fromkeys(data["threshold"])}
    data = data.assign(name=data["threshold"].map(names), run="", shown=data["norm"])
    looks = {name: style.look(i) for i, name in enumerate(names.values())}
    for each in [one for one in (ax, share_ax) if one is not None]:
        marks.whole_x(each, data["lag"])
    first = data["norm"][data["norm"] > 0]
    curves = [rows["norm"] for _, rows in data.groupby("name", sort=False)]
    lines.limits(ax, curves, start=float(first.iloc[0]) if len(first) else 1.0)
    lines.draw(ax, data, looks, x="lag", y="norm", line="name")
    for name, rows in data.groupby("name", sort=False):
        if len(looks) <= 3 and rows["n_sequences"].max() > 1:  # the curves lie close: more bands would hide them
            marks.band(ax, rows["lag"], rows["low"], rows["high"], looks[str(name)]["color"], str(name))
        decay.edges(ax, rows, looks[str(name)]["color"])
    if share_ax is not None:
        clipped = data[data["name"] != "none"]
        shown = {name: look for name, look in looks.items() if name != "none"}
        lines.draw(share_ax, clipped, shown, x="lag", y="clipped", line="name", log=False)
    ax.set_ylabel(decay.y_label([str(data["quantity"].iloc[0])], relative=False))
    (share_ax or ax).set_xlabel("lag (recurrent steps back from the last)")
    if share_ax is not None:
        share_ax.set_ylim(-0.03, 1.03)
        share_ax.set_ylabel("share clipped")
    if legend:
        style.legend(ax, lines.handles(looks), title="threshold on each pre-activation adjoint")
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    thresholds = [given(t, 3) for t in dict.fromkeys(data["threshold"]) if np.isfinite(t)]
    return (
        f"Norm of the {decay.symbol_words(str(data['quantity'].iloc[0]))} at {data['site'].iloc[0]} against lag, lags "
        f"{data['lag'].min()} to {data['lag'].max()}, geometric mean over up to {int(data['n_sequences'].max())} "
        "sequences, recomputed with each gate's pre-activation adjoint clamped at every timestep (Graves 2013) to "
        f"± {', '.join(thresholds) or 'nothing'}; below, the share of them that lies on the threshold. This is not the "
        f"clipping of parameter gradients, which leaves the curve as it is. {decay.EDGE}"
    )
