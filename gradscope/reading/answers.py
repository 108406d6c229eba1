"""How far back the gradient reaches in a recorded run, and what clipping did to it: fits, tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from gradscope import schema
from gradscope.diagnostics.clipping import ClipStatistics, clip_statistics
from gradscope.diagnostics.decay import DecayFit, fit_decay
from gradscope.diagnostics.thresholds import ThresholdSuggestion, suggest_threshold, threshold_table
from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.reading import advice, select
from gradscope.reading.clip_calls import acting, parts
from gradscope.reading.counted import Reading, read
from gradscope.reading.curves import has_layer_above, norms
from gradscope.reading.norms import raw_norms
from gradscope.reading.sweeps import final_value
from gradscope.store import Run
from gradscope.words import sentence

#: Names under which a learning rate may have been logged.
LEARNING_RATES = ("lr", "learning_rate")


def curve_quantity(run: Run | Reading, site: str) -> str:
    """The quantity whose decay describes a site; the first recorded one with a curve when it was not recorded.

    Raises
    ------
    NotRecordedError
        Nothing with a curve against lag was recorded there.
    """
    found = select.curve_quantity(run, site)
    if found is None:
        preferred = run.site(site).curve
        raise NotRecordedError(
            f"{site}: no gradient norms against lag were recorded; record quantities=[{preferred!r}] there."
        )
    return found


def decay_fits(
    run: Run | Reading, site: str | None = None, quantity: str | None = None, **options: Any
) -> pd.DataFrame:
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
        ``site, quantity, step, micro, attempt, rank``, then :func:`fit_row`, for the records that count.
    """
    rows = []
    for name in _sites(run, site):
        chosen = _quantity(run, name, quantity)
        if not read(run).counted(name):
            continue
        found = norms(run, name, chosen)
        for index, record in enumerate(found.records.itertuples()):
            where = {key: getattr(record, key) for key in ("step", "micro", "attempt", "rank")}
            fit = found.fit(np.array([index]), **options)
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


def pooled_fit(
    run: Run | Reading, site: str, quantity: str | None = None, part: str | int = "all", **options: Any
) -> DecayFit:
    """One fit over all sequences of a part of the run.

    Parameters
    ----------
    run : Run
    site : str
    quantity : str, optional
    part : {"first", "early", "late", "last", "all"} or int
        ``early`` and ``late`` are the first and last tenth of the recorded steps with a usable norm; a number is one
        recorded step.
    **options
        ``lag_range``, ``confidence``, ``resamples``, ``seed`` and ``horizon_fraction`` of
        :func:`gradscope.fit_decay`. Its interval is over the recorded steps, where there are several.

    Raises
    ------
    UnknownNameError, NotRecordedError, EmptyRunError
    """
    found = norms(run, site, _quantity(run, site, quantity))
    return found.fit(found.at(part), **options)


@dataclass(frozen=True, eq=False)
class SiteAnswer:
    """How far back the gradient reaches at a site, at the beginning and at the end of a run.

    ``caveat`` says what keeps the curve from showing the recurrence alone; empty when nothing is known to. ``what_now``
    says what to try, and how (:mod:`gradscope.reading.advice`).
    """

    site: str
    quantity: str
    early: DecayFit
    late: DecayFit
    early_steps: tuple[int, int]
    late_steps: tuple[int, int]
    sentence: str
    caveat: str
    what_now: tuple[str, ...] = ()


def answer(run: Run | Reading, site: str, quantity: str | None = None, **options: Any) -> SiteAnswer:
    """The answer of a run at one site; see :class:`SiteAnswer`. Without options it is found once."""
    chosen = _quantity(run, site, quantity)
    if options:
        return _answer(run, site, chosen, **options)
    once: SiteAnswer = read(run).once(f"answer {chosen} {site}", lambda: _answer(run, site, chosen))
    return once


def _answer(run: Run | Reading, site: str, chosen: str, **options: Any) -> SiteAnswer:
    found = norms(run, site, chosen)
    spans, fits = [], []
    for part in ("early", "late"):
        at = found.at(part)
        spans.append(found.span(at))
        fits.append(found.fit(at, **options))
    said = sentence(fits[1], f"{site} ({chosen}), {_span(spans[1])}")
    if spans[0] != spans[1]:
        said += f" [{sentence(fits[0], f'at {_span(spans[0])}')}]"
    explodes = fits[1].verdict == "exploding"
    suggestion = suggestion_of_run(run) if explodes else None
    now = advice.what_now(run.site(site), fits[0], fits[1], found.longest, suggestion)
    return SiteAnswer(site, chosen, fits[0], fits[1], spans[0], spans[1], said, direct_caveat(run, site), now)


def answers(run: Run | Reading, **options: Any) -> list[SiteAnswer]:
    """:func:`answer` at every site that has a curve."""
    found = [s for s in run.sites if any(_has_curve(name) for name in run.quantities(s)) and read(run).counted(s)]
    return [answer(run, site, **options) for site in found]


def advice_of(found: Sequence[SiteAnswer]) -> list[str]:
    """What to try at the sites of a run, each line once, with the sites it is for."""
    return advice.together([(one.site, one.what_now) for one in found])


def direct_caveat(run: Run | Reading, site: str) -> str:
    """Whether a gradient enters from above at later lags too, so that the curve is not the recurrence's alone."""
    if "direct" not in run.quantities(site):
        return ""
    direct = read(run).array(site, "direct")
    if direct.shape[-1] < 2:
        return ""
    present = ~np.isnan(direct[..., 1:])
    entering = float(np.mean(direct[..., 1:][present] != 0)) if present.any() else 0.0
    if entering < 0.5:
        return ""
    if has_layer_above(run.sites, site):
        return (
            "a gradient arrives from the layer above at most timesteps: the curve is that of the stack from here on "
            "up, not of this recurrence alone"
        )
    return (
        "a gradient enters from above at most timesteps, not only at the last: the curve sums the contributions of "
        "many losses, and is not that of the recurrence alone"
    )


def clip_statistics_of_run(run: Run | Reading) -> list[ClipStatistics]:
    """:func:`clip_statistics` of every kind of clipping and part of the parameters, of the calls that had an effect."""
    reading = read(run)
    return list(reading.once("clip statistics", lambda: _clip_statistics(reading)))


def _clip_statistics(run: Reading) -> list[ClipStatistics]:
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


def threshold_table_of_run(
    run: Run | Reading, thresholds: Sequence[float] | None = None, part: str | None = None
) -> pd.DataFrame:
    """:func:`threshold_table` of the run's raw norms, or those of a part of the parameters, as a frame."""
    return pd.DataFrame([asdict(effect) for effect in threshold_table(raw_norms(run, part)["norm"], thresholds)])


def suggestion_of_run(run: Run | Reading, part: str | None = None) -> ThresholdSuggestion:
    """:func:`suggest_threshold` from the run's raw norms, or those of a part of the parameters."""
    return suggest_threshold(raw_norms(run, part)["norm"])


def clipping_now_of_run(run: Run | Reading) -> tuple[str, ...]:
    """:func:`gradscope.reading.advice.clipping_now` of a run: what to do about the threshold and jumping norms."""
    known, found = raw_norms(run), _learning_rates(run)
    suggestion = suggestion_of_run(run) if np.isfinite(known["norm"].to_numpy(dtype=float)).any() else None
    return advice.clipping_now(
        clip_statistics_of_run(run),
        known,
        suggestion,
        learning_rate=None if not found else found[max(found)],
        diverged_at=final_value(run, "loss")[1],
    )


@dataclass(frozen=True, eq=False)
class PartAdvice:
    """What other thresholds would have done to one part of the parameters that was clipped by itself."""

    part: str
    thresholds: pd.DataFrame
    suggestion: ThresholdSuggestion


def advice_per_part(run: Run | Reading) -> tuple[PartAdvice, ...]:
    """One :class:`PartAdvice` for each part; empty where one call clipped everything."""
    named = [part for part in parts(read(run).clips()) if part]
    found = [part for part in named if np.isfinite(raw_norms(run, part)["norm"]).any()]
    return tuple(PartAdvice(p, threshold_table_of_run(run, part=p), suggestion_of_run(run, p)) for p in found)


def _learning_rates(run: Run | Reading) -> dict[int, float] | None:
    steps = read(run).steps()
    for name in LEARNING_RATES:
        if name in steps and steps[name].notna().any():
            known = steps[steps[name].notna()]
            return dict(zip(known["step"].astype(int), known[name].astype(float), strict=True))
    return None


def _sites(run: Run | Reading, site: str | None) -> tuple[str, ...]:
    if site is None:
        return tuple(s for s in run.sites if any(_has_curve(name) for name in run.quantities(s)))
    if site not in run.sites:
        raise UnknownNameError("site", site, run.sites)
    return (site,)


def _quantity(run: Run | Reading, site: str, quantity: str | None) -> str:
    if quantity is None:
        return curve_quantity(run, site)
    if quantity not in schema.QUANTITIES:
        raise UnknownNameError("quantity", quantity, schema.QUANTITIES)
    if not _has_curve(quantity):
        raise SettingError(f"{quantity!r} has no norm per sequence and lag, so no decay to fit.")
    if quantity not in run.quantities(site):
        lacks = run.site(site).lacks(quantity)
        advice = f"{lacks}." if lacks else f"pass quantities=[{quantity!r}] to record it."
        raise NotRecordedError(f"{site}: {quantity!r} was not recorded; {advice}")
    return quantity


def _has_curve(quantity: str) -> bool:
    # The direct gradient is what arrives from above: it has a course along the lag, but no decay through time.
    return quantity != "direct" and quantity in select.PER_LAG


def _span(steps: tuple[int, int]) -> str:
    return f"step {steps[0]}" if steps[0] == steps[1] else f"steps {steps[0]}–{steps[1]}"
