"""Singular values of the Jacobian between two times: whether every direction survives, or only a few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from gradscope.errors import SettingError
from gradscope.plots import lines, marks, style
from gradscope.words import number

TITLE = "Singular values of the Jacobian against lag"
NEEDS = "the model itself: gradscope.spectrum(model, x), drawn by gradscope.plots.spectrum"
FROM_RUNS = False
PROBES = "Spectrum"

LEVELS = {"smallest": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "largest": 1.0}

Floats = NDArray[np.float64]


def table(measured: Any, lags: ArrayLike | None = None) -> pd.DataFrame:
    """Quantiles over the singular values at each lag, as logarithms: e^-3000 has no float64, its logarithm has.

    Parameters
    ----------
    measured : Spectrum or array_like
        From :func:`gradscope.spectrum`, with its own lags; or singular values of ∂s_T/∂s_{T−lag}, shape (L, S) or
        (L, ..., S). Axes between (sequences) are pooled; NaN (beyond a sequence) is left out.
    lags : array_like of int, shape (L,), optional
        Of an array; 0, 1, 2 ... when not given.

    Returns
    -------
    DataFrame
        lag; ``smallest``, ``q25``, ``median``, ``q75``, ``largest``: log10 of the nearest order statistic, ``-inf``
        for an exact zero, NaN where no sequence reaches; ``effective_rank``: participation ratio of the squares,
        median over sequences.

    Raises
    ------
    SettingError
        Fewer than two axes, or lags of another number; repeated or negative lags.
    """
    logs, at = _read(measured, lags)
    logs, at = logs[np.argsort(at)], np.sort(at)
    columns = dict(zip(LEVELS, _order_statistics(logs.reshape(len(logs), -1)).T / np.log(10), strict=True))
    return pd.DataFrame({"lag": at, **columns, "effective_rank": _effective_rank(logs)})


def _read(measured: Any, lags: ArrayLike | None) -> tuple[Floats, NDArray[np.int64]]:
    """Natural logarithms (L, ..., S) and their lags."""
    if hasattr(measured, "log_singular_values"):
        logs, lags = np.asarray(measured.log_singular_values, dtype=np.float64), measured.lags
    else:
        with np.errstate(divide="ignore"):
            logs = np.log(np.asarray(measured, dtype=np.float64))
    if logs.ndim < 2 or not logs.size:
        raise SettingError(f"singular values come as (lag, ..., value), got shape {logs.shape}.")
    at = np.arange(len(logs)) if lags is None else np.asarray(lags, dtype=np.int64)
    if at.shape != (len(logs),) or np.unique(at).size != at.size or at.min() < 0:
        raise SettingError(f"one distinct lag per row: got lags of shape {at.shape} for {len(logs)} rows.")
    return logs, at


def _order_statistics(logs: Floats) -> Floats:
    """The nearest order statistic per level, (L, 5): interpolating between -inf and a number means nothing."""
    found = np.full((len(logs), len(LEVELS)), np.nan)
    ordered = np.sort(logs, axis=1)  # NaN last
    for row, values in enumerate(ordered):
        n = int((~np.isnan(values)).sum())
        if n:
            found[row] = values[np.rint(np.array(list(LEVELS.values())) * (n - 1)).astype(int)]
    return found


def _effective_rank(logs: Floats) -> Floats:
    """``(Σ σ²)² / Σ σ⁴``, from logarithms relative to the largest so that a vanished spectrum does not underflow."""
    rows = logs.reshape(len(logs), -1, logs.shape[-1])
    with np.errstate(invalid="ignore", under="ignore"):
        relative = np.exp(2 * (rows - rows.max(axis=-1, keepdims=True)))
        rank = relative.sum(-1) ** 2 / (relative**2).sum(-1)
    median = np.full(len(rank), np.nan)
    known = ~np.isnan(rank).all(axis=1)
    median[known] = np.nanmedian(rank[known], axis=1)
    return median


def draw(data: pd.DataFrame, ax: Axes | None = None, *, style_name: str = "screen", legend: bool = True) -> Axes:
    """Median (line), middle half and full range (bands) of the singular values; 1 is dotted."""
    own, ax = ax is None, style.axes(ax, style=style_name)
    marks.whole_x(ax, data["lag"])
    colour = style.PALETTE[0]
    marks.powers_y(ax, [data[name] for name in LEVELS])
    floor = ax.get_ylim()[0]  # a zero has no place on the axis, the band still reaches down to it
    for low, high in (("smallest", "largest"), ("q25", "q75")):
        marks.band(ax, data["lag"], data[low].clip(lower=floor), data[high].clip(lower=floor), colour)
    # Few chosen lags are points; what lies between was not measured.
    marker = "o" if len(data) <= 24 else ""
    looks = {
        name: {"color": colour, "linestyle": dash, "marker": marker}
        for name, dash in zip(("median", "largest", "smallest"), style.DASHES, strict=False)
    }
    long = data.melt("lag", list(looks), var_name="level", value_name="log10")
    lines.draw(ax, long, looks, x="lag", y="log10", line="level", log=False)
    ax.axhline(0.0, color=style.GREY, linewidth=0.8, linestyle=":", label="_preserved")
    marks.at_edge(ax, data["lag"][np.isneginf(data["smallest"])], top=False, color=colour, label="zero")
    lost = data["largest"].isna() | np.isposinf(data["largest"])
    marks.at_edge(ax, data["lag"][lost], top=True, color=colour, label="not finite")
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(r"singular values of $\partial s_T/\partial s_{T-\mathrm{lag}}$")
    if legend:
        ends = {name: float(data[name].iloc[-1]) for name in looks}
        lines.name(ax, looks, {name: y if np.isfinite(y) else np.nan for name, y in ends.items()}, beside=own)
    return ax


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words."""
    lags = data["lag"]
    spaced = "" if len(data) == lags.max() - lags.min() + 1 else f" ({len(data)} of them)"
    return (
        f"Singular values of the Jacobian of the last joint state with respect to that at each lag, {lags.min()} to "
        f"{lags.max()}{spaced}: median, middle half (dark band), full range (light band), all sequences together. "
        f"At lag {lags.max()}: median {_power(data['median'].iloc[-1])}, largest {_power(data['largest'].iloc[-1])}. "
        "Dotted: 1, a direction that is preserved. Triangles: exactly zero."
    )


def _power(log10: float) -> str:
    """A number from its logarithm, also beyond float64's range."""
    if not np.isfinite(log10):
        return "0" if log10 == -np.inf else "not finite"
    return number(10.0**log10) if abs(log10) < 300 else f"1e{log10:.0f}"
