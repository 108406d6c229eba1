"""What now: for each verdict, and for what clipping did, what to try and how. The only place where advice is phrased.

Advice speaks of what is known of the site and of the run's own numbers; whether it helps is for a measurement to say
(:func:`gradscope.remedies`) or for a training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gradscope import reasons
from gradscope.diagnostics import ClipStatistics, DecayFit, ThresholdSuggestion
from gradscope.diagnostics.judgement import MIN_STEPS
from gradscope.schema import SiteInfo
from gradscope.words import given, number, percent

#: A norm this many times the median is a jump.
JUMP = 10.0
#: A threshold that binds in at least this share of the calls sets the length of every step.
ALWAYS = 0.95

#: More places than this are counted.
MAX_PLACES = 4

MEASURE = "gradscope.remedies(model, closure) measures on your own data what each lets through"
OPENED = "training opened it: nothing to change for the gradient to arrive"
_SIGMOID_OF_1 = float(1 / (1 + np.exp(-1)))


def what_now(
    info: SiteInfo, early: DecayFit, late: DecayFit, length: int, suggestion: ThresholdSuggestion | None = None
) -> tuple[str, ...]:
    """What to try at a site; empty where the gradient arrives.

    Parameters
    ----------
    info : SiteInfo
    early, late : DecayFit
        At the beginning and at the end of the run.
    length : int
        Steps of its longest sequence: the T of the chrono initialisation.
    suggestion : ThresholdSuggestion, optional
        From the run's own norms, for a gradient that explodes.
    """
    if late.verdict == "vanishing":
        if early.verdict in ("preserved", "exploding"):
            return (_closed(early, info),)
        return (f"if the task needs what lies that far back: {_opening(info, length)}; {MEASURE}",)
    if late.verdict == "exploding":
        return (_growing(info, suggestion),)
    if late.verdict == "preserved":
        return (OPENED,) if early.verdict == "vanishing" else ()
    return tuple(filter(None, (_undetermined(late, info),)))


def together(said: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines of advice, each once, with where they are for: a stack or a sweep is not told the same thrice.

    Parameters
    ----------
    said : sequence of (str, sequence of str)
        A place, and what was said of it.

    Examples
    --------
    "what now (lstm/l0, lstm/l1): if the task needs what lies that far back: chrono initialisation with T = 100 ..."
    """
    places: dict[str, list[str]] = {}
    for place, lines in said:
        for line in lines:
            places.setdefault(line, []).append(place)
    return [f"what now ({_listed(names)}): {line}" for line, names in places.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_PLACES} more" if len(names) > MAX_PLACES else ""
    return f"{', '.join(names[:MAX_PLACES])}{more}"


def _opening(info: SiteInfo, length: int) -> str:
    """Initialisations that let more through, by what the site is."""
    if "f" in info.gates:
        chrono = f"b_f ~ log U[1, {length - 1}]{', b_i = −b_f' if 'i' in info.gates else ''}; Tallec & Ollivier 2018"
        return _gated(length, chrono, "forget bias 1 in b_ih + b_hh (Jozefowicz et al. 2015)", "f")
    if "z" in info.gates:
        whose = ": PyTorch's z keeps the old state" if info.cell == "gru" else ""
        chrono = f"b_z ~ log U[1, {length - 1}]{whose}; Tallec & Ollivier 2018"
        return _gated(length, chrono, "a bias of +1 for the update gate z", "z")
    if info.cell == "rnn_relu":
        return "the identity as recurrent weight and no bias (IRNN, Le et al. 2015), or an orthogonal one"
    if info.cell == "rnn_tanh":
        return (
            "an orthogonal recurrent weight (Saxe et al. 2014), or a path past the tanh: nn.LSTM or nn.GRU with chrono "
            f"initialisation (T = {length}; Tallec & Ollivier 2018)"
        )
    return (
        "an orthogonal recurrent weight where it maps the state to itself (Saxe et al. 2014), or a bias that opens the "
        f"gate that keeps the state where there is one (chrono, T = {length}; Tallec & Ollivier 2018)"
    )


def _gated(length: int, chrono: str, bias: str, gate: str) -> str:
    if length < 3:
        return bias
    # The gate alone, at its bias: sigma(1)^t is down to a tenth at this lag.
    tenth = int(np.ceil(np.log(0.1) / np.log(_SIGMOID_OF_1)))
    limit = "" if length <= tenth else f", which alone ({gate} = {_SIGMOID_OF_1:.2f}) is down to a tenth at lag {tenth}"
    return f"chrono initialisation with T = {length} ({chrono}), or {bias}{limit}"


def _closed(early: DecayFit, info: SiteInfo) -> str:
    gates = ", record quantities=['activations'] to see which gates shut (gradscope plot gates)" if info.gates else ""
    return (
        f"training closed it (it was {early.verdict} at the beginning), so an initialisation alone does not keep it "
        f"open: lower the learning rate{gates}"
    )


def _growing(info: SiteInfo, suggestion: ThresholdSuggestion | None) -> str:
    start = {
        "lstm": "a smaller forget bias or orthogonal recurrent blocks",
        "gru": "a smaller update-gate bias or orthogonal recurrent blocks",
    }.get(info.cell, "an orthogonal recurrent weight, or one of spectral radius 1")
    compared = _range(suggestion)
    clip = f"clip the norm of the gradient{f' ({compared})' if compared else ''}"
    return f"{clip}, lower the learning rate, and start from {start}; {MEASURE}"


def _undetermined(fit: DecayFit, info: SiteInfo) -> str:
    if fit.cause == reasons.ONE_STEP:
        end = "the output at the first timestep" if info.reverse else "its last output"
        return f"for this site to see the whole sequence the loss has to read {end} (or its final state)"
    if fit.cause == reasons.ENTERS:
        return _losses_parted(info)
    if fit.cause == reasons.ENTRY_UNKNOWN:
        return "record what enters: quantities=[..., 'direct']"
    if fit.cause == reasons.FEW_LAGS:
        return "record longer sequences: a verdict needs five lags behind the first few"
    if fit.cause in (reasons.NO_CHANGE, reasons.TOO_CLOSE, reasons.STEPS_DIFFER):
        return f"record more: {_more(fit)}"
    if fit.cause == reasons.NO_GRADIENT:
        return "see whether the state is detached, or the loss reads something else"
    return ""


def _losses_parted(info: SiteInfo) -> str:
    """How to see the recurrence where losses of many steps lie over it."""
    last = "gradscope.snapshot of the last step's loss alone shows what the recurrence carries"
    if info.how:
        return last
    matrix = "gradscope.source_target(model, losses), of one loss a step, shows what of ∂L_t reaches step s"
    return f"{last}; for nn.RNN, nn.LSTM and nn.GRU {matrix}"


def _more(fit: DecayFit) -> str:
    if fit.n_steps < MIN_STEPS:
        return f"{MIN_STEPS} or more steps in the part of the run that is looked at (every), more sequences (samples)"
    return "more sequences a step (samples), or look at a shorter part of the run, where its steps resemble each other"


# --- clipping --------------------------------------------------------------------------------------------------------


def clipping_now(
    clips: Sequence[ClipStatistics],
    norms: pd.DataFrame,
    suggestion: ThresholdSuggestion | None,
    *,
    learning_rate: float | None = None,
    diverged_at: int | None = None,
) -> tuple[str, ...]:
    """What to do about the threshold, and about norms that jump.

    Parameters
    ----------
    clips : sequence of ClipStatistics
    norms : DataFrame
        ``step, norm`` before clipping, of :func:`gradscope.reading.norms.raw_norms`.
    suggestion : ThresholdSuggestion or None
    learning_rate : float, optional
        The last that was logged.
    diverged_at : int, optional
    """
    whole = [one for one in clips if one.kind == "norm" and not one.part]
    said = [_of_threshold(one, norms["norm"], suggestion) for one in whole]
    said.append(_of_jumps(norms, whole, suggestion, learning_rate, diverged_at))
    return tuple(filter(None, said))


def _of_threshold(one: ClipStatistics, norms: ArrayLike, suggestion: ThresholdSuggestion | None) -> str:
    every = np.asarray(norms, dtype=np.float64)
    finite = every[np.isfinite(every)]
    if not finite.size or not one.thresholds or np.isposinf(min(one.thresholds)):  # called to learn the norm
        return ""
    named = " and ".join(map(given, one.thresholds[:2]))
    compared = _range(suggestion)
    # Norms of the updates say nothing of calls on the single passes that the script made an update of.
    if one.fraction_clipped == 0 and finite.max() <= max(one.thresholds):
        tail = f"; {compared}" if compared else ""
        return (
            f"your threshold never binds: {named} is above every one of {finite.size} finite norms (largest "
            f"{number(float(finite.max()))}), so it changed nothing{tail}"
        )
    if one.fraction_clipped >= ALWAYS:
        tail = f"; {compared}" if compared else ""
        return (
            f"your threshold binds in {percent(one.fraction_clipped)} of the calls: at {named} the gradient's own size "
            f"hardly counts any more, only its direction{tail}"
        )
    return ""


def _range(suggestion: ThresholdSuggestion | None) -> str:
    if suggestion is None or suggestion.low is None or suggestion.high is None:
        return ""
    return f"thresholds to compare: {number(suggestion.low)} to {number(suggestion.high)}"


def _of_jumps(
    norms: pd.DataFrame,
    clips: Sequence[ClipStatistics],
    suggestion: ThresholdSuggestion | None,
    learning_rate: float | None,
    diverged_at: int | None,
) -> str:
    values = norms["norm"].to_numpy(dtype=float)
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    median = float(np.median(values[finite]))
    at = int(np.argmax(np.where(finite, values, -np.inf)))
    jumps = median > 0 and values[at] >= JUMP * median
    binding = any(one.fraction_clipped > 0 for one in clips)
    rate = "" if learning_rate is None else f" (now {given(learning_rate)})"
    compared = _range(suggestion)
    clip = "" if binding else f"clip the norm{f' ({compared})' if compared else ''}, or "
    if diverged_at is not None:
        largest = f"the largest finite norm known is {number(float(values[at]))}, at step {int(norms['step'].iloc[at])}"
        return f"the run diverged at step {diverged_at} ({largest}): {clip}lower the learning rate{rate}"
    if not jumps:
        return ""
    where = f"at step {int(norms['step'].iloc[at])} to {number(float(values[at]))}"
    return f"norms jump, {where}, {number(values[at] / median)} times the median: {clip}lower the learning rate{rate}"
