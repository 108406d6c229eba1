"""Sentences and numbers as they are printed. They speak of gradient flow, never of what a model can learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.diagnostics import ClipStatistics, DecayFit, ThresholdSuggestion

LAST_STEP = "the last step"
#: A Lyapunov exponent this small is the rounding of 0: an identity's is 5e-17 per step.
_LEVEL = 1e-13
NO_CURVE = "no site has a curve against lag"


def counted(count: int, what: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def counted_span(low: int, high: int, what: str) -> str:
    """``1 run``, ``3 runs``, ``2 to 3 runs``."""
    return counted(high, what) if low == high else f"{low} to {counted(high, what)}"


def capital(words: str) -> str:
    """Words that begin a sentence."""
    return words[:1].upper() + words[1:]


def few(parts: Sequence[str], most: int = 6) -> str:
    """The first of some parts, and how many more there are."""
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def signed(value: float) -> str:
    """Two digits with a minus sign, not a hyphen: ``−1.3``."""
    return f"{value:.2g}".replace("-", "−", 1) if value < 0 else f"{value:.2g}"


def given(value: float, digits: int = 6) -> str:
    """A number as somebody set it, not rounded to two digits: ``0.5``, ``12.5``, ``1e-5`` (not ``1e-05``)."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−", int(value < 0))


def number(value: float, digits: int = 2) -> str:
    """A number with few digits and a short exponent: ``0.42``, ``17``, ``3e-9``, ``−1.2``."""
    if math.isnan(value):
        return "unknown"
    if value < 0:
        return f"−{number(-value, digits)}"
    if math.isinf(value):
        return "infinity"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))))
        return f"{value:.{decimals}f}"
    mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def correlation(value: float) -> str:
    """R² or a cosine with three digits and no leading zero: ``.998``; never 1 for what is only close to it."""
    if math.isnan(value):
        return "undefined"
    if 0.9995 <= value < 1:
        return ">.999"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("-").startswith("0.") else text


def interval(bounds: tuple[float, float] | None, digits: int = 2) -> str:
    """``(1.5–1.7)``, or nothing; with more digits where both ends would read the same."""
    return f"({'–'.join(ends(bounds, digits))})" if bounds is not None else ""


def ends(bounds: tuple[float, float], digits: int = 2) -> tuple[str, str]:
    """Both ends of a range, with more digits where they would read the same."""
    digits = _digits(bounds, digits)
    return number(bounds[0], digits), number(bounds[1], digits)


def within(value: float, bounds: tuple[float, float] | None, digits: int = 2) -> tuple[str, str]:
    """A value and its interval with the same digits, so that the printed value lies inside the printed interval."""
    if bounds is None:
        return number(value, digits), ""
    digits = _digits(bounds, digits)
    return number(value, digits), interval(bounds, digits)


def _digits(bounds: tuple[float, float], digits: int) -> int:
    """Digits from which both ends differ, at most 4."""
    while digits < 4 and bounds[0] != bounds[1] and number(bounds[0], digits) == number(bounds[1], digits):
        digits += 1
    return digits


def percent(share: float) -> str:
    """A share as a percentage that never rounds to none or all when it is neither."""
    if math.isnan(share):
        return "an unknown share"
    if 0 < share < 0.01:
        return "less than 1%"
    if 0.99 < share < 1:
        return "more than 99%"
    return f"{100 * share:.0f}%"


def sentence(fit: DecayFit, name: str = "") -> str:
    """The answer in one sentence: how much of the gradient gets how far back, and how surely it is known.

    Examples
    --------
    "the gradient reaching 60 steps back is 3e-9 of that at the last step; half-life 1.6 steps (1.5–1.7), R² .998"
    """
    nowhere = fit.reference_lag is None or fit.last_lag == fit.reference_lag
    if nowhere and fit.verdict == "undetermined":
        said = f"no verdict: {fit.reason}"
    else:
        said = "; ".join(part for part in (_reach(fit), *_verdict(fit)) if part)
    return f"{name}: {said}" if name else said


def verdict_first(verdict: str, said: str) -> str:
    """A sentence with the verdict it comes to in front."""
    return f"{verdict.upper()}  {said}"


def spectrum_sentence(
    site: str,
    state: Sequence[str],
    exponents: Sequence[float],
    sequences: int,
    warmup: int,
    at: tuple[int, float, float],
) -> str:
    """What the Jacobian of a site does to small changes, in one sentence.

    Parameters
    ----------
    site : str
    state : sequence of str
        What the joint state is made of.
    exponents : sequence of float
        Lyapunov exponents, natural logarithm per step, largest first; may be empty.
    sequences, warmup : int
    at : (int, float, float)
        The largest lag, and log10 of the largest and of the median singular value there.

    Examples
    --------
    "lstm/l0 (hidden, cell): largest Lyapunov exponent -0.42 per step, mean over 8 sequences: small changes halve every
    1.7 steps; at lag 99 the largest singular value is 2e-18, the median 4e-31"
    """
    said = f"{site} ({', '.join(state)}): "
    if len(exponents):
        top = 0.0 if abs(exponents[0]) < _LEVEL else exponents[0]
        of = "of 1 sequence" if sequences == 1 else f"mean over {sequences} sequences"
        left = f" after {warmup} steps of warm-up" if warmup else ""
        said += f"largest Lyapunov exponent {number(top)} per step, {of}{left}{_becoming(top)}; "
    lag, largest, median = at
    return f"{said}at lag {lag} the largest singular value is {_power(largest)}, the median {_power(median)}"


def _becoming(exponent: float) -> str:
    """What becomes of small changes."""
    if math.isinf(exponent):
        return ""
    if not exponent:
        return ": small changes neither grow nor shrink"
    return f": small changes {'halve' if exponent < 0 else 'double'} every {number(math.log(2) / abs(exponent))} steps"


def _power(log10: float) -> str:
    """10 to a power that may be beyond what a number holds."""
    if not math.isfinite(log10):
        return number(0.0 if log10 < 0 else log10)
    return number(10**log10) if abs(log10) < 300 else f"1e{log10:.0f}"


def _reach(fit: DecayFit) -> str:
    lag, origin = fit.last_lag, LAST_STEP if fit.reference_lag == 0 else f"lag {fit.reference_lag}, where it enters"
    if lag == fit.reference_lag:
        return f"no gradient that can be represented gets further back than {origin}"
    steps = "1 step" if lag == 1 else f"{lag} steps"
    return f"the gradient reaching {steps} back is {_times(fit.reach)} that at {origin}"


def _times(ratio: float) -> str:
    """``as large as``, ``304 times`` or ``3e-9 of``, to stand before what it is compared with."""
    if number(ratio) == "1.0":
        return "as large as"
    return f"{number(ratio)} times" if ratio > 1.5 else f"{number(ratio)} of"


def _verdict(fit: DecayFit) -> list[str]:
    parts = []
    over = f"over lags {fit.lag_range[0]}–{fit.lag_range[1]}" if fit.lag_range else ""
    if fit.half_life is not None:
        half, around = within(fit.half_life, fit.half_life_interval)
        parts.append(" ".join(filter(None, ["half-life", _steps(half), around])) + f", R² {correlation(fit.r2)}")
    elif fit.verdict == "vanishing" and fit.lost_from is not None and not _falls(fit):
        return [f"vanishing: zero or too small to be represented from lag {fit.lost_from} on"]
    elif fit.verdict == "vanishing" and fit.n_lags >= 3:
        parts.append(f"vanishing {over}{_change(fit)}, no half-life ({fit.half_life_reason})")
    elif fit.verdict == "exploding":
        parts.append(f"growing {over}{_change(fit)}, {_growth(fit)} per step, R² {correlation(fit.r2)}")
    if fit.verdict == "preserved":
        parts.append(f"preserved {over}{_change(fit)}, within a factor of {fit.factor:g} throughout")
    if fit.verdict == "undetermined":
        parts.append(f"no verdict: {fit.reason}")
    if fit.lost_from is not None and fit.last_lag != fit.reference_lag:
        parts.append(f"zero or too small to be represented from lag {fit.lost_from} on")
    if fit.interval_reason and fit.rate == fit.rate and fit.verdict != "undetermined":
        parts.append(f"no interval ({fit.interval_reason})")
    return parts


def _falls(fit: DecayFit) -> bool:
    """Whether the curve falls by the factor of the verdict over its lags, and not only breaks off behind them."""
    if fit.lag_range is None or fit.n_lags < 3:
        return False
    return fit.ratio(fit.lag_range[1]) * fit.factor <= fit.ratio(fit.lag_range[0])


def _change(fit: DecayFit) -> str:
    """What the curve does over the lags of the verdict: not what it does from the first lag on."""
    if fit.lag_range is None:
        return ""
    begin, end = fit.lag_range
    return f", at lag {end} {_times(fit.ratio(end) / fit.ratio(begin))} that at lag {begin}"


def _growth(fit: DecayFit) -> str:
    bounds = None if fit.interval is None else (10 ** fit.interval[0], 10 ** fit.interval[1])
    value, around = within(10**fit.rate, bounds, 3)
    return " ".join(filter(None, [f"by a factor of {value}", around]))


def _steps(shown: str) -> str:
    return f"{shown} step" if shown == "1" else f"{shown} steps"


def tried_sentence(
    where: str, reach: float, of_input: float, best: tuple[str, float] | None, tried: int, back: int | None = None
) -> str:
    """What the tried initialisations let through at a site, in one sentence.

    Parameters
    ----------
    where : str
    reach, of_input : float
        With the model as it is: the state's gradient at the first step as a fraction of that where it enters, and that
        of ∂L/∂x_t (NaN where it is not known).
    best : (str, float) or None
        The initialisation whose gradient at the first step is nearest to where it enters, and its reach; None where
        that is the model as it is.
    tried : int
    back : int, optional
        The lag of all these numbers, where sequences differ in length and fewer than half of them have the first step
        of the longest.

    Examples
    --------
    "lstm/l0 (cell), 100 steps: as it is, the gradient at the first step is 3e-19 of that where it enters (∂L/∂x_t:
    1e-19); nearest to level of 4 initialisations is chrono(100), with 0.42"
    """
    inputs = "" if math.isnan(of_input) else f" (∂L/∂x_t: {number(of_input)})"
    at = "at the first step" if back is None else f"{back} steps back, as far as half of the sequences reach,"
    said = f"{where}: as it is, the gradient {at} is {_times(reach)} that where it enters{inputs}"
    if best is not None:
        among = "the one initialisation" if tried == 1 else f"{tried} initialisations"
        return f"{said}; nearest to level of {among} is {best[0]}, with {number(best[1])}"
    if not tried:
        return f"{said}; no initialisation was tried here"
    others = "the one initialisation" if tried == 1 else f"any of {tried} initialisations"
    return f"{said}, nearer to level than with {others} tried"


def clip_sentence(statistics: ClipStatistics) -> str:
    """What clipping did, in one sentence."""
    if not statistics.calls:
        return "no clipping call was recorded"
    finite = statistics.calls - statistics.n_nonfinite
    kind = {"norm": "norm clipping", "value": "value clipping", "adaptive": "adaptive clipping (per row)"}.get(
        statistics.kind, "per-timestep clipping of the adjoint"
    )
    whose = f" of {statistics.part}" if statistics.part else ""
    said = f"{kind}{whose}{_at(statistics.thresholds)}"
    if not finite:
        return f"{said}: the norm was not finite in any of {_calls(statistics.calls)}"
    if statistics.thresholds and min(statistics.thresholds) == math.inf:
        return f"{kind}{whose} was called {counted(statistics.calls, 'time')} without a limit, to learn the norm"
    where = " in recorded steps" if statistics.kind == "value" else ""  # between them its norms are not measured
    said += f" changed {percent(statistics.fraction_clipped)} of {_calls(finite)}{where}"
    if statistics.fraction_clipped > 0:
        said += f", by a median factor of {number(statistics.clipped_scale)}"
        if statistics.kind != "norm" and not math.isnan(statistics.cosine_min):
            said += f" and a median cosine with the raw gradient of {correlation(statistics.cosine_median)}"
    if statistics.n_nonfinite:
        said += f"; {_calls(statistics.n_nonfinite)} more saw a norm that is not finite"
    return said


def suggestion_sentence(suggestion: ThresholdSuggestion) -> str:
    """Which thresholds are worth comparing, and where the range comes from; or why none is suggested."""
    line = suggestion.words or f"No threshold is suggested: {suggestion.reason}."
    return line + (f" (Range: {suggestion.reason}.)" if suggestion.words else "")


def _at(thresholds: tuple[float, ...]) -> str:
    if not thresholds:
        return ""
    if len(thresholds) > 3:
        return f" at {len(thresholds)} thresholds from {given(thresholds[0])} to {given(thresholds[-1])}"
    return f" at {', '.join(map(given, thresholds))}"


def _calls(count: int) -> str:
    return counted(count, "call")
