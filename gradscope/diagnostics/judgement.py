"""What may be said of a fitted decay: verdict, half-life, and the reasons. Thresholds are the constants below."""

from __future__ import annotations

import numpy as np

from gradscope.diagnostics.curve import DecayCurve
from gradscope.diagnostics.entry import Entry
from gradscope.diagnostics.line import Line

#: A straight line that explains less of the curve than this is not quoted as a half-life.
MIN_R2 = 0.95
#: Nor where one half of the range falls this many times faster than the other.
MAX_BEND = 1.5
#: Fewer lags than this support neither a half-life nor a verdict.
MIN_LAGS = 5
#: So many recorded steps that all agree are enough for a verdict.
MIN_STEPS = 5
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
    if line.bounds[1] >= 0:
        return None, None, "the interval of the rate includes no decay at all"
    bend = _bend(line)
    if bend:
        return None, None, f"the decay is not exponential: {bend}"
    if not line.r2 >= MIN_R2:
        return None, None, f"the decay is not exponential: R² {_number(line.r2)} is below {_number(MIN_R2)}"
    if line.interval is None:
        return _halving(line.rate), None, ""
    return _halving(line.rate), (_halving(line.interval[0]), _halving(line.interval[1])), ""


def _bend(line: Line) -> str:
    """How the curve bends, where its two halves fall at rates too different for one half-life; else empty.

    R² alone is no test of straightness: l^1.8 has .968 over 60 lags while its half-life falls from 11 to 2.
    """
    early, late = line.local
    if line.lag_range is None or not np.isfinite([early, late]).all():
        return ""
    first, last = (f"over lags {line.lag_range[0]}–{line.middle}", f"over {line.middle}–{line.lag_range[1]}")
    if min(-early, -late) <= 0:
        return f"it falls {first}, not {last}" if early < 0 else f"it falls {last}, not {first}"
    if max(early / late, late / early) < MAX_BEND:
        return ""
    how = "faster" if late < early else "slower"
    return (
        f"it gets {how} with distance, a half-life of {_halving(early):.2g} steps {first}, {_halving(late):.2g} {last}"
    )


def judge(curve: DecayCurve, line: Line, entry: Entry | None = None) -> tuple[str, str]:
    """Verdict and its reason.

    Over the lag range: *vanishing* is a fall by ``PRESERVED_FACTOR`` or more, by the curve's own ends and by the whole
    interval of the line, or by the line of each of ``MIN_STEPS`` or more recorded steps; *exploding* its mirror image;
    *preserved* is an interval, and a curve, that stay within the factor throughout. Anything else, or fewer than
    ``MIN_LAGS`` lags, is *undetermined*.
    """
    if line.n_lags < MIN_LAGS:
        return _judge_short(curve, line, entry)
    alone = f"no interval: {line.interval_reason}" if line.interval is None else ""
    where = f"over lags {line.lag_range[0]}–{line.lag_range[1]}" if line.lag_range else ""
    low, high = line.bounds[0] * line.span, line.bounds[1] * line.span
    for verdict, sign in (("vanishing", -1.0), ("exploding", 1.0)):
        each = _each_step(line, sign)
        if sign * line.change >= _DECADES and (each or min(sign * low, sign * high) >= _DECADES):
            if sign > 0 and entry is not None and entry.explains_growth(PRESERVED_FACTOR):
                return "undetermined", f"grows {where}, but {entry.words}"
            said = "falls" if sign < 0 else "grows"
            curved = "" if line.r2 >= MIN_R2 else f"the curve is not a straight line (R² {_number(line.r2)})"
            return verdict, _joined(f"{said} by a factor of {10 ** abs(line.change):.2g} {where}{each}", curved, alone)
    if max(abs(low), abs(high)) < _DECADES and line.swing < _DECADES:
        if entry is not None and entry.explains_level:
            return "undetermined", f"level {where}, but {entry.words}"
        return _if_it_lasts(curve, f"stays within a factor of {PRESERVED_FACTOR:g} {where}", alone)
    if line.swing >= _DECADES and abs(line.change) < _DECADES:
        return "undetermined", _joined(f"the curve falls and rises {where}: its ends say less than its course", alone)
    if low <= 0 <= high and len(line.step_changes) > 1:
        return "undetermined", (
            f"the {len(line.step_changes)} recorded steps differ: {where} their lines change by "
            f"{min(line.step_changes):.2g} to {max(line.step_changes):.2g} decades"
        )
    if low <= 0 <= high:
        return "undetermined", _joined(f"the interval of the rate includes no change at all {where}", alone)
    interval = f" ({low:.2g} to {high:.2g})" if line.interval is not None else ""
    changes = f"{where} the line changes by {line.rate * line.span:.2g} decades{interval}"
    return "undetermined", _joined(f"{changes}, too close to a factor of {PRESERVED_FACTOR:g} to tell", alone)


def _each_step(line: Line, sign: float) -> str:
    """That every recorded step changes by the factor on its own, in words; empty where one does not.

    Of steps that differ widely the mean has a wide interval, though none of them is in doubt. That all of five lie
    beyond the factor has a probability of 1/32 where half of all steps do (the sign test).
    """
    changes = np.array(line.step_changes)
    if changes.size < MIN_STEPS or np.min(sign * changes) < _DECADES:
        return ""
    return f", and by {PRESERVED_FACTOR:g} or more in each of the {changes.size} recorded steps"


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
    return _joined(unreached(curve), f"left out: {', '.join(parts)}" if parts else "")


def unreached(curve: DecayCurve) -> str:
    """That no gradient arrives at the first lags, in words; empty where one does."""
    before = np.flatnonzero(curve.n_unreached[: curve.first])
    if not before.size or curve.last < curve.first:
        return ""
    first, last = int(curve.lags[before[0]]), int(curve.lags[before[-1]])
    return f"no gradient arrives yet at lag{'' if first == last else 's'} {_through(first, last)}"


def _judge_short(curve: DecayCurve, line: Line, entry: Entry | None) -> tuple[str, str]:
    if curve.last < curve.first:
        if curve.n_zero.any() or curve.n_below_normal.any():
            return "undetermined", "every norm is zero or too small to be represented: no gradient arrived here"
        if curve.n_nonfinite.any():
            return "undetermined", "no norm is finite"
        return "undetermined", "there are no norms"
    gone = lost_from(curve)
    if gone is not None and curve.lags.size - curve.last > MIN_LAGS:
        return "vanishing", f"zero, or too small to be represented, from lag {gone} on"
    if curve.first == curve.last and curve.n_unreached[: curve.first].any():
        return "undetermined", only_one_step(curve)
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


def only_one_step(curve: DecayCurve) -> str:
    """That a single step receives a gradient, in words."""
    end = ", the first it processes: nothing lies further back" if curve.first == curve.lags.size - 1 else ""
    return f"only one step of this recurrence is reached by a gradient (lag {curve.lags[curve.first]:g}){end}"


def _through(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}–{last}"


def _halving(rate: float) -> float:
    return float(-np.log10(2.0) / rate)


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
