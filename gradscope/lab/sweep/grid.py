"""The grid of a sweep: task x length x cell x initialisation x clip threshold x seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gradscope.errors import SettingError, UnknownNameError
from gradscope.lab.zoo.models import CELLS, INITS, WITH_CELL_STATE
from gradscope.lab.zoo.tasks import build_task
from gradscope.lab.zoo.train import TrainSettings
from gradscope.reading.select import per_lag
from gradscope.schema import DEFAULT_QUANTITIES

#: Quantities of a cell state.
CELL_STATES = ("cell", "cell_carry", "cell_path")


@dataclass(frozen=True)
class Trial:
    """One training of a sweep; ``quantity`` is recorded beside the usual ones."""

    task: str
    length: int
    cell: str
    init: str
    hidden_size: int
    settings: TrainSettings
    every: int = 10
    samples: int = 8
    quantity: str | None = None

    @property
    def name(self) -> str:
        """Name of its run directory; differs wherever an axis of the grid does."""
        clip = "none" if self.settings.clip is None else f"{self.settings.clip:g}"
        parts = [self.task, f"T{self.length}", self.cell, self.init, f"clip-{clip}", f"seed-{self.settings.seed}"]
        return "_".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Grid:
    """Axes of a sweep; the trials are their product.

    Attributes
    ----------
    task : str
    lengths : sequence of int or None
        None is the task's own length.
    cells, inits : sequence of str
        Pairs that mean nothing (``rnn`` with ``forget1``) are left out.
    clips : sequence of float or None
        Thresholds of norm clipping; None trains without.
    seeds : sequence of int
        Of weights and batches.
    hidden_size : int
    settings : TrainSettings
        What all trials share; ``clip`` and ``seed`` in it are ignored.
    every, samples : int
        Of the recording.
    quantity : str, optional
        Whose decay is shown; by default that of the state that describes each cell.
    """

    task: str = "digits"
    lengths: Sequence[int | None] = (None,)
    cells: Sequence[str] = ("rnn",)
    inits: Sequence[str] = ("default",)
    clips: Sequence[float | None] = (None,)
    seeds: Sequence[int] = (0,)
    hidden_size: int = 64
    settings: TrainSettings = field(default_factory=TrainSettings)
    every: int = 10
    samples: int = 8
    quantity: str | None = None

    def left_out(self) -> list[tuple[str, str]]:
        """Pairs of cell and initialisation that are not trained because they mean nothing."""
        self._check_names()
        return [pair for pair in itertools.product(self.cells, self.inits) if not _fits(*pair)]

    def trials(self) -> list[Trial]:
        """Every trial, seeds innermost.

        Raises
        ------
        UnknownNameError
            A cell, initialisation or task that does not exist.
        SettingError
            An empty axis, a length the task cannot have, nothing left of the grid, or a cell state where no cell has
            one.
        """
        for axis in ("lengths", "cells", "inits", "clips", "seeds"):
            if not getattr(self, axis):
                raise SettingError(f"the sweep's {axis} are empty: give at least one.")
        self._check_names()
        per_lag(self.quantity)
        # Refuses a length that cannot be, before anything is trained.
        tasks = [build_task(self.task, length) for length in self.lengths]
        lengths = [task.length - task.around for task in tasks]
        pairs = [pair for pair in itertools.product(self.cells, self.inits) if _fits(*pair)]
        if not pairs:
            raise SettingError("no initialisation of the sweep fits any of its cells.")
        if self.quantity in CELL_STATES and not any(cell in WITH_CELL_STATE for cell, _ in pairs):
            raise SettingError(f"no cell of the sweep has {self.quantity}: of {', '.join(WITH_CELL_STATE)} only.")
        return [
            Trial(
                self.task,
                length,
                cell,
                init,
                self.hidden_size,
                replace(self.settings, clip=clip, seed=seed),
                self.every,
                self.samples,
                # What is recorded anyway is no setting of the training: an earlier sweep has it.
                None if self.quantity in DEFAULT_QUANTITIES else self.quantity,
            )
            for length, (cell, init), clip, seed in itertools.product(lengths, pairs, self.clips, self.seeds)
        ]

    def _check_names(self) -> None:
        for cell in self.cells:
            if cell not in CELLS and cell != "window":
                raise UnknownNameError("cell", cell, [*CELLS, "window"])
        for init in self.inits:
            if init not in INITS:
                raise UnknownNameError("init", init, INITS)


@dataclass(frozen=True)
class Recipe:
    """With what a task is trained when nothing else is asked for; ``learning_rate`` is that of SGD with momentum .9."""

    init: str
    hidden_size: int
    steps: int
    learning_rate: float


#: Rates at which a plain RNN learns with clipping and mostly does not without.
RECIPES = {
    # 50 units, rate .01: Pascanu, Mikolov & Bengio 2013. At the default initialisation the gradient vanishes long
    # before it reaches the first symbol, and no threshold matters.
    "temporal_order": Recipe("orthogonal", 50, 600, 0.01),
}
_OTHER = Recipe("default", 64, 600, 0.1)
_ADAM_RATE = 3e-3


def grid_for(
    task: str,
    *,
    cells: Sequence[str] = ("rnn",),
    inits: Sequence[str] | None = None,
    clips: Sequence[float | None] = (None,),
    hidden_size: int | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    **others: Any,
) -> Grid:
    """A grid with the task's own settings where none are given.

    Without ``optimizer``, SGD where thresholds are compared, else Adam: Adam divides a gradient by its own size, which
    undoes most of what clipping does. ``others`` are further fields of :class:`Grid`.
    """
    recipe = RECIPES.get(task, _OTHER)
    if inits is None:
        inits = (recipe.init,) if all(cell in CELLS and _fits(cell, recipe.init) for cell in cells) else ("default",)
    optimizer = optimizer or ("sgd" if len(clips) > 1 else "adam")
    own_rate = _ADAM_RATE if optimizer == "adam" else recipe.learning_rate
    rate = own_rate if learning_rate is None else learning_rate
    return Grid(
        task=task,
        cells=cells,
        inits=inits,
        clips=clips,
        hidden_size=recipe.hidden_size if hidden_size is None else hidden_size,
        settings=TrainSettings(recipe.steps if steps is None else steps, batch_size, optimizer, rate),
        **others,
    )


def _fits(cell: str, init: str) -> bool:
    return init == "default" or cell in INITS[init].cells
