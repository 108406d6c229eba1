"""What ``gradscope demo`` shows, as chapters: before training, after it, and what clipping did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from gradscope.diagnostics import DecayFit
from gradscope.lab.sweep.story import DECAY_CAPTION, LOWEST, decay_by_threshold
from gradscope.lab.zoo.train import TrainResult
from gradscope.plots import decay, gates, norm_distribution, sweep_loss, timescales, training
from gradscope.reading.answers import curve_quantity, pooled_fit
from gradscope.report.telling import Chapter, Picture, Story
from gradscope.words import number

#: What the page calls the members of the zoo.
NAMES = {
    "rnn": "RNN (tanh)",
    "lstm": "LSTM",
    "lstm-forget1": "LSTM, f-bias 1",
    "lstm-chrono": "LSTM, chrono",
    "gru": "GRU",
}
#: Initialised as torch does it.
DEFAULTS = ("rnn", "lstm", "gru")


@dataclass(frozen=True, eq=False)
class Line:
    """One training: how far back the gradient reached before it and in its last tenth, and what was learnt."""

    name: str
    first: DecayFit
    late: DecayFit
    result: TrainResult

    @property
    def accuracy(self) -> str:
        """Held out; or that it diverged."""
        return "diverged" if self.result.diverged is not None else f"{self.result.final.metric:.1%}"


def line_of(name: str, run: Any, result: TrainResult) -> Line:
    """Fit the decay of a run at its first record and in its last tenth."""
    site = run.sites[0]
    quantity = curve_quantity(run, site)
    first, late = (pooled_fit(run, site, quantity, part) for part in ("first", "late"))
    return Line(name, first, late, result)


def reaching(fit: DecayFit) -> float:
    """The gradient at the furthest lag as a fraction of that at the last timestep; 0 where the curve ends in zeros."""
    return 0.0 if fit.lost_from is not None else fit.reach


def tell_demo(lines: Sequence[Line], runs: Mapping[str, Any]) -> Story:
    """Tell what the demo measured.

    Parameters
    ----------
    lines : sequence of Line
        In the order trained.
    runs : mapping of str to Run
        By name.
    """
    cells = [line for line in lines if line.name in NAMES]
    clipped = [line for line in lines if line.name not in NAMES]
    shown = [runs[line.name] for line in cells]
    opening = (
        "Five recurrent networks of 64 units read 8×8 handwritten digits pixel by pixel: the first pixel lies 63 steps "
        "before the loss. How much of the gradient gets there? The curve is that of ∂L/∂h, and of ∂L/∂c for an LSTM.",
        _default_words(cells),
    )
    chapters = [
        Chapter("Before training", (_other_words(cells),), (), (), (_decay(shown, "start"),)),
        Chapter(
            "After training",
            (_trained_words(cells),),
            ((_TABLE, _table(cells)),),
            (),
            (_decay(shown, "end"), *_inside(shown)),
        ),
        Chapter(
            "Clipping", _clipping_words(clipped), ((_TABLE, _table(clipped)),), (), tuple(_clipping(clipped, runs))
        ),
    ]
    return Story(opening, tuple(chapters))


def _default_words(cells: Sequence[Line]) -> str:
    """That the cell alone preserves nothing, if that is what was measured."""
    default = [line for line in cells if line.name in DEFAULTS]
    each = ", ".join(f"{_measured(line.first)} in the {NAMES[line.name]}" for line in default)
    vanishing = [line for line in default if line.first.verdict == "vanishing"]
    if len(vanishing) == len(default):
        head = (
            "As torch initialises them, the gradient vanishes in all three cells, in LSTM and GRU as in the plain RNN"
        )
    else:
        head = "As torch initialises them, " + ", ".join(
            f"{NAMES[line.name]}: {line.first.verdict}" for line in default
        )
    return f"{head}. Of the gradient at the last timestep, what reaches the first is {each}."


def _other_words(cells: Sequence[Line]) -> str:
    other = [line for line in cells if line.name not in DEFAULTS]
    named = {"lstm-forget1": "with forget bias 1", "lstm-chrono": "with chrono initialisation"}
    each = ", ".join(f"{_measured(line.first)} {named[line.name]}" for line in other)
    return (
        f"The LSTM with its forget gates opened at initialisation: {each}. The three LSTMs differ in the biases of "
        "their gates only (chrono sets those of the input gate too): before training these decide, not the cell."
    )


def _trained_words(cells: Sequence[Line]) -> str:
    each = "; ".join(
        f"{NAMES[line.name]} {_fraction(line.first)} before, {_fraction(line.late)} after" for line in cells
    )
    steps = cells[0].result.settings.steps
    opened = all(reaching(line.late) > 100 * reaching(line.first) for line in cells if line.name in DEFAULTS)
    head = "Training opens the gradient's way back" if opened else "Training changes how far the gradient reaches"
    return f"{head}: over {steps} steps, {each}. With one seed of each, this shows networks; it does not compare them."


def _measured(fit: DecayFit) -> str:
    half = "" if fit.half_life is None else f" (half-life {number(fit.half_life)} steps)"
    return f"{_fraction(fit)}{half}"


def _fraction(fit: DecayFit) -> str:
    return number(reaching(fit))


_TABLE = (
    "Of the gradient at the last timestep, what reaches the first one: before the first step of training, and in its "
    "last tenth. Accuracy on 360 digits that were held out."
)


def _table(lines: Sequence[Line]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "training": NAMES.get(line.name, line.name),
                "parameters": f"{line.result.parameters:,}",
                "held-out accuracy": line.accuracy,
                "before": _fraction(line.first),
                "after": _fraction(line.late),
                "verdict before": line.first.verdict,
                "verdict after": line.late.verdict,
            }
            for line in lines
        ]
    )


def _decay(runs: Sequence[Any], when: str) -> Picture:
    data = decay.table(runs, step="first" if when == "start" else None).replace({"run": NAMES})
    title = "Decay of the gradient before training" if when == "start" else "Decay of the gradient after training"
    return Picture(f"cells_decay_{when}", "decay", title, decay.caption(data), data, {"lowest": LOWEST})


def _inside(runs: Sequence[Any]) -> list[Picture]:
    """The way from one figure to the other, and the gates behind it."""
    found = []
    for name, module in (("training", training), ("timescales", timescales), ("gates", gates)):
        of = [run for run in runs if run.name != "rnn"] if name != "training" else runs
        data = module.table(of).replace({"run": NAMES})
        found.append(Picture(f"cells_{name}", name, module.TITLE, module.caption(data), data))
    return found


def _clipping_words(lines: Sequence[Line]) -> tuple[str, ...]:
    steps, rate = lines[0].result.settings.steps, lines[0].result.settings.learning_rate
    said = ", ".join(f"{line.accuracy} {_at(line)}" for line in lines)
    return (
        f"The RNN again, {steps} steps of SGD at {rate:g} with momentum .9, from the same weights on the same "
        f"batches, at three thresholds of norm clipping and without. Held-out accuracy: {said}; guessing gets 10 %.",
        "Clipping by the norm multiplies all gradients of a step by one number, so it cannot change the shape of that "
        "step's curve: it changes where training goes. One seed shows that it matters, not by how much: "
        "“gradscope sweep --task digits --clip none,0.1,0.5,1,5” compares thresholds over seeds.",
    )


def _at(line: Line) -> str:
    clip = line.result.settings.clip
    return "without clipping" if clip is None else f"at threshold {clip:g}"


def _clipping(lines: Sequence[Line], runs: Mapping[str, Any]) -> list[Picture]:
    shown = [runs[line.name] for line in lines]
    found = []
    for name, module in (("sweep_loss", sweep_loss), ("norm_distribution", norm_distribution)):
        data = module.table(shown)
        found.append(Picture(f"clipping_{name}", name, module.TITLE, module.caption(data), data))
    curves = decay_by_threshold(shown)
    options = {"lowest": LOWEST}
    found.append(
        Picture("clipping_decay", "decay", "Decay of the gradient by threshold", DECAY_CAPTION, curves, options)
    )
    return found
