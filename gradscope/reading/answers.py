"""Diagnostics of a recorded run. Thin: each function reads arrays from a run and calls a function of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.diagnostics.clipping import ClipStatistics, clip_statistics
from gradscope.diagnostics.decay import DecayFit, fit_decay
from gradscope.diagnostics.entry import Entry, find_entry
from gradscope.diagnostics.thresholds import ThresholdSuggestion, suggest_threshold, threshold_table
from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError
from gradscope.words import sentence

if TYPE_CHECKING:
    from gradscope.store import Run

#: Which records make up a part of a run: the first and last tenth (at least one), or exactly one, or all.
PARTS = ("first", "early", "late", "last", "all")
PART_SHARE = 0.1

#: Names under which a learning rate may have been logged.
LEARNING_RATES = ("lr", "learning_rate")

_PER_LAG = ("sequence", "lag")


def curve_quantity(run: Run, site: str) -> str:
    """The quantity whose decay describes a site; the first recorded one with a curve when it was not recorded.

    Raises
    ------
    NotRecordedError
        Nothing with a curve against lag was recorded there.
    """
    recorded = [name for name in run.quantities(site) if _has_curve(name)]
    preferred = run.site(site).curve
    if preferred in recorded:
        return preferred
    if not recorded:
        raise NotRecordedError(
            f"{site}: no gradient norms against lag were recorded; record quantities=[{preferred!r}] there."
        )
    return recorded[0]


def decay_fits(run: Run, site: str | None = None, quantity: str | None = None, **options: Any) -> pd.DataFrame:
    """Fit the decay of every record, one row per site and record.

    Parameters
    ----------
    run : Run
    site, quantity : str, optional
        By default every site, and at each the quantity that describes it.
    **options
        Of :func:`gradscope.fit_decay`.

    Returns
    -------
    DataFrame
        ``site, quantity, step, micro, attempt, rank``, then :func:`fit_row`. Steps that the loss scaler skipped
        are left out.
    """
    rows = []
    for name in _sites(run, site):
        chosen = _quantity(run, name, quantity)
        records = run.records(name).reset_index(drop=True)
        norms, lengths = run.array(name, chosen), run.lengths(name)
        lags = np.arange(norms.shape[-1])
        for index, record in enumerate(records.itertuples()):
            if record.skipped:
                continue
            fit = fit_decay(
                lags,
                norms[index],
                lengths=lengths[index],
                entry=entry_of(run, name, np.array([index])),
                smallest_normal=record.smallest_normal,
                **options,
            )
            where = {key: getattr(record, key) for key in ("step", "micro", "attempt", "rank")}
            rows.append({"site": name, "quantity": chosen, **where, **fit_row(fit)})
    columns = ["site", "quantity", "step", "micro", "attempt", "rank", *fit_row(fit_decay([], []))]
    return pd.DataFrame(rows, columns=columns)


def fit_row(fit: DecayFit) -> dict[str, Any]:
    """A fit as one flat row: NaN where a number is refused."""
    nan = float("nan")
    low, high = fit.interval or (nan, nan)
    half_low, half_high = fit.half_life_interval or (nan, nan)
    lag_low, lag_high = fit.lag_range or (nan, nan)
    return {
        "rate": fit.rate,
        "lo": low,
        "hi": high,
        "r2": fit.r2,
        "lag_lo": lag_low,
        "lag_hi": lag_high,
        "half_life": nan if fit.half_life is None else fit.half_life,
        "half_life_lo": half_low,
        "half_life_hi": half_high,
        "horizon": nan if fit.horizon is None else fit.horizon,
        "reach": fit.reach,
        "last_lag": nan if fit.last_lag is None else fit.last_lag,
        "n_sequences": fit.n_sequences,
        "n_steps": fit.n_steps,
        "unit": fit.unit,
        "verdict": fit.verdict,
        "reason": fit.reason,
        "interval_reason": fit.interval_reason,
        "half_life_reason": fit.half_life_reason,
    }


def part_of_run(run: Run, site: str, part: str = "all") -> np.ndarray:
    """Positions of the records at a site that make up a part of the run, skipped steps left out.

    Raises
    ------
    UnknownNameError, EmptyRunError
    """
    if part not in PARTS:
        raise UnknownNameError("part of a run", part, PARTS)
    records = run.records(site).reset_index(drop=True)
    kept = np.flatnonzero(~records["skipped"].to_numpy(dtype=bool))
    if not kept.size:
        raise EmptyRunError(f"{site}: the run {run.name} holds no record there.")
    # A later attempt may repeat steps of an earlier one: order by step, not by position.
    steps = records["step"].to_numpy()[kept]
    distinct = np.unique(steps)
    share = max(1, round(PART_SHARE * distinct.size))
    chosen = {"first": distinct[:1], "early": distinct[:share], "late": distinct[-share:], "last": distinct[-1:]}
    return np.asarray(kept[np.isin(steps, chosen.get(part, distinct))])


def pooled_fit(run: Run, site: str, quantity: str | None = None, part: str = "all", **options: Any) -> DecayFit:
    """One fit over all sequences of a part of the run.

    Parameters
    ----------
    run : Run
    site : str
    quantity : str, optional
    part : {"first", "early", "late", "last", "all"}
        ``early`` and ``late`` are the first and last tenth of the recorded steps.
    **options
        Of :func:`gradscope.fit_decay`. Its interval is over the recorded steps, where there are several.
    """
    chosen = _quantity(run, site, quantity)
    at = part_of_run(run, site, part)
    norms, lengths = run.array(site, chosen)[at], run.lengths(site)[at]
    records = run.records(site)
    smallest = float(records["smallest_normal"].to_numpy()[at].max())
    return fit_decay(
        np.arange(norms.shape[-1]),
        norms.reshape(-1, norms.shape[-1]),
        lengths=lengths.reshape(-1),
        steps=np.repeat(records["step"].to_numpy(dtype=np.int64)[at], norms.shape[1]),
        entry=entry_of(run, site, at),
        smallest_normal=smallest,
        **options,
    )


def entry_of(run: Run, site: str, at: np.ndarray | None = None) -> Entry | None:
    """Where the gradient enters a site, over the records ``at`` some positions; None where that was not recorded."""
    if not {"direct", "hidden"} <= set(run.quantities(site)):
        return None
    direct, total = run.array(site, "direct"), run.array(site, "hidden")
    if at is not None:
        direct, total = direct[at], total[at]
    width = direct.shape[-1]
    source = "layer" if _has_layer_above(run, site) else "loss"
    return find_entry(np.arange(width), direct.reshape(-1, width), total.reshape(-1, width), source)


def _has_layer_above(run: Run, site: str) -> bool:
    """Whether the site is a level of a stacked module with another level on top of it."""
    module, _, level = site.rpartition("/l")
    number = level.removesuffix("_reverse")
    return bool(module) and number.isdigit() and f"{module}/l{int(number) + 1}" in run.sites


@dataclass(frozen=True, eq=False)
class SiteAnswer:
    """How far back the gradient reaches at a site, at the beginning and at the end of a run.

    ``caveat`` says what keeps the curve from showing the recurrence alone; empty when nothing is known to.
    """

    site: str
    quantity: str
    early: DecayFit
    late: DecayFit
    early_steps: tuple[int, int]
    late_steps: tuple[int, int]
    sentence: str
    caveat: str


def answer(run: Run, site: str, quantity: str | None = None, **options: Any) -> SiteAnswer:
    """The answer of a run at one site; see :class:`SiteAnswer`."""
    chosen = _quantity(run, site, quantity)
    steps = run.records(site)["step"].to_numpy()
    spans, fits = [], []
    for part in ("early", "late"):
        at = part_of_run(run, site, part)
        spans.append((int(steps[at].min()), int(steps[at].max())))
        fits.append(pooled_fit(run, site, chosen, part, **options))
    said = sentence(fits[1], f"{site} ({chosen}), {_span(spans[1])}")
    if spans[0] != spans[1]:
        said += f" [{sentence(fits[0], f'at {_span(spans[0])}')}]"
    return SiteAnswer(site, chosen, fits[0], fits[1], spans[0], spans[1], said, direct_caveat(run, site))


def answers(run: Run, **options: Any) -> list[SiteAnswer]:
    """:func:`answer` at every site that has a curve."""
    found = [s for s in run.sites if any(_has_curve(name) for name in run.quantities(s)) and len(run.records(s))]
    return [answer(run, site, **options) for site in found]


def direct_caveat(run: Run, site: str) -> str:
    """Whether a gradient enters from above at later lags too, so that the curve is not the recurrence's alone."""
    if "direct" not in run.quantities(site):
        return ""
    direct = run.array(site, "direct")
    if direct.shape[-1] < 2:
        return ""
    present = ~np.isnan(direct[..., 1:])
    entering = float(np.mean(direct[..., 1:][present] != 0)) if present.any() else 0.0
    if entering < 0.5:
        return ""
    if _has_layer_above(run, site):
        return (
            "a gradient arrives from the layer above at most timesteps: the curve is that of the stack from here on "
            "up, and falls more slowly than this recurrence alone would let it"
        )
    return (
        "a gradient enters from above at most timesteps, not only at the last: the curve sums the contributions of "
        "many losses, and falls more slowly than the recurrence alone would let it"
    )


def clip_statistics_of_run(run: Run) -> list[ClipStatistics]:
    """:func:`clip_statistics` of every kind of clipping that was called; empty when none was."""
    clips = run.clips()
    rates = _learning_rates(run)
    result = []
    for kind in [k for k in schema.CLIP_KINDS if (clips["kind"] == k).any()] if len(clips) else []:
        of_kind = clips[clips["kind"] == kind]
        result.append(
            clip_statistics(
                of_kind["norm_before"],
                of_kind["scale"],
                of_kind["clipped"],
                kind=kind,
                threshold=of_kind["threshold"],
                cosine=None if of_kind["cosine"].isna().all() else of_kind["cosine"],
                lr=None if rates is None else of_kind["step"].map(rates).to_numpy(dtype=float),
            )
        )
    return result


def raw_norms(run: Run) -> pd.DataFrame:
    """Total gradient norms before clipping: ``step, norm, source``.

    From the clipping calls where there are any (one row per call), else from the logged ``grad_norm``, else from the
    per-parameter norms of the recorded steps. ``source`` says which.
    """
    clips = run.clips()
    if len(clips):
        measured = clips[clips["kind"] != "timestep"]
        if len(measured):
            return _norm_frame(measured["step"], measured["norm_before"], "clips")
    steps = run.steps()
    if "grad_norm" in steps and steps["grad_norm"].notna().any():
        logged = steps[steps["grad_norm"].notna()]
        return _norm_frame(logged["step"], logged["grad_norm"], "steps")
    parameters = run.parameters()
    named = [c for c in parameters.columns if c not in ("step", "micro", "attempt", "rank")]
    if not len(parameters) or not named:
        return _norm_frame([], [], "none")
    total = np.sqrt(np.nansum(parameters[named].to_numpy(dtype=float) ** 2, axis=1))
    return _norm_frame(parameters["step"], total, "parameters")


def threshold_table_of_run(run: Run, thresholds: Sequence[float] | None = None) -> pd.DataFrame:
    """:func:`threshold_table` of the run's raw norms, as a frame."""
    norms = raw_norms(run)
    return pd.DataFrame([asdict(effect) for effect in threshold_table(norms["norm"], thresholds)])


def suggestion_of_run(run: Run) -> ThresholdSuggestion:
    """:func:`suggest_threshold` from the run's raw norms."""
    return suggest_threshold(raw_norms(run)["norm"])


def _norm_frame(steps: Any, norms: Any, source: str) -> pd.DataFrame:
    frame = pd.DataFrame({"step": np.asarray(steps, dtype=np.int64), "norm": np.asarray(norms, dtype=np.float64)})
    return frame.assign(source=source)


def _learning_rates(run: Run) -> dict[int, float] | None:
    steps = run.steps()
    for name in LEARNING_RATES:
        if name in steps and steps[name].notna().any():
            known = steps[steps[name].notna()]
            return dict(zip(known["step"].astype(int), known[name].astype(float), strict=True))
    return None


def _sites(run: Run, site: str | None) -> tuple[str, ...]:
    if site is None:
        return tuple(s for s in run.sites if any(_has_curve(name) for name in run.quantities(s)))
    if site not in run.sites:
        raise UnknownNameError("site", site, run.sites)
    return (site,)


def _quantity(run: Run, site: str, quantity: str | None) -> str:
    if quantity is None:
        return curve_quantity(run, site)
    if quantity not in schema.QUANTITIES:
        raise UnknownNameError("quantity", quantity, schema.QUANTITIES)
    if not _has_curve(quantity):
        raise SettingError(f"{quantity!r} has no norm per sequence and lag, so no decay to fit.")
    if quantity not in run.quantities(site):
        raise NotRecordedError(f"{site}: {quantity!r} was not recorded; pass quantities=[{quantity!r}] to record it.")
    return quantity


def _has_curve(quantity: str) -> bool:
    # The direct gradient is what arrives from above: it has a course along the lag, but no decay through time.
    return quantity != "direct" and schema.DATASETS.get(quantity) == _PER_LAG


def _span(steps: tuple[int, int]) -> str:
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"
