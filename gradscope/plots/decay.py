"""Decay curves: how much of the gradient at the last step reaches each lag back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradscope.diagnostics import DecayCurve
from gradscope.errors import SettingError
from gradscope.plots import decay_map, lines, marks, naming, style
from gradscope.plots.text import norm_symbol
from gradscope.reading import curves, select
from gradscope.reading.labelled import seeds_together
from gradscope.schema import QUANTITIES
from gradscope.words import number

TITLE = "Decay of the gradient with lag"
NEEDS = "an adjoint of the state, which is recorded by default (quantities=['hidden', 'cell'])"

#: What marks on the edges of the axis say, for a caption: see :func:`edges`.
EDGE = (
    "Triangles on the edge: there a curve leaves the axis, or most sequences read zero or below the smallest normal "
    "number, as far as a line goes; crosses on the upper edge: a gradient is not finite."
)

#: Columns of the band over the sequences: of norms, and of relative ones.
_BANDS = {False: ("low", "high"), True: ("relative_low", "relative_high")}


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
        run, site, quantity, ``first_step`` and ``step`` (the last), ``line`` (of which the runs are the seeds), lag;
        ``norm``: (chained) geometric mean over sequences; ``relative``: the same over that at the first usable lag;
        ``low``, ``high``, ``relative_low``, ``relative_high``: quantiles over sequences (relative: each over its own
        start); ``n_sequences`` behind them, and how many were exactly zero, below the smallest normal number, or not
        finite.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError, SettingError
    """
    select.per_lag(quantity)
    if not 0 < coverage < 1:
        raise SettingError(f"coverage must lie between 0 and 1, got {coverage}.")
    rows, of_seed = [], seeds_together(runs)
    for name, run, at, shown in select.sites_with(runs, quantity, site):
        found = curves.norms(run, at, shown)
        chosen = found.at(step)
        first, last = found.span(chosen)
        head = {"run": name, "site": at, "quantity": shown, "first_step": first, "step": last, "line": of_seed[name]}
        rows.append(curve_rows(found.curve(chosen), head, coverage))
    data = together(rows)
    data.attrs["left_out"] = select.left_out(runs, set(data["run"]), f"no {quantity or 'curve against lag'} there")
    return data


def curve_rows(curve: DecayCurve, head: dict[str, Any], coverage: float) -> dict[str, Any]:
    """A decay curve as columns of a table, with ``head``, the same in every row, in front."""
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
    return {**head, **columns}


def curve_frame(curve: DecayCurve, head: dict[str, Any], coverage: float) -> pd.DataFrame:
    """:func:`curve_rows` of one curve as a table."""
    return together([curve_rows(curve, head, coverage)])


def together(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One table of several :func:`curve_rows`: a thousand tables would take most of the time to make them one."""
    lengths = [len(one["lag"]) for one in rows]
    columns = {}
    for name, first in rows[0].items():
        values = [one[name] for one in rows]
        if isinstance(first, np.ndarray):
            columns[name] = np.concatenate(values)
        else:
            dtype = object if isinstance(first, str) else None
            columns[name] = np.repeat(np.array(values, dtype), lengths)
    return pd.DataFrame(columns)


def _starts(logs: np.ndarray) -> np.ndarray:
    """First value of each row that is not NaN, shape (S, 1)."""
    first = np.argmax(~np.isnan(logs), axis=1) if logs.shape[1] else np.zeros(len(logs), dtype=int)
    return np.take_along_axis(logs, first[:, None], axis=1) if logs.size else np.empty((len(logs), 1))


def _quantiles(logs: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """Quantiles over sequences per lag; NaN (silently) where a lag has none."""
    if not logs.size:
        return np.full((2, logs.shape[1]), np.nan)
    # Sorted, NaN come last: np.nanquantile takes a column at a time, some fifty times as long.
    ordered = np.sort(logs, axis=0)
    at = np.multiply.outer(levels, np.maximum((~np.isnan(logs)).sum(axis=0) - 1, 0))
    below = np.floor(at).astype(np.int64)
    low, high = (np.take_along_axis(ordered, place, axis=0) for place in (below, np.ceil(at).astype(np.int64)))
    with np.errstate(invalid="ignore"):  # between two infinities
        return np.where(low == high, low, low + (high - low) * (at - below))


def draw(
    data: pd.DataFrame,
    ax: Axes | None = None,
    *,
    style_name: str = "screen",
    relative: bool = True,
    horizon: float | None = None,
    lowest: float | None = None,
    legend: bool = True,
    form: str = "auto",
) -> Axes:
    """A line per run (seeds together) and site on a logarithmic axis; many of them as a map, a row each.

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
        Where the axis ends, as a fraction of where the curves begin; a curve that falls further leaves it.
    form : {"auto", "lines", "map"}
        A map from ``decay_map.MAX_SITES`` sites or ``MAX_LINES`` lines on.

    Raises
    ------
    SettingError

    Notes
    -----
    Lags where most sequences read exactly zero, or below the smallest normal number, and where a curve leaves the axis
    are marked with triangles on the edge; lags with a gradient that is not finite with crosses on the upper edge.
    """
    if form not in ("auto", "lines", "map"):
        raise SettingError(f"form must be auto, lines or map, got {form!r}.")
    data = naming.with_lines(data).assign(shown=data["relative" if relative else "norm"])
    shown_as = y_label(list(dict.fromkeys(data["quantity"])), relative, origin(data))
    if form == "map" or (form == "auto" and decay_map.is_map(data) and horizon is None):
        return decay_map.draw(data, ax, style_name, shown_as)
    own, ax = ax is None, style.axes(ax, style=style_name)
    looks = style.looks(list(dict.fromkeys(data["name"])))
    marks.whole_x(ax, data["lag"])
    start = 1.0 if relative else _start(data)
    floor = lines.FLOOR if lowest is None else lowest
    banded = len(looks) <= style.MAX_BANDS
    curves = [rows["shown"] for _, rows in data.groupby(["name", "run"], sort=False)]
    lines.limits(ax, curves, start=start, floor=floor, bands=_band_edges(data, relative) if banded else ())
    lines.draw(ax, data, looks, x="lag", y="shown", line="name", band="runs" if _seeds(data) > 1 else False)
    if banded:
        _bands(ax, data, looks, relative)
    for (name, _), rows in data.groupby(["name", "run"], sort=False):
        edges(ax, rows, looks[str(name)]["color"], of=name)  # the seeds of a line may share a place
    if horizon is not None:
        _mark_horizon(ax, data, looks, horizon, relative)
    ax.set_xlabel("lag (recurrent steps back from the last)")
    ax.set_ylabel(shown_as)
    if not data["shown"].notna().any():
        style.note(ax, "no usable norm")
    elif legend and len(looks) > 1:
        ends = data[data["shown"].notna()].sort_values("lag", kind="stable").groupby(["name", "run"])["shown"].last()
        lines.name(ax, looks, ends.groupby("name").median().to_dict(), beside=own)
    return ax


def _seeds(data: pd.DataFrame) -> int:
    return int(data.groupby("name")["run"].nunique().max())


def _start(data: pd.DataFrame) -> float:
    """Where the curves begin, in the middle of them."""
    first = data[data["norm"] > 0].groupby(["name", "run"], sort=False)["norm"].first()
    return float(first.median()) if len(first) else 1.0


def _bands(ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]], relative: bool) -> None:
    low, high = _BANDS[relative]
    for name, rows in data.groupby("name", sort=False):
        if _has_band(rows):
            marks.band(ax, rows["lag"], rows[low], rows[high], looks[str(name)]["color"], str(name))


def _band_edges(data: pd.DataFrame, relative: bool) -> list[np.ndarray]:
    return [rows[list(_BANDS[relative])].to_numpy() for _, rows in data.groupby("name", sort=False) if _has_band(rows)]


def _has_band(rows: pd.DataFrame) -> bool:
    """Over the sequences, where a line is one run: a band of one sequence says nothing."""
    return bool(rows["run"].nunique() == 1 and rows["n_sequences"].max() > 1)


def edges(ax: Axes, rows: pd.DataFrame, color: Any, of: object = None) -> None:
    """Marks at the lags that the axis cannot show, above those of other curves that are not ``of`` the same."""
    of = of or object()
    lost = rows["n_zero"] + rows["n_below_normal"] > rows["n_sequences"]
    bad = rows["n_nonfinite"] > 0
    marks.along_edge(ax, rows["lag"], lost, top=False, color=color, label="zero or below normal", of=of)
    marks.along_edge(ax, rows["lag"], bad, top=True, color=color, label="not finite", of=of)
    if "shown" in rows:
        lines.leaving(ax, rows["lag"], rows["shown"].where(~lost & ~bad), color, of=of)


def _mark_horizon(
    ax: Axes, data: pd.DataFrame, looks: dict[str, dict[str, Any]], fraction: float, relative: bool
) -> None:
    for name, rows in data.groupby("name", sort=False):
        below = rows.groupby("lag")["relative"].median()
        below = below[below < fraction]
        if len(below):
            colour = looks[str(name)]["color"]
            ax.axvline(float(below.index[0]), color=colour, linestyle=":", linewidth=0.9, zorder=1)
    if relative:
        ax.axhline(fraction, color=style.GREY, linestyle=":", linewidth=0.9, zorder=1)


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
    """What the figure shows, in words, with lag range, number of sequences, and what arrives at the last lag."""
    quantities = " and ".join(symbol_words(q) for q in dict.fromkeys(data["quantity"]))
    n = data["n_sequences"]
    first, last = data.get("first_step", data["step"]).min(), data["step"].max()
    when = f"step {first}" if first == last else f"steps {first} to {last}"
    named = naming.with_lines(data)
    seeds = _seeds(named)
    band = f"median; {lines.around_words(seeds)}" if seeds > 1 else "band: central 80 % of sequences"
    prefix = naming.common_prefix(sorted(set(data["site"])))
    sites = f" Sites of {prefix.rstrip('./')}." if prefix else ""
    over = f"{_span(n.min(), n.max())} sequences at each lag"
    said = f"Norm of the {quantities} against lag, relative to the first usable lag; geometric mean over {over}"
    said += "" if decay_map.is_map(named) else f", {band}"
    edge = (
        "Hatched: most sequences read zero or below the smallest normal number. An arrow at the end of the scale: a "
        "few lines go further."
        if decay_map.is_map(named)
        else EDGE
    )
    spans = f"Lags {data['lag'].min()} to {data['lag'].max()}, {when}.{sites}"
    return " ".join([f"{said}.", spans, arriving(named), edge, *select.left_out_words(data)])


def arriving(named: pd.DataFrame, most: int = 8) -> str:
    """What is left at the last lag of each line, in words."""
    usable = named[np.isfinite(named["relative"])].sort_values("lag", kind="stable")
    ends = usable.groupby(["name", "run"], sort=False)[["lag", "relative"]].last().groupby("name", sort=False).median()
    if not len(ends):
        return "No usable norm."
    ends = ends.sort_values("relative", ascending=False, kind="stable")
    if len(ends) > most:
        return f"At the last lag: {number(ends['relative'].max())} at most, {number(ends['relative'].min())} at least."
    each = ", ".join(f"{name} {number(value)} at lag {lag:g}" for name, lag, value in ends.itertuples())
    return f"What is left: {each}." if len(ends) > 1 or each else ""


def symbol_words(quantity: str) -> str:
    """The quantity in words, from the schema."""
    return f"{QUANTITIES[quantity].description} ({quantity})" if quantity in QUANTITIES else quantity


def _span(low: float, high: float) -> str:
    return f"{int(high)}" if low == high else f"{int(low)} to {int(high)}"
