"""What may be said of a fitted decay: verdict, half-life, and the reasons. Thresholds are the constants below."""

from __future__ import annotations

import numpy as np

from gradscope.diagnostics.curve import DecayCurve
from gradscope.diagnostics.line import Line

#: A straight line that explains less of the curve than this is not quoted as a half-life.
MIN_R2 = 0.95
#: Fewer lags than this support neither a half-life nor a verdict.
MIN_LAGS = 5
#: A change over the lag range by less than this factor, up or down, is "preserved".
PRESERVED_FACTOR = 10.0

VERDICTS = ("vanishing", "preserved", "exploding", "undetermined")

_DECADES = float(np.log10(PRESERVED_FACTOR))


def half_life(line: Line) -> tuple[float | None, tuple[float, float] | None, str]:
    """Half-life in lags and its interval, or None and why it should not be quoted."""
    if line.n_lags < MIN_LAGS:
        return None, None, f"too few lags for a half-life: {line.n_lags} of at least {MIN_LAGS}"
    if not line.rate < 0:
        return None, None, "the gradient does not shrink with lag"
    if not line.r2 >= MIN_R2:
        return None, None, f"the decay is not exponential: R² {_number(line.r2)} is below {_number(MIN_R2)}"
    if line.interval is None:
        return _halving(line.rate), None, ""
    if line.interval[1] >= 0:
        return None, None, "the interval of the rate includes no decay at all"
    return _halving(line.rate), (_halving(line.interval[0]), _halving(line.interval[1])), ""


def judge(curve: DecayCurve, line: Line, unit: str = "sequence") -> tuple[str, str]:
    """Verdict and its reason.

    Over the lag range: *vanishing* is a fall by ``PRESERVED_FACTOR`` or more, by the line and by the curve's own ends,
    with an interval that excludes a zero rate; *exploding* its mirror image; *preserved* stays within the factor
    throughout. Anything else, or fewer than ``MIN_LAGS`` lags, is *undetermined*.
    """
    if line.n_lags < MIN_LAGS:
        return _judge_short(curve, line)
    single = f"a single {unit}, so no interval" if line.interval is None else ""
    low, high = line.interval or (line.rate, line.rate)
    where = f"over lags {line.lag_range[0]}–{line.lag_range[1]}" if line.lag_range else ""
    fitted = line.rate * line.span
    for verdict, sign in (("vanishing", -1.0), ("exploding", 1.0)):
        beyond = min(sign * fitted, sign * line.change) >= _DECADES
        if beyond and min(sign * low, sign * high) > 0:
            said = "falls" if sign < 0 else "grows"
            curved = "" if line.r2 >= MIN_R2 else f"the curve is not a straight line (R² {_number(line.r2)})"
            return verdict, _joined(f"{said} by a factor of {10 ** abs(line.change):.2g} {where}", curved, single)
    if max(abs(low), abs(high)) * line.span < _DECADES and line.swing < _DECADES:
        return _if_it_lasts(curve, f"stays within a factor of {PRESERVED_FACTOR:g} {where}", single)
    if line.swing >= _DECADES and abs(line.change) < _DECADES:
        return "undetermined", _joined(f"the curve falls and rises {where}: its ends say less than its course", single)
    if low <= 0 <= high:
        return "undetermined", _joined(f"the interval of the rate includes no change at all {where}", single)
    return "undetermined", _joined(f"too close to a factor of {PRESERVED_FACTOR:g} {where} to tell", single)


def lost_from(curve: DecayCurve) -> int | None:
    """First lag from which at least half of the present norms are zero or below the smallest normal number."""
    lost = curve.n_zero + curve.n_below_normal
    present = curve.support + lost
    # Judged after the last usable lag: a zero before it is a gap, not the end of what can be represented.
    after = np.arange(curve.lags.size) > curve.last
    gone = np.flatnonzero(after & (lost > 0) & (2 * lost >= present))
    return int(curve.lags[gone[0]]) if gone.size else None


def leftovers(curve: DecayCurve) -> str:
    """What had to be left out of the fit, in words."""
    counted = (
        (int(curve.n_zero.sum()), "exactly zero"),
        (int(curve.n_below_normal.sum()), "below the smallest normal number"),
        (int(curve.n_nonfinite.sum()), "not finite"),
    )
    parts = [f"{count} {'norm' if count == 1 else 'norms'} {what}" for count, what in counted if count]
    return f"left out: {', '.join(parts)}" if parts else ""


def _judge_short(curve: DecayCurve, line: Line) -> tuple[str, str]:
    if curve.last < curve.first:
        if curve.n_zero.any() or curve.n_below_normal.any():
            return "undetermined", "every norm is zero or too small to be represented: no gradient arrived here"
        if curve.n_nonfinite.any():
            return "undetermined", "no norm is finite"
        return "undetermined", "there are no norms"
    gone = lost_from(curve)
    if gone is not None and curve.lags.size - curve.last > MIN_LAGS:
        return "vanishing", f"zero, or too small to be represented, from lag {gone} on"
    return "undetermined", f"too few lags for a verdict: {line.n_lags} of at least {MIN_LAGS}"


def _if_it_lasts(curve: DecayCurve, *said: str) -> tuple[str, str]:
    """A preserved curve that then breaks off at zero or at infinity is not preserved."""
    gone = lost_from(curve)
    if gone is not None:
        return "vanishing", _joined(f"zero, or too small to be represented, from lag {gone} on", *said)
    beyond = curve.n_nonfinite[curve.last + 1 : curve.last + 2]
    if beyond.any():
        return "undetermined", _joined(f"not finite from lag {int(curve.lags[curve.last + 1])} on", *said)
    return "preserved", _joined(*said)


def _halving(rate: float) -> float:
    return float(-np.log10(2.0) / rate)


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
