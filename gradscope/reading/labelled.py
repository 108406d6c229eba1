"""What tells runs apart: their labels, their cell and the threshold they were clipped at; which belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscope.reading.counted import Reading, read_all
from gradscope.reading.select import run_names
from gradscope.reading.sweeps import line_of, threshold_of
from gradscope.store import Run

#: Labels of the course of a training: they have no say in the weights it starts from.
COURSE = ("clip", "threshold", "lr", "learning_rate", "optimizer", "steps", "batch", "batch_size", "group", "kind")
#: Labels that say nothing of how a training differs from its neighbours over seeds.
SEED = "seed"
#: Labels that tell what chance would come to, for a line in the figure of a loss.
CHANCE = ("chance_loss", "chance_accuracy")

_CELLS = {"rnn_tanh": "RNN", "rnn": "RNN", "rnn_relu": "RNN (ReLU)", "rnn-relu": "RNN (ReLU)", "lstm": "LSTM",
          "gru": "GRU"}  # fmt: skip
_INITS = {"forget1": "forget bias 1", "forget-bias-1": "forget bias 1", "update1": "update bias 1"}


def init_words(init: str) -> str:
    """An initialisation of the lab as one reads it; another name as it is."""
    return _INITS.get(init, init)


def labels_of(run: Run | Reading) -> dict[str, Any]:
    """What ``record(labels=...)`` was given: words and numbers under names; empty where nothing was."""
    given = run.settings.get("labels")
    if not isinstance(given, Mapping):  # of a file from elsewhere
        return {}
    return {str(key): value for key, value in given.items() if isinstance(value, str | int | float | bool)}


@dataclass(frozen=True, eq=False)
class Labelled:
    """A run and what tells it from others.

    Attributes
    ----------
    name : str
        Distinct among the runs.
    run : Reading
    cell : str
        The label ``cell``, else that of the first site.
    init : str
        The label ``init``, empty where there is none.
    seed : int, float or str
        The label ``seed``; the run's name where there is none, so that no two runs are taken for one.
    threshold : float
        Of norm clipping, from the calls themselves; inf without.
    labels : dict
        All labels.
    """

    name: str
    run: Reading
    cell: str
    init: str
    seed: Any
    threshold: float
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Cell and initialisation in words; of a run without labels its name."""
        if not {"init", "cell", SEED} & set(self.labels):
            return self.name
        return ", ".join(filter(None, [self.cell, init_words(self.init)]))

    def among(self, names: Iterable[str]) -> tuple[tuple[str, Any], ...]:
        """Its labels of these names."""
        return tuple((name, self.labels[name]) for name in names if name in self.labels)


def labelled(runs: Sequence[Run | Reading]) -> list[Labelled]:
    """Every run with what tells it apart."""
    return [_of(name, run) for name, run in zip(run_names(runs), read_all(runs), strict=True)]


def _of(name: str, run: Reading) -> Labelled:
    labels = labels_of(run)
    site = next(iter(run.sites), None)
    cell = str(labels.get("cell") or (run.site(site).cell if site else ""))
    return Labelled(
        name=name,
        run=run,
        cell=_CELLS.get(cell.lower(), cell),
        init=str(labels.get("init", "")),
        seed=labels.get(SEED, name),
        threshold=threshold_of(run),
        labels=labels,
    )


def differing(runs: Sequence[Labelled], beside: Iterable[str] = ()) -> list[str]:
    """Names of further labels in which the runs differ, apart from cell, initialisation, seed and ``beside``."""
    left_out = {"cell", "init", SEED, *CHANCE, *beside}
    names = dict.fromkeys(name for one in runs for name in one.labels if name not in left_out)
    return [name for name in names if len({str(one.labels.get(name)) for one in runs}) > 1]


def _words(said: tuple[str, Any]) -> str:
    """A further label as part of a name; an optimizer's name needs no telling what it is."""
    key, value = said
    return str(value) if key == "optimizer" else f"{key} {value}"


def models(runs: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """Runs that start from the same cell and initialisation, by name, seeds together; each seed's weights once."""
    beside = differing(runs, COURSE)
    groups: dict[str, dict[Any, Labelled]] = {}
    for one in runs:
        name = ", ".join([one.model, *map(_words, one.among(beside))])
        groups.setdefault(name, {}).setdefault(one.seed, one)
    return {name: list(of_name.values()) for name, of_name in groups.items()}


def family(runs: Sequence[Labelled]) -> list[Labelled]:
    """The largest set of runs that differ in their clipping threshold and seed alone: first by thresholds, then runs.

    All runs, where no two thresholds can be compared.
    """
    beside = differing(runs, ("clip", "threshold"))
    groups: dict[Any, list[Labelled]] = {}
    for one in runs:
        key = (one.cell, one.init, str(one.run.settings.get("optimizer")), one.among(beside))
        groups.setdefault(key, []).append(one)
    best = max(groups.values(), key=lambda group: (len({one.threshold for one in group}), len(group)), default=[])
    return best if len({one.threshold for one in best}) > 1 else list(runs)


def seeds_together(runs: Sequence[Run | Reading]) -> dict[str, str]:
    """Name of every run to that of its line: runs that differ in their seed alone share one.

    Where there are no seeds to put together, every run keeps its own name.
    """
    known = labelled(runs)
    beside = differing(known, ("clip", "threshold"))
    clipped = len({one.threshold for one in known}) > 1
    found = {}
    for one in known:
        at = [line_of(one.threshold)] if clipped else []
        parts = [one.model, *map(_words, one.among(beside)), *at]
        found[one.name] = ", ".join(parts) if SEED in one.labels else one.name
    return found if len(set(found.values())) < len(found) else {one.name: one.name for one in known}
