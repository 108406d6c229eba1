"""Diagnostics of a recorded run. Thin: each function reads arrays from a run and calls a function of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.diagnostics.clip_calls import acting, norms_before, parts
from gradscope.diagnostics.clipping import ClipStatistics, clip_statistics
from gradscope.diagnostics.decay import DecayFit, fit_decay
from gradscope.diagnostics.thresholds import ThresholdSuggestion, suggest_threshold, threshold_table
from gradscope.diagnostics.words import sentence
from gradscope.errors import EmptyRunError, NotRecordedError, SettingError, UnknownNameError

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
                lags, norms[index], lengths=lengths[index], smallest_normal=record.smallest_normal, **options
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
        "verdict": fit.verdict,
        "reason": fit.reason,
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
        Of :func:`gradscope.fit_decay`. Its interval is over the pooled sequences, whatever record they come from.
    """
    chosen = _quantity(run, site, quantity)
    at = part_of_run(run, site, part)
    norms, lengths = run.array(site, chosen)[at], run.lengths(site)[at]
    smallest = float(run.records(site)["smallest_normal"].to_numpy()[at].max())
    return fit_decay(
        np.arange(norms.shape[-1]),
        norms.reshape(-1, norms.shape[-1]),
        lengths=lengths.reshape(-1),
        smallest_normal=smallest,
        **options,
    )


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
    return (
        "a gradient enters from above at most timesteps, not only at the last: the curve sums the contributions of "
        "many losses, and falls more slowly than the recurrence alone would let it"
    )


def clip_statistics_of_run(run: Run) -> list[ClipStatistics]:
    """:func:`clip_statistics` of every kind of clipping and part of the parameters, of the calls that had an effect."""
    clips = acting(run.clips())
    rates = _learning_rates(run)
    result = []
    for kind, part in [(k, p) for k in schema.CLIP_KINDS for p in parts(clips[clips["kind"] == k])]:
        of_kind = clips[(clips["kind"] == kind) & (clips["part"] == part)]
        if not len(of_kind):
            continue
        found = clip_statistics(
            of_kind["norm_before"],
            of_kind["scale"],
            of_kind["clipped"],
            kind=kind,
            threshold=of_kind["threshold"],
            cosine=None if of_kind["cosine"].isna().all() else of_kind["cosine"],
            lr=None if rates is None else of_kind["step"].map(rates).to_numpy(dtype=float),
        )
        result.append(replace(found, part=part))
    return result


def raw_norms(run: Run, part: str | None = None) -> pd.DataFrame:
    """Total gradient norms before clipping: ``step, norm, source``.

    From the clipping calls where there are any (one norm a step), else from the logged ``grad_norm``, else from the
    per-parameter norms of the recorded steps. ``source`` says which. Norms of different parts of the parameters are
    never mixed: where they were clipped apart, those of ``part``, or by default those of the whole.
    """
    clips = run.clips()
    clipped = parts(clips)
    if part is None:
        part = "" if len(clipped) > 1 else clipped[0]
    measured = norms_before(clips, part)
    if len(measured):
        return _norm_frame(measured["step"], measured["norm"], "clips")
    if part:
        return _norm_frame([], [], "none")
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


def threshold_table_of_run(
    run: Run, thresholds: Sequence[float] | None = None, part: str | None = None
) -> pd.DataFrame:
    """:func:`threshold_table` of the run's raw norms, or those of a part of the parameters, as a frame."""
    norms = raw_norms(run, part)
    rates = _learning_rates(run)
    lr = 1.0 if rates is None else norms["step"].map(rates).fillna(1.0).to_numpy(dtype=float)
    return pd.DataFrame([asdict(effect) for effect in threshold_table(norms["norm"], thresholds, lr=lr)])


def suggestion_of_run(run: Run, part: str | None = None) -> ThresholdSuggestion:
    """:func:`suggest_threshold` from the run's raw norms, or those of a part of the parameters."""
    return suggest_threshold(raw_norms(run, part)["norm"])


@dataclass(frozen=True, eq=False)
class PartAdvice:
    """What other thresholds would have done to one part of the parameters that was clipped by itself."""

    part: str
    thresholds: pd.DataFrame
    suggestion: ThresholdSuggestion


def advice_per_part(run: Run) -> tuple[PartAdvice, ...]:
    """One :class:`PartAdvice` for each part; empty where one call clipped everything."""
    named = [part for part in parts(run.clips()) if part]
    found = [part for part in named if np.isfinite(raw_norms(run, part)["norm"]).any()]
    return tuple(PartAdvice(p, threshold_table_of_run(run, part=p), suggestion_of_run(run, p)) for p in found)


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
