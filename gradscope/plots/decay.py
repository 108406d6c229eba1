"""Decay curves: how much of the gradient at the last step reaches each lag back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.diagnostics import DecayCurve
from gradscope.errors import SettingError
from gradscope.plots import marks, style
from gradscope.plots.text import label, norm_symbol
from gradscope.reading import curves, select

TITLE = "Decay of the gradient with lag"
NEEDS = "an adjoint of the state, which is recorded by default (quantities=['hidden', 'cell'])"


def table(
    runs: Sequence[Any],
    *,
    site: str | Sequence[str] | None = None,
    quantity: str | None = None,
    step: int | str | None = None,
    coverage: float = 0.8,
) -> pd.DataFrame:
    """One row per run, site and lag.

    Parameters
    ----------
    runs : sequence of Run
    site : str or sequence of str, optional
        All sites when not given.
    quantity : str, optional
        By default what describes each site: the cell state of an LSTM, else the hidden state.
    step : int or str, optional
        Recorded step, or part of the run: ``first``, ``early``, ``late`` (by default: the last tenth of the recorded
        steps, of which the sentences speak), ``last`` or ``all``.
    coverage : float
        Share of sequences inside the band.

    Returns
    -------
    DataFrame
        run, site, quantity, ``first_step`` and ``step`` (the last), lag; ``norm``: (chained) geometric mean over
        sequences; ``relative``: the same over that at the first usable lag; ``low``, ``high``, ``relative_low``,
        ``relative_high``: quantiles over sequences (relative: each over its own start); ``n_sequences`` behind them,
        and how many were exactly zero, below the smallest normal number, or not finite.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    select.per_lag(quantity)
    if not 0 < coverage < 1:
        raise SettingError(f"coverage must lie between 0 and 1, got {coverage}.")
    frames = []
    for name, run, at, shown in select.sites_with(runs, quantity, site):
        found = curves.norms(run, at, shown)
        chosen = found.at(step)
        first, last = found.span(chosen)
        head = {"run": name, "site": at, "quantity": shown, "first_step": first, "step": last}
        frames.append(curve_frame(found.curve(chosen), head, coverage))
    return pd.concat(frames, ignore_index=True)


def curve_frame(curve: DecayCurve, head: dict[str, Any], coverage: float) -> pd.DataFrame:
    """A decay curve as table rows, with ``head`` in front."""
    tail = (1 - coverage) / 2
    low, high = _quantiles(curve.sequences, (tail, 1 - tail))
    # Each sequence over its own start: the band of a relative curve is about decay, not about the sequences' losses.
    relative_low, relative_high = _quantiles(curve.sequences - _starts(curve.sequences), (tail, 1 - tail))
    usable = curve.log10[~np.isnan(curve.log10)]
    reference = usable[0] if usable.size else np.nan
    with np.errstate(over="ignore", under="ignore"):
        columns = {
            "lag": curve.lags.astype(np.int64),
            "norm": 10.0**curve.log10,
            "relative": 10.0 ** (curve.log10 - reference),
            "low": 10.0**low,
            "high": 10.0**high,
            "relative_low": 10.0**relative_low,
            "relative_high": 10.0**relative_high,
            "n_sequences": curve.support,
            "n_zero": curve.n_zero,
            "n_below_normal": curve.n_below_normal,
            "n_nonfinite": curve.n_nonfinite,
        }
    frame = pd.DataFrame(columns)
    for i, (name, value) in enumerate(head.items()):
        frame.insert(i, name, value)
    return frame


def _starts(logs: np.ndarray) -> np.ndarray:
    """First value of each row that is not NaN, shape (S, 1)."""
    first = np.argmax(~np.isnan(logs), axis=1) if logs.shape[1] else np.zeros(len(logs), dtype=int)
    return np.take_along_axis(logs, first[:, None], axis=1) if logs.size else np.empty((len(logs), 1))


def _quantiles(logs: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Quantiles over sequences per lag; NaN (silently) where a lag has none."""
    result = np.full((2, logs.shape[1]), np.nan)
    filled = ~np.all(np.isnan(logs), axis=0)
    if filled.any():
        result[:, filled] = np.nanquantile(logs[:, filled], levels, axis=0)
    return result


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    relative: bool = True,
    horizon: float | None = None,
    lowest: float | None = None,
    legend: bool = True,
) -> Axes:
    """One line per run and site on a logarithmic axis, with a band over sequences.

    Parameters
    ----------
    data : DataFrame
        From :func:`table`.
    ax : Axes, optional
        A new figure's when not given.
    relative : bool
        Divide each curve by its first usable value, so that runs with different losses compare.
    horizon : float, optional
        A fraction; marks the first lag where a curve falls below it.
    lowest : float, optional
        Where the axis ends; a curve that falls further leaves it.

    Notes
    -----
    Lags where most sequences read exactly zero, or below the smallest normal number, are marked with triangles on the
    lower edge; lags with a gradient that is not finite with crosses on the upper edge.
    """
    ax = style.axes(ax, style=style_name)
    lines = list(data.groupby(["run", "site"], sort=False))
    names = line_names([key for key, _ in lines])
    if data["step"].nunique() > 1:
        names = [f"{name}, step {rows['step'].iloc[0]}" for name, (_, rows) in zip(names, lines, strict=True)]
    marks.whole_x(ax, data["lag"])
    shown = []
    for i, (_, rows) in enumerate(lines):
        shown += _line(ax, rows, i, label(names[i], style.name_limit(ax)), relative, len(lines))
    marks.log_y(ax, shown if lowest is None else [np.maximum(values, lowest) for values in shown])
    for i, (_, rows) in enumerate(lines):
        edges(ax, rows, style.look(i)["color"])
    if horizon is not None:
        _mark_horizon(ax, [rows for _, rows in lines], horizon, relative)
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(y_label(list(dict.fromkeys(data["quantity"])), relative, origin(data)))
    if not any(np.isfinite(values).any() for values in shown):
        style.note(ax, "no usable norm")
    if legend and (len(lines) > 1):
        style.legend(ax)
    return ax


def _line(ax: Axes, rows: pd.DataFrame, i: int, name: str, relative: bool, n_lines: int) -> list[np.ndarray]:
    names = ("relative", "relative_low", "relative_high") if relative else ("norm", "low", "high")
    lag, (y, low, high) = rows["lag"].to_numpy(), (rows[column].to_numpy() for column in names)
    look = style.look(i)
    ax.plot(lag, y, label=name, markevery=style.mark_every(lag.size, i), **look)
    if n_lines > style.MAX_BANDS or rows["n_sequences"].max() < 2:
        return [y]  # a band of one sequence says nothing; many bands hide each other
    marks.band(ax, lag, low, high, look["color"])
    return [y, low, high]


def edges(ax: Axes, rows: pd.DataFrame, color: Any) -> None:
    """Marks at the lags that a log axis cannot show."""
    lost = rows["n_zero"] + rows["n_below_normal"]
    marks.at_edge(ax, rows["lag"][lost > rows["n_sequences"]], top=False, color=color, label="zero or below normal")
    marks.at_edge(ax, rows["lag"][rows["n_nonfinite"] > 0], top=True, color=color, label="not finite")


def _mark_horizon(ax: Axes, lines: list[pd.DataFrame], fraction: float, relative: bool) -> None:
    for i, rows in enumerate(lines):
        below = rows["lag"][rows["relative"] < fraction]
        if len(below):
            ax.axvline(float(below.iloc[0]), color=style.look(i)["color"], linestyle=":", linewidth=0.9, zorder=1)
    if relative:
        ax.axhline(fraction, color=style.GREY, linestyle=":", linewidth=0.9, zorder=1)


def line_names(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Shortest names that tell the lines apart: the run, the site, or both."""
    runs, sites = {run for run, *_ in keys}, {site for _, site, *_ in keys}
    if len(keys) == len(runs):  # one site per run
        return [run for run, *_ in keys]
    if len(runs) == 1:
        return [site for _, site, *_ in keys]
    return [f"{run}: {site}" for run, site, *_ in keys] if sites else []


def origin(data: pd.DataFrame) -> str:
    """What relative curves are relative to: their first usable lag, where the gradient enters."""
    usable = data[np.isfinite(data["relative"])]
    first = sorted(set(usable.groupby(["run", "site"], sort=False)["lag"].min()))
    return f"lag {first[0]}" if len(first) == 1 else "lag 0" if not first else "where it enters"


def y_label(quantities: Sequence[str], relative: bool, to: str = "lag 0") -> str:
    """Axis label; several quantities are named in words."""
    name = norm_symbol(quantities[0]) if len(quantities) == 1 else "gradient norm"
    return f"{name} relative to {to}" if relative else name


def caption(data: pd.DataFrame) -> str:
    """What the figure shows, in words, with lag range and number of sequences."""
    quantities = " and ".join(symbol_words(q) for q in dict.fromkeys(data["quantity"]))
    n = data["n_sequences"]
    first, last = data.get("first_step", data["step"]).min(), data["step"].max()
    when = f"step {first}" if first == last else f"steps {first} to {last}"
    return (
        f"Norm of the {quantities} against lag, relative to the first usable lag; geometric mean over "
        f"{_span(n.min(), n.max())} sequences at each lag, band: central 80 % of sequences. "
        f"Lags {data['lag'].min()} to {data['lag'].max()}, {when}. Triangles on the lower edge: most sequences read "
        f"zero or below the smallest normal number; crosses on the upper edge: a gradient is not finite."
    )


def symbol_words(quantity: str) -> str:
    """The quantity in words, from the schema."""
    from gradscope.schema import QUANTITIES

    return f"{QUANTITIES[quantity].description} ({quantity})" if quantity in QUANTITIES else quantity


def _span(low: float, high: float) -> str:
    return f"{int(high)}" if low == high else f"{int(low)} to {int(high)}"
