"""What may be said of a fitted decay: verdict and half-life. The thresholds are the constants below."""

from __future__ import annotations

import numpy as np

from gradscope import reasons
from gradscope.diagnostics.curve import DecayCurve
from gradscope.diagnostics.entry import Entry
from gradscope.diagnostics.line import Line
from gradscope.reasons import Reason, joined

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
        return None, None, reasons.few_lags_for_half_life(line.n_lags, MIN_LAGS)
    if not line.rate < 0:
        return None, None, reasons.NO_DECAY
    if line.bounds[1] >= 0:
        return None, None, reasons.PERHAPS_NO_DECAY
    bend = _bend(line)
    if bend:
        return None, None, reasons.not_exponential(bend)
    if not line.r2 >= MIN_R2:
        return None, None, reasons.not_exponential(reasons.low_r2(line.r2, MIN_R2))
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
    if min(-early, -late) > 0 and max(early / late, late / early) < MAX_BEND:
        return ""
    halves = tuple(_halving(slope) if slope < 0 else float("inf") for slope in (early, late))
    return reasons.bend(early, late, line.lag_range, line.middle, (halves[0], halves[1]))


def judge(curve: DecayCurve, line: Line, entry: Entry | None = None) -> tuple[str, Reason]:
    """Verdict and its reason.

    Over the lag range: *vanishing* is a fall by ``PRESERVED_FACTOR`` or more, by the curve's own ends and by the whole
    interval of the line, or by the line of each of ``MIN_STEPS`` or more recorded steps; *exploding* its mirror image;
    *preserved* is an interval, and a curve, that stay within the factor throughout. Anything else, or fewer than
    ``MIN_LAGS`` lags, is *undetermined*.
    """
    if line.n_lags < MIN_LAGS:
        return _judge_short(curve, line)
    alone = reasons.no_interval(line.interval_reason) if line.interval is None else ""
    where = reasons.over(line.lag_range)
    low, high = line.bounds[0] * line.span, line.bounds[1] * line.span
    for verdict, sign in (("vanishing", -1.0), ("exploding", 1.0)):
        agreeing = _agreeing(line, sign)
        if sign * line.change >= _DECADES and (agreeing or min(sign * low, sign * high) >= _DECADES):
            if sign > 0 and entry is not None and entry.explains_growth(PRESERVED_FACTOR):
                return "undetermined", reasons.enters("grows", where, entry.words, entry.known)
            found = reasons.changes(10 ** abs(line.change), sign < 0, where, agreeing, PRESERVED_FACTOR)
            return verdict, found + ("" if line.r2 >= MIN_R2 else reasons.curved(line.r2)) + alone
    if max(abs(low), abs(high)) < _DECADES and line.swing < _DECADES:
        if entry is not None and entry.explains_level:
            return "undetermined", reasons.enters("level", where, entry.words, entry.known)
        return _if_it_lasts(curve, reasons.level(PRESERVED_FACTOR, where) + alone)
    if line.swing >= _DECADES and abs(line.change) < _DECADES:
        return "undetermined", reasons.turns(where) + alone
    if low <= 0 <= high and len(line.step_changes) > 1:
        return "undetermined", reasons.steps_differ(where, line.step_changes)
    if low <= 0 <= high:
        return "undetermined", reasons.no_change(where) + alone
    bounds = (low, high) if line.interval is not None else None
    return "undetermined", reasons.too_close(line.rate * line.span, bounds, where, PRESERVED_FACTOR) + alone


def _agreeing(line: Line, sign: float) -> int:
    """How many recorded steps change by the factor on their own, where all of them do; else 0.

    Of steps that differ widely the mean has a wide interval, though none of them is in doubt. That all of five lie
    beyond the factor has a probability of 1/32 where half of all steps do (the sign test). Steps that resemble their
    neighbours are worth fewer: of those each has to change by the factor twice over.
    """
    changes = np.array(line.step_changes)
    least = _DECADES if line.n_effective >= MIN_STEPS else 2 * _DECADES
    if changes.size < MIN_STEPS or np.min(sign * changes) < least:
        return 0
    return int(changes.size)


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
    counts = (curve.n_zero, curve.n_below_normal, curve.n_nonfinite)
    return joined(unreached(curve), reasons.left_out(*(int(count.sum()) for count in counts)))


def unreached(curve: DecayCurve) -> str:
    """That no gradient arrives at the first lags, in words; empty where one does."""
    before = np.flatnonzero(curve.n_unreached[: curve.first])
    if not before.size or curve.last < curve.first:
        return ""
    return reasons.not_yet(int(curve.lags[before[0]]), int(curve.lags[before[-1]]))


def _judge_short(curve: DecayCurve, line: Line) -> tuple[str, Reason]:
    if curve.last < curve.first:
        if curve.n_zero.any() or curve.n_below_normal.any():
            return "undetermined", reasons.NOTHING_ARRIVES
        return "undetermined", reasons.NOTHING_FINITE if curve.n_nonfinite.any() else reasons.NO_NORMS
    gone = lost_from(curve)
    if gone is not None and curve.lags.size - curve.last > MIN_LAGS:
        return "vanishing", reasons.lost(gone)
    if curve.first == curve.last and curve.n_unreached[: curve.first].any():
        return "undetermined", reasons.one_step(float(curve.lags[curve.first]), curve.first == curve.lags.size - 1)
    return "undetermined", reasons.few_lags(line.n_lags, MIN_LAGS)


def _if_it_lasts(curve: DecayCurve, level: Reason) -> tuple[str, Reason]:
    """A preserved curve that then breaks off at zero or at infinity is not preserved."""
    gone = lost_from(curve)
    if gone is not None:
        return "vanishing", reasons.lost(gone) + level.words
    beyond = curve.n_nonfinite[curve.last + 1 : curve.last + 2]
    if beyond.any():
        return "undetermined", reasons.not_finite_from(int(curve.lags[curve.last + 1])) + level.words
    return "preserved", level


def _halving(rate: float) -> float:
    return float(-np.log10(2.0) / rate)
