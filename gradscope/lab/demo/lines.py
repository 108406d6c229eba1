"""The demo's recordings: what arrives at the first input, what was learnt, and which belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.diagnostics import DecayFit
from gradscope.lab.zoo.train import TrainResult
from gradscope.plots import timescales
from gradscope.plots.story import ARRIVES
from gradscope.reading import curves, read, story
from gradscope.reading.answers import pooled_fit
from gradscope.reading.sweeps import at_threshold
from gradscope.words import number, percent

#: Cell and initialisation of the zoo, as the page names them.
NAMES = {
    ("rnn", "default"): "RNN",
    ("lstm", "default"): "LSTM",
    ("lstm", "forget1"): "LSTM, forget bias 1",
    ("lstm", "chrono"): "LSTM, chrono",
    ("gru", "default"): "GRU",
    ("gru", "update1"): "GRU, update bias 1",
    ("gru", "chrono"): "GRU, chrono",
}
DEFAULTS = ("RNN", "LSTM", "GRU")
CHRONO = ("LSTM, chrono", "GRU, chrono")
OPENED = ("LSTM, forget bias 1", "GRU, update bias 1")


@dataclass(frozen=True, eq=False)
class Line:
    """A recording: ∂L/∂x against lag before training and in its last tenth, and what was learnt.

    ``saturated`` is the share of gates, or of an RNN's units, at the ends of their range in the last record; ``opened``
    the first recorded step at which a share of ``ARRIVES`` arrives at the first input (None: at none).
    """

    name: str
    first: DecayFit
    late: DecayFit
    result: TrainResult
    saturated: float
    opened: int | None

    @property
    def model(self) -> str:
        """What the page calls the network."""
        return NAMES[self.result.labels["cell"], self.result.labels["init"]]

    @property
    def title(self) -> str:
        """What a table calls the recording: the network, and how it was clipped where that is the question."""
        if self.group != "clipping":
            return self.model
        return f"{self.model}, SGD, {at_threshold(self.threshold).removeprefix('at ')}"

    @property
    def group(self) -> str:
        """``initial``, ``cells`` or ``clipping``."""
        return str(self.result.labels["group"])

    @property
    def threshold(self) -> float:
        """Of norm clipping; inf without."""
        clip = self.result.settings.clip
        return float("inf") if clip is None else clip

    @property
    def accuracy(self) -> float:
        """Held out, at the end; NaN where training diverged."""
        return float("nan") if self.result.diverged is not None else self.result.final.metric


def line_of(name: str, run: Any, result: TrainResult) -> Line:
    """Fit the decay of ∂L/∂x_t in a run at its first record and in its last tenth."""
    site = run.sites[0]
    first, late = (pooled_fit(run, site, "input", part) for part in ("first", "late"))
    ends = read(run).array(site, "gate_low")[-1] + read(run).array(site, "gate_high")[-1]
    found = curves.norms(run, site, "input")
    open_at = (int(step) for step in found.steps if story.first_input(found.curve(found.at(step))) >= ARRIVES)
    return Line(name, first, late, result, float(np.mean(ends)), next(open_at, None))


def arriving(fit: DecayFit) -> float:
    """The gradient at the first input as a fraction of that at the last; 0 where the curve ends in zeros."""
    return 0.0 if fit.lost_from is not None else fit.reach


def starts(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by network, one per seed: each shows its seed's weights before any training."""
    found: dict[str, dict[int, Line]] = {name: {} for name in NAMES.values()}
    for line in lines:
        found[line.model].setdefault(line.result.settings.seed, line)
    return {name: list(by_seed.values()) for name, by_seed in found.items()}


def retention(before: Mapping[str, Sequence[Line]], runs: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Network to the median and the longest retention of its units, in steps; networks without gates are absent."""
    found = {}
    for name, lines in before.items():
        run = runs[lines[0].name]
        if run.site(run.sites[0]).cell in timescales.RETAINING:
            tau = timescales.table([run], step="first")["timescale"]
            found[name] = float(tau.median()), float(tau.max())
    return found


def by_threshold(clipped: Sequence[Line]) -> dict[float, list[Line]]:
    """Lines by their threshold, lowest first, none last."""
    found: dict[float, list[Line]] = {}
    for line in sorted(clipped, key=lambda line: line.threshold):
        found.setdefault(line.threshold, []).append(line)
    return found


def length_of(before: Mapping[str, Sequence[Line]]) -> int:
    """Inputs of a sequence."""
    return max(int(line.first.curve.lags.max()) for lines in before.values() for line in lines) + 1


def values_of(lines: Sequence[Line], when: str) -> np.ndarray:
    """What arrives at the first input in each recording, ``first`` or ``late`` in training."""
    return np.array([arriving(line.first if when == "first" else line.late) for line in lines])


def median_words(lines: Sequence[Line], when: str = "first") -> str:
    """What arrives at the first input, in the median."""
    return number(float(np.median(values_of(lines, when))), 1)


def spread_words(lines: Sequence[Line], when: str) -> str:
    """The median, and on a second line the lowest and the highest."""
    values = values_of(lines, when)
    middle, low, high = (number(float(value), 1) for value in (np.median(values), values.min(), values.max()))
    return middle if low == high else f"{middle}\n{low} to {high}"


def share_words(fit: DecayFit) -> str:
    """What arrives at the first input in one recording."""
    return number(arriving(fit), 1)


def verdict_words(lines: Sequence[Line], when: str = "first") -> str:
    """The verdict of every seed; each with its count where they differ."""
    found = [(line.first if when == "first" else line.late).verdict for line in lines]
    counts = {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{verdict} ({n})" for verdict, n in counts.items())


def accuracy_words(lines: Sequence[Line]) -> str:
    """Held-out accuracy, in the median; diverged trainings apart."""
    kept = [line.accuracy for line in lines if line.accuracy == line.accuracy]
    if not kept:
        return "diverged"
    gone = len(lines) - len(kept)
    return percent(float(np.median(kept))) + (f" ({gone} of {len(lines)} diverged)" if gone else "")


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
