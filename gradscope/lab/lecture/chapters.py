"""The lecture's chapters: text, tables and claims, from measurements.

The figures: :mod:`gradscope.lab.lecture.pictures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from gradscope.lab.claims import Answered, Asked, number
from gradscope.lab.lecture import pictures
from gradscope.lab.lecture.measuring import Measured, Results
from gradscope.lab.lecture.textbook import TEXTBOOK
from gradscope.lab.lecture.trainings import DIGITS, SUNSPOTS
from gradscope.report.telling import Chapter, Story

_TITLES = {
    "window": "A window, or a recurrence",
    "rnn": "The plain RNN, and the gradient that vanishes",
    "depth": "Stacked and bidirectional",
    "lstm": "The LSTM, gate by gate",
    "variants": "Peepholes and coupled gates",
    "gru": "The GRU and its relatives",
    "clipping": "Exploding, and the threshold that tames it",
}

_TEXT = {
    "window": (
        "A fully connected network sees the whole window at once and has a weight for every timestep; a recurrent "
        "network reads one timestep after the other with the same weights. For the first, the curve is that of "
        "∂L/∂x, the only one it has.",
        "The sunspots are forecast one month ahead. The held-out part, 1936 to 1983, holds the highest cycles of "
        "the record: its losses are larger than those of training for every network, and a comparison between "
        "networks on it is one of extrapolation too.",
    ),
    "rnn": (
        "Each step back multiplies the adjoint ∂L/∂h by the recurrent matrix and by the slope of tanh. torch draws "
        "the matrix uniformly with a spectral radius well below 1, so the product shrinks by a constant factor a step: "
        "a straight line on a logarithmic axis. An orthogonal matrix leaves the tanh alone to shrink it; an IRNN has "
        "neither, but a unit of it that is silent passes exactly nothing.",
    ),
    "depth": (
        "A second layer adds paths from the loss down to the first, and takes the first layer's states as input. A "
        "second direction reads the sequence from its end: its last step is the first timestep.",
    ),
    "lstm": (
        "The cell state c = f c + i g is the path meant to carry the gradient: along it alone, each step back "
        "multiplies by the forget gate f, so a unit whose gate is f on average retains over τ = −1 / mean(ln f) "
        "steps. The input gate i and the candidate g decide what is written, and take the gradient to h and to the "
        "inputs; the output gate o decides how much of c is seen from above. All three also send gradient back to "
        "h through the recurrent matrix, which is why the total ∂L/∂c is more than the product of forget gates.",
        "The heatmap shows the adjoint of each gate's pre-activation, the histogram the retention times.",
    ),
    "variants": (
        "Peepholes let the gates see the cell state; coupling sets f = 1 − i. Both are compared with the plain LSTM at "
        "torch's own initialisation, seed by seed; forget gates start near one half in all three.",
    ),
    "gru": (
        "A GRU drops the separate cell state: h = (1 − z) n + z h, so its update gate z is a forget gate and an input "
        "gate coupled. The minGRU lets its gates see the input only, and the LRU has a constant complex diagonal: both "
        "are linear in their state.",
    ),
    "clipping": (
        "An orthogonal recurrent matrix times 2 has all its singular values at 2: the adjoint doubles each step as far "
        "as tanh lets it. Norm clipping multiplies all gradients of a step by one number. Clipping every timestep "
        "(Graves 2013) bounds each element of the adjoint inside the recurrence: another operator.",
        "The two figures of per-timestep clipping use the same fractions of the adjoint's size at lag 0, once where "
        "the gradient explodes and once where it vanishes.",
        "Two settings of this chapter were chosen after a first measurement, which left its questions without an "
        "interval. On the digits the rate of SGD is 0.01: at 0.05 the RNN without clipping saturates, its gradient is "
        "exactly zero, and a ratio to it means nothing. And a training that diverges counts as a loss of 10. The "
        "numbers that are asked for stayed as they were.",
    ),
}


def tell(results: Results, runs: Sequence[Any] = (), *, brief: bool = False) -> Story:
    """Put the textbook to the measurements.

    Parameters
    ----------
    results : Results
    runs : sequence of Run
        Recorded trainings; the LSTMs among them give the gate adjoints and the retention times.
    brief : bool
        Only the first figure of each chapter.
    """
    chapters = [_zoo(results)]
    for key, statements in TEXTBOOK.items():
        claims = tuple(statement.put_to(results) for statement in statements)
        gates = pictures.gates(runs) if key == "lstm" else []
        shown = (*pictures.OF_CHAPTER[key](results), *gates, *pictures.of_claims(key, claims))
        chapters.append(Chapter(_TITLES[key], _TEXT[key], (), claims, shown))
    if brief:
        chapters = [replace(chapter, pictures=chapter.pictures[:1]) for chapter in chapters]
    return Story((_opening(results),), tuple(chapters), (pictures.cover(results),))


def _opening(results: Results) -> str:
    """What was done, short enough for the first figure to share the first screen."""
    seeds = len(results.of("sunspots", "rnn"))
    one = results.of("sunspots", "rnn")[0].experiment
    return (
        f"What textbooks say of recurrent networks, put to {len(results.all)} measurements: {seeds} seeds of "
        f"{len(SUNSPOTS)} networks of {one.hidden_size} units, on the monthly sunspot numbers and on 8×8 handwritten "
        "digits read pixel by pixel, before and after training."
    )


_DECIDED = (
    "What would confirm a statement was written down as numbers first, question by question. A question is met "
    "where the whole 95 % interval over seeds lies within what was asked; not met where it lies outside; and "
    "makes no difference where it lies closer to the line than would matter (a twentieth of a loss, a factor of "
    "two over 60 steps of gradient). Confirmed: every question is met. Refined: some are, under the conditions "
    "named. Refuted: none is, and at least one is decided against. Undetermined: every interval reaches across "
    "the line.",
    "What is found holds for these sizes, lengths, initialisations and lengths of training. With this many "
    "questions at 95 %, expect a few of those near the line to fall on the wrong side of it.",
)


def _zoo(results: Results) -> Chapter:
    tables = tuple(
        table(results, task, models)
        for task, models in (("sunspots", SUNSPOTS), ("digits", DIGITS))
        for table in (_sizes_and_losses, _rates_and_reach)
    )
    text = (
        *_DECIDED,
        "All networks are trained alike: Adam at 0.003, batches of 32, norm clipping at 1, weights and batches fixed "
        "by the seed. The curve of a network is ∂L/∂h of its lowest recurrent layer, ∂L/∂c where it has a cell state, "
        "∂L/∂x where it has no recurrence; reach is the gradient at the first timestep as a fraction of that at the "
        "last, exactly 0 where units are silent.",
    )
    return Chapter("How it was measured, and the zoo", text, tables, (), tuple(pictures.zoo(results)))


def _sizes_and_losses(results: Results, task: str, models: Sequence[str]) -> tuple[str, pd.DataFrame]:
    rows = []
    for model in models:
        found = results.of(task, model)
        row = {
            "network": model,
            "parameters": f"{found[0].parameters:,}",
            "of the recurrence": f"{found[0].core_parameters:,}" if found[0].core_parameters else "–",
            "training loss": _spread(found, lambda m: m.train_loss),
            "held-out loss": _spread(found, lambda m: m.held_out),
            "gap": _spread(found, lambda m: m.held_out - m.train_loss),
        }
        if task == "digits":
            row["held-out accuracy"] = _spread(found, lambda m: m.metric)
        rows.append(row)
    return f"Sizes and losses on the {task}; {_seeds(results, task, models)}", pd.DataFrame(rows)


def _rates_and_reach(results: Results, task: str, models: Sequence[str]) -> tuple[str, pd.DataFrame]:
    rows = []
    for model in models:
        found = results.of(task, model)
        row = {
            "network": model,
            "rate at initialisation": _spread(found, lambda m: m.rate("start")),
            "rate after training": _spread(found, lambda m: m.rate("end")),
            "reach at initialisation": _spread(found, lambda m: m.reach("start"), log=True),
            "reach after training": _spread(found, lambda m: m.reach("end"), log=True),
        }
        rows.append(row)
    caption = f"Rate (log10 per step) and reach on the {task}; {_seeds(results, task, models)}"
    return f"{caption} A dash: no number in at least one seed.", pd.DataFrame(rows)


def _seeds(results: Results, task: str, models: Sequence[str]) -> str:
    return f"mean and, below it, 95 % interval over {len(results.of(task, models[0]))} seeds."


def _spread(found: Sequence[Measured], value: Callable[[Measured], float], log: bool = False) -> str:
    answer = Answered(Asked("", "", lambda _: (), log=log), tuple(value(one) for one in found))
    if np.isnan(answer.mean):
        return "–"
    if answer.interval is None or answer.interval[0] == answer.interval[1]:
        return number(answer.mean)
    return f"{number(answer.mean)}\n{answer.interval_words}"
