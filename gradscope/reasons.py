"""Why a verdict, a half-life or an interval is what it is: a cause to act on, and the words that are printed.

The numbers come from :mod:`gradscope.diagnostics`, whose modules decide; what they say is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.words import correlation, ends, number, signed

#: Causes of a verdict, in place of its words, for what acts on them.
FEW_LAGS, NO_GRADIENT, NOT_FINITE, ONE_STEP = "few lags", "no gradient", "not finite", "one step"
ENTERS, ENTRY_UNKNOWN = "enters everywhere", "entry unknown"
STEPS_DIFFER, NO_CHANGE, TOO_CLOSE, TURNS = "steps differ", "no change", "too close", "turns"
CHANGES, LEVEL, LOST = "changes", "level", "lost"


@dataclass(frozen=True)
class Reason:
    """What decided, as a cause and in words."""

    cause: str
    words: str

    def __add__(self, more: str) -> Reason:
        return Reason(self.cause, joined(self.words, more))


def joined(*parts: str) -> str:
    """Parts of a sentence, the empty ones left out."""
    return "; ".join(part for part in parts if part)


def over(lag_range: tuple[int, int] | None) -> str:
    """``over lags 5–60``, or nothing."""
    return "" if lag_range is None else f"over lags {lag_range[0]}–{lag_range[1]}"


# --- verdicts --------------------------------------------------------------------------------------------------------


def changes(factor: float, falls: bool, where: str, agreeing: int, least: float) -> Reason:
    """A curve that falls or grows by a factor; ``agreeing`` recorded steps each do by ``least`` or more."""
    each = f", and by {least:g} or more in each of the {agreeing} recorded steps" if agreeing else ""
    return Reason(CHANGES, f"{'falls' if falls else 'grows'} by a factor of {number(factor)} {where}{each}")


def level(factor: float, where: str) -> Reason:
    """A curve that stays within a factor."""
    return Reason(LEVEL, f"stays within a factor of {factor:g} {where}")


def enters(shape: str, where: str, words: str, known: bool) -> Reason:
    """A curve that may be level, or grow, because of what enters along the way."""
    return Reason(ENTERS if known else ENTRY_UNKNOWN, f"{shape} {where}, but {words}")


def turns(where: str) -> Reason:
    """A curve that falls and rises again."""
    return Reason(TURNS, f"the curve falls and rises {where}: its ends say less than its course")


def steps_differ(where: str, changes_of: Sequence[float]) -> Reason:
    """Recorded steps of which some fall and some do not."""
    low, high = min(changes_of), max(changes_of)
    steps = f"the {len(changes_of)} recorded steps differ"
    return Reason(STEPS_DIFFER, f"{steps}: {where} their lines change by {signed(low)} to {signed(high)} decades")


def no_change(where: str) -> Reason:
    """An interval with 0 in it."""
    return Reason(NO_CHANGE, f"the interval of the rate includes no change at all {where}")


def too_close(change: float, bounds: tuple[float, float] | None, where: str, factor: float) -> Reason:
    """A change about as large as the factor that verdicts ask about, in decades."""
    interval = "" if bounds is None else f" ({signed(bounds[0])} to {signed(bounds[1])})"
    by = signed(change)
    decades = "decade" if by.lstrip("−") == "1" else "decades"
    said = f"{where} the line changes by {by} {decades}{interval}, too close to a factor of {factor:g} to tell"
    return Reason(TOO_CLOSE, said)


def few_lags(n: int, least: int) -> Reason:
    """Too few lags for a verdict."""
    return Reason(FEW_LAGS, f"too few lags: {n} of at least {least}")


def one_step(lag: float, first: bool) -> Reason:
    """A single step that receives a gradient; ``first`` where the recurrence begins there."""
    end = ", the first it processes: nothing lies further back" if first else ""
    return Reason(ONE_STEP, f"only one step of this recurrence is reached by a gradient (lag {lag:g}){end}")


def lost(lag: int) -> Reason:
    """A gradient that cannot be represented from some lag on."""
    return Reason(LOST, f"zero, or too small to be represented, from lag {lag} on")


def not_finite_from(lag: int) -> Reason:
    """A gradient that is not finite from some lag on."""
    return Reason(NOT_FINITE, f"not finite from lag {lag} on")


NOTHING_ARRIVES = Reason(NO_GRADIENT, "every norm is zero or too small to be represented: no gradient arrived here")
NOTHING_FINITE = Reason(NOT_FINITE, "no norm is finite")
NO_NORMS = Reason(NO_GRADIENT, "there are no norms")


def curved(r2: float) -> str:
    """That a straight line does not describe the curve."""
    return f"the curve is not a straight line (R² {correlation(r2)})"


def no_interval(reason: str) -> str:
    """That there is no interval, and why."""
    return f"no interval: {reason}"


def left_out(zero: int, below_normal: int, nonfinite: int) -> str:
    """What a fit had to leave out."""
    counted = ((zero, "exactly zero"), (below_normal, "below the smallest normal number"), (nonfinite, "not finite"))
    parts = [f"{count} {'norm' if count == 1 else 'norms'} {what}" for count, what in counted if count]
    return f"left out: {', '.join(parts)}" if parts else ""


def not_yet(first: int, last: int) -> str:
    """That no gradient arrives at the first lags."""
    through = f" {first}" if first == last else f"s {first}–{last}"
    return f"no gradient arrives yet at lag{through}"


# --- where the gradient enters ---------------------------------------------------------------------------------------

ENTRY_NOT_RECORDED = (
    "what enters from above was not recorded (direct): where a gradient enters at every step, a curve is level without "
    "being preserved"
)
ENTERS_AT_MOST_STEPS = (
    "a gradient enters from above at most steps: the curve sums up what arrives there and does not show the recurrence "
    "alone"
)


def enters_up_to(lag: float) -> str:
    """That most of the total comes from above up to a lag."""
    return (
        f"a gradient enters from above at most steps, and makes up at least half of the total up to lag {lag:g}: the "
        "curve shows what arrives from above, not what the recurrence carries"
    )


# --- half-lives ------------------------------------------------------------------------------------------------------

NO_DECAY = "the gradient does not shrink with lag"
PERHAPS_NO_DECAY = "the interval of the rate includes no decay at all"


def few_lags_for_half_life(n: int, least: int) -> str:
    """Too few lags for a half-life."""
    return f"too few lags for a half-life: {n} of at least {least}"


def not_exponential(how: str) -> str:
    """That the decay has no one half-life."""
    return f"the decay is not exponential: {how}"


def low_r2(r2: float, least: float) -> str:
    """An R² below what is asked for."""
    return f"R² {correlation(r2)} is below {correlation(least)}"


def bend(early: float, late: float, lag_range: tuple[int, int], middle: int, halves: tuple[float, float]) -> str:
    """How the slopes of two halves of a range differ; ``halves`` are their half-lives."""
    first, last = f"over lags {lag_range[0]}–{middle}", f"over {middle}–{lag_range[1]}"
    if min(-early, -late) <= 0:
        return f"it falls {first}, not {last}" if early < 0 else f"it falls {last}, not {first}"
    how = "faster" if late < early else "slower"
    return f"it gets {how} with distance, a half-life of {number(halves[0])} steps {first}, {number(halves[1])} {last}"


# --- intervals -------------------------------------------------------------------------------------------------------


def single(unit: str) -> str:
    """Nothing to resample."""
    return f"a single {unit}"


def none_reaches(unit: str) -> str:
    """No unit that has every lag."""
    return f"no {unit} reaches over the whole range"


def shared_course(n: int, shared: float) -> str:
    """Sequences of one step that resemble each other."""
    return f"one step, whose {n} sequences share their course (correlation {shared:.2f})"


# --- thresholds ------------------------------------------------------------------------------------------------------

QUANTILE_RANGE = "median to 99th percentile of the recorded norms"
PASCANU_RANGE = ", within 0.5–10 times their mean (Pascanu et al. 2013)"
ALL_ZERO = "every recorded norm is zero"


def few_norms(n: int, least: int) -> str:
    """Too few norms to suggest a threshold from."""
    return (
        f"only {n} finite norm{'s' * (n != 1)}; at least {least} are needed: a longer run, or a norm at every step "
        "(every=1, or clipping calls, with an infinite threshold where nothing is to be clipped)"
    )


def norms_left_out(n: int) -> str:
    """Norms that are not finite."""
    return f"; {n} norms that are not finite left out"


def suggested(low: float, high: float, clipped: tuple[float, float], n: int) -> str:
    """What a range of thresholds would have done to recorded norms; ``clipped`` are the shares at its ends."""
    at_low, at_high = (100 * share for share in clipped)
    first, last = ends((low, high))
    return (
        f"Thresholds from {first} to {last} would have clipped {at_low:.0f}% down to {at_high:.0f}% of "
        f"this run's {n} norms. One run gives a place to start, not a setting: with another threshold the "
        "training, and so these norms, would have gone another way. Compare a few by training."
    )
