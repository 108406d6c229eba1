"""What ``gradscope demo`` shows: three sentences and a figure, then chapters on each.

Every sentence is put together from what was measured; where a measurement is not what the sentence would say, another
sentence stands in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradscope.lab.demo.lines import (
    CHRONO,
    DEFAULTS,
    OPENED,
    Line,
    accuracy_words,
    arriving,
    by_threshold,
    length_of,
    listed,
    median_words,
    retention,
    share_words,
    spread_words,
    starts,
    values_of,
    verdict_words,
)  # fmt: skip
from gradscope.lab.demo.pictures import clipping, cover, decay_of, inside
from gradscope.plots.story import ARRIVES
from gradscope.reading.outcome import findings, outcomes_by_threshold
from gradscope.reading.sweeps import at_threshold, name_of
from gradscope.report.tables import Cell, Column, Table
from gradscope.report.telling import Chapter, Story
from gradscope.words import given, number, percent

TITLE = "What vanishes, what lasts, what clipping does"


def tell_demo(lines: Sequence[Line], runs: Mapping[str, Any]) -> Story:
    """Tell what the demo measured.

    Parameters
    ----------
    lines : sequence of Line
        In the order trained.
    runs : mapping of str to Run
        By name.
    """
    before = starts(lines)
    retained = retention(before, runs)
    cells = [line for line in lines if line.group == "cells"]
    clipped = [line for line in lines if line.group == "clipping"]
    shown = {line.model: runs[line.name] for line in cells}
    first_seed = [runs[line.name] for line in clipped if line.result.settings.seed == clipped[0].result.settings.seed]
    opening = (vanishing_words(before), preserved_words(before, retained), threshold_words(clipped))
    chapters = (
        Chapter(
            "Before training", (_STATES,), ((_start_caption(before), _start_table(before, retained)),), (),
            (decay_of(shown, "start"),),
        ),
        Chapter(
            "After training", (trained_words(cells),), ((_CELLS, _cells_table(cells)),), (),
            (decay_of(shown, "end"), *inside(shown)),
        ),
        Chapter(
            "Clipping", clipping_words(clipped), ((_CLIPPED, _clipping_table(clipped)),), (),
            tuple(clipping([runs[line.name] for line in clipped], first_seed)),
        ),
    )  # fmt: skip
    return Story(
        opening, chapters, (cover(list(runs.values())),), lead_words(before, clipped), overview(before, cells, clipped),
        len(lines),
    )  # fmt: skip


# --- the first screen ------------------------------------------------------------------------------------------------


def lead_words(before: Mapping[str, Sequence[Line]], clipped: Sequence[Line]) -> str:
    """The opening in one sentence: what vanishes, what is preserved and why, what the threshold did."""
    lost = all(line.first.verdict == "vanishing" for name in DEFAULTS for line in before[name])
    kept = min(float(np.median(values_of(before[name], "first"))) for name in CHRONO) >= ARRIVES
    default, opened = (listed([median_words(before[name]) for name in names]) for names in (DEFAULTS, CHRONO))
    groups = by_threshold(clipped)
    (lowest, first), *more = groups.items()
    learnt = listed(
        [f"{accuracy_words(first)} of held-out digits {at_threshold(lowest)}"]
        + [f"{accuracy_words(lines)} {at_threshold(t).replace('threshold ', '')}" for t, lines in more]
    )
    default_words = f"{'vanishes' if lost else 'fades'} in {listed(DEFAULTS)} as PyTorch initialises them"
    opened_words = f"{'is preserved' if kept else 'fades less'} in LSTM and GRU ({opened}) where chrono biases start"
    return (
        f"On its way back over {length_of(before)} pixels the gradient of the loss {default_words} ({default} of that "
        f"at the last pixel arrive), and {opened_words} the gate that keeps the old state near 1, because each step "
        "back multiplies the gradient by that gate; clipping, which cannot change how the gradient of one step fades, "
        f"decided through the weights what an RNN learnt: {learnt}, where guessing names {percent(1 / 10)}."
    )


def overview(before: Mapping[str, Sequence[Line]], cells: Sequence[Line], clipped: Sequence[Line]) -> Table:
    """A row per network and per threshold: what arrives at the first pixel, and what was learnt."""
    columns = (
        Column("network", "text"), Column("before training"), Column("after training"),
        Column("held-out accuracy"),
    )  # fmt: skip
    trained = {line.model: [line] for line in cells}
    rows = [_overview_row(name, lines, trained.get(name, [])) for name, lines in before.items()]
    for threshold, lines in by_threshold(clipped).items():
        clip = "not clipped" if np.isinf(threshold) else f"clipped at {given(threshold)}"
        rows.append(_overview_row(f"{lines[0].model}, {clip}", lines, lines))
    seeds, clips = (min(map(len, of.values())) for of in (before, by_threshold(clipped)))
    note = (
        "Of ‖∂L/∂x‖ at the last pixel, what arrives at the first. Before training: median of "
        f"{seeds} seeds; after: one seed, by Adam. Last {len(by_threshold(clipped))} rows: by SGD, median of {clips}."
        f"{ahead_words(cells)}"
    )
    return Table("What arrives at the first pixel, and what was learnt", columns, tuple(rows), note, sortable=True)


def ahead_words(cells: Sequence[Line]) -> str:
    """Why a network whose gradient vanished could learn more than those where it did not; nothing where none did."""
    kept = [line for line in cells if line.model in CHRONO]
    lost = [line for line in cells if line.model in DEFAULTS and line.first.verdict == "vanishing"]
    ahead = [line for line in lost if all(line.accuracy > other.accuracy for other in kept)]
    if not kept or not ahead:
        return ""
    best = max(ahead, key=lambda line: line.accuracy)
    why = ""
    if best.opened is not None:
        why = (
            f": at step {best.opened} of {best.result.settings.steps} already more than {percent(ARRIVES)} arrives in "
            f"it as well, in the end {share_words(best.late)}"
        )
    others = listed([accuracy_words([line]) for line in kept])
    return (
        f" The {best.model} learns more digits ({accuracy_words([best])}) than those that chrono biases open ({others})"
        f"{why}. What arrives before training is where it starts, not how much it learns."
    )


def _overview_row(name: str, first: Sequence[Line], late: Sequence[Line]) -> tuple[Cell, ...]:
    def arrives(lines: Sequence[Line], when: str) -> Cell:
        if not lines:
            return Cell("–", sort=float("nan"))
        return Cell(median_words(lines, when), sort=float(np.median(values_of(lines, when))))

    learnt = [line.accuracy for line in late if line.accuracy == line.accuracy]
    said = accuracy_words(late) if late else "–"
    accuracy = Cell(said, sort=float(np.median(learnt)) if learnt else float("nan"))
    return Cell(name), arrives(first, "first"), arrives(late, "late"), accuracy


# --- the three paragraphs ---------------------------------------------------------------------------------------------


def vanishing_words(before: Mapping[str, Sequence[Line]]) -> str:
    """That the cell alone preserves nothing, if that is what was measured."""
    fits = [line.first for name in DEFAULTS for line in before[name]]
    if all(fit.verdict == "vanishing" for fit in fits):
        head = f"Vanishing: in {listed(DEFAULTS)} alike, as PyTorch initialises them"
    else:
        head = f"As PyTorch initialises them: {listed([f'{name} {verdict_words(before[name])}' for name in DEFAULTS])}"
    halves = [fit.half_life for fit in fits if fit.half_life is not None]
    rate = f" It halves about every {number(float(np.median(halves)))} pixels." if len(halves) == len(fits) else ""
    each = listed([median_words(before[name]) for name in DEFAULTS])
    return (
        f"{head}. They read a handwritten digit pixel by pixel and name it at the end; of the gradient at the last of "
        f"{length_of(before)} pixels, {each} arrives at the first.{rate}"
    )


def preserved_words(before: Mapping[str, Sequence[Line]], retained: Mapping[str, tuple[float, float]]) -> str:
    """What opening the gates at initialisation changes, and why."""
    wide = [float(np.median(values_of(before[name], "first"))) for name in CHRONO]
    head = "Where the gates start open"
    if min(wide) >= ARRIVES:
        factor = max(max(value, 1 / value) for value in wide)
        head = f"Preserved, to within a factor of {number(factor)}: where the gates start open"
    lstm, gru = (number(value, 1) for value in wide)
    forget, update = (median_words(before[name]) for name in OPENED)
    usual, longest = retained["LSTM"][0], max(retained[name][1] for name in CHRONO)
    return (
        f"{head}. With chrono biases {lstm} arrives in the LSTM and {gru} in the GRU, with a bias of 1 {forget} and "
        f"{update}. At each step back the gradient is multiplied by the gate that keeps the old state (the LSTM's f, "
        f"the GRU's z): as initialised by default a unit retains for {number(usual)} pixels, with chrono for up to "
        f"{number(longest)}."
    )


def threshold_words(clipped: Sequence[Line]) -> str:
    """What clipping did to the training of one RNN."""
    groups = by_threshold(clipped)
    seeds = len(groups[float("inf")])
    said = listed([f"{accuracy_words(lines)} {at_threshold(threshold)}" for threshold, lines in groups.items()])
    return (
        "The threshold decides where training goes, not how fast a step's gradient fades: clipping by the norm "
        f"multiplies all gradients of a step by one number. Trained by SGD, the RNN names {said} of held-out digits "
        f"({'one seed' if seeds == 1 else f'median of {seeds} seeds'}; guessing: 10%)."
    )


# --- chapters --------------------------------------------------------------------------------------------------------

_STATES = (
    "The figure shows the states themselves, of the first seed: ∂L/∂h, and ∂L/∂c for an LSTM. The three LSTMs, and the "
    "three GRUs, have the same weights; they differ in the biases of their gates only. Chrono (Tallec & Ollivier 2018) "
    "draws those of the gate that keeps the state as ln U(1, 63), and an LSTM's input gate gets their negative."
)


def trained_words(cells: Sequence[Line]) -> str:
    """How far the gradient reaches after training."""
    each = "; ".join(
        f"{line.model}: {share_words(line.first)} before, {share_words(line.late)} after" for line in cells
    )
    steps = cells[0].result.settings.steps
    opened = all(arriving(line.late) > 100 * arriving(line.first) for line in cells if line.model in DEFAULTS)
    head = "Training opens the gradient's way back" if opened else "Training changes how far the gradient reaches"
    return (
        f"{head}: over {steps} steps of Adam, what arrives at the first pixel is: {each}. With one seed of each, this "
        "shows networks; it does not compare them."
    )


def clipping_words(clipped: Sequence[Line]) -> tuple[str, ...]:
    """The comparison of the thresholds over seeds."""
    settings = clipped[0].result.settings
    outcomes = outcomes_by_threshold(
        [line.threshold for line in clipped],
        [line.accuracy for line in clipped],
        [line.result.diverged is not None for line in clipped],
    )
    return (
        f"One RNN, {settings.steps} steps of SGD at {given(settings.learning_rate)} with momentum .9, at three "
        "thresholds of norm clipping and without; at each seed the four begin with the same weights and see the same "
        "batches.",
        *findings(outcomes, "held-out accuracy", higher_is_better=True),
        _fading_words(clipped),
        "“gradscope sweep --task digits --clip none,0.1,0.5,1,5” compares thresholds over more seeds.",
    )


def _fading_words(clipped: Sequence[Line]) -> str:
    """Where training went, as gradient and units show it."""
    groups = by_threshold(clipped)
    ends = listed([f"{median_words(lines, 'late')} {at_threshold(threshold)}" for threshold, lines in groups.items()])
    units = listed(
        [
            f"{percent(float(np.median([line.saturated for line in lines])))} {at_threshold(threshold)}"
            for threshold, lines in groups.items()
        ]
    )
    return (
        "In the last tenth of the training, of the gradient at the last pixel, what arrives at the first is in the "
        f"median {ends}. A unit beyond ±.95 is saturated: the slope of tanh there is below .1, and multiplies the "
        f"gradient at every step back. Saturated in the end: {units}."
    )


_CELLS = (
    "Of the gradient at the last pixel, what arrives at the first one: before the first step of training, and in its "
    "last tenth. Accuracy on 360 digits that were held out."
)
_CLIPPED = f"{_CELLS} Median and, below it, lowest to highest seed."


def _start_caption(before: Mapping[str, Sequence[Line]]) -> str:
    seeds = min(map(len, before.values()))
    return (
        "Of the gradient at the last pixel, what arrives at the first one before training: median and, below it, "
        f"lowest to highest of {seeds} seeds. Retention: −1 / mean(ln gate), in steps, of the gate that keeps the old "
        "state; median and longest unit of the first seed."
    )


def _start_table(before: Mapping[str, Sequence[Line]], retained: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
    rows = []
    for name, lines in before.items():
        middle, longest = (number(value) for value in retained[name]) if name in retained else ("–", "–")
        halves = [line.first.half_life for line in lines if line.first.half_life is not None]
        half = number(float(np.median(halves))) if len(halves) == len(lines) else "–"
        rows.append(
            {
                "network": name, "arrives": spread_words(lines, "first"), "half-life, pixels": half,
                "units retain, median": middle, "longest": longest, "verdict": verdict_words(lines),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _cells_table(cells: Sequence[Line]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "network": line.model, "parameters": f"{line.result.parameters:,}",
                "held-out accuracy": accuracy_words([line]), "before": share_words(line.first),
                "after": share_words(line.late), "verdict before": line.first.verdict,
                "verdict after": line.late.verdict,
            }
            for line in cells
        ]
    )  # fmt: skip


def _clipping_table(clipped: Sequence[Line]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "threshold": name_of(threshold),
                "held-out accuracy": accuracy_words(lines), "before": spread_words(lines, "first"),
                "after": spread_words(lines, "late"), "verdict after": verdict_words(lines, "late"),
            }
            for threshold, lines in by_threshold(clipped).items()
        ]
    )  # fmt: skip
