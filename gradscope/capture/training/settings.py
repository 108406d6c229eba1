"""The arguments of ``record``, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradscope.adjoint import CELLS
from gradscope.capture.layers.discovery import Target, discover, require_module, select
from gradscope.capture.training.updates import held_optimizers
from gradscope.errors import SettingError, UnknownNameError
from gradscope.schema import DEFAULT_QUANTITIES, QUANTITIES, STATES


@dataclass(frozen=True, eq=False)
class Settings:
    """Checked arguments of :func:`gradscope.record`."""

    run_dir: Path
    optimizers: tuple[torch.optim.Optimizer, ...]
    every: int | None
    budget: float
    samples: int | None
    quantities: tuple[str, ...]
    sites: tuple[str, ...] | None
    tensors: bool
    durability: str
    restart: bool
    first_step: int
    rank: int
    world_size: int
    labels: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(
        cls,
        model: nn.Module,
        *,
        run_dir: str | Path,
        optimizer: Any,
        every: Any,
        samples: Any,
        quantities: Sequence[str] | str | None,
        sites: Sequence[str] | str | None,
        tensors: bool,
        durability: str,
        restart: bool,
        first_step: Any = 0,
        budget: Any = 0.02,
        labels: Mapping[str, Any] | None = None,
    ) -> tuple[Settings, list[Target]]:
        """Return the settings and the targets they select, or say what is wrong."""
        require_module(model)
        optimizers = _optimizers(optimizer)
        if every == "auto":
            every = None
        else:
            _positive("every", every, "; or 'auto'")
        if not isinstance(budget, int | float) or not 0 < budget < 1:
            raise SettingError(f"budget must be a share of the training between 0 and 1, not {budget!r}")
        if samples is not None:
            _positive("samples", samples, "; pass None for the whole batch")
        if isinstance(first_step, bool) or not isinstance(first_step, int) or first_step < 0:
            raise SettingError(f"first_step must be a whole number of at least 0, not {first_step!r}")
        if durability not in ("default", "full"):
            raise SettingError(f"durability must be 'default' or 'full', not {durability!r}")
        targets = select(model, discover(model), sites)
        rank, world_size = _distributed()
        settings = cls(
            run_dir=Path(run_dir),
            optimizers=optimizers,
            every=every,
            budget=float(budget),
            samples=samples,
            quantities=_quantities(quantities, targets),
            sites=None if sites is None else (sites,) if isinstance(sites, str) else tuple(sites),
            tensors=bool(tensors),
            durability=durability,
            restart=bool(restart),
            first_step=first_step,
            rank=rank,
            world_size=world_size,
            labels=_labels(labels),
        )
        return settings, targets

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the quantities that were asked for by name; no site has all there are."""
        unnamed = ((*DEFAULT_QUANTITIES, *STATES), tuple(QUANTITIES))
        return () if self.quantities in unnamed else self.quantities

    def to_json(self, chosen: int | None = None) -> dict[str, Any]:
        """Return what is written into the run; ``chosen`` is the interval that ``every="auto"`` came to."""
        automatic = {"budget": self.budget, "chosen_every": chosen} if self.every is None else {}
        return {
            "every": "auto" if self.every is None else self.every,
            **automatic,
            "samples": self.samples,
            "quantities": list(self.quantities),
            "sites": None if self.sites is None else list(self.sites),
            "tensors": self.tensors,
            "durability": self.durability,
            "optimizer": " + ".join(type(optimizer).__name__ for optimizer in self.optimizers) or None,
            **({"labels": self.labels} if self.labels else {}),
        }


def _optimizers(given: Any) -> tuple[torch.optim.Optimizer, ...]:
    listed = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
    return tuple(one for optimizer in listed for one in _of_torch(optimizer))


def _of_torch(optimizer: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizer itself, or those that an object (a schedule, a trainer's wrapper) holds."""
    if isinstance(optimizer, torch.optim.Optimizer):
        return [optimizer]
    strange = isinstance(optimizer, type | nn.Module | torch.optim.lr_scheduler.LRScheduler)
    held = [] if strange else list(held_optimizers(optimizer, depth=0))
    if not held:
        raise SettingError(
            f"optimizer must be a torch.optim.Optimizer, or hold one, not {type(optimizer).__name__}; leave it out to "
            "have whatever updates the model's parameters followed"
        )
    return held


def _positive(name: str, value: Any, remedy: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name} must be a whole number of at least 1, not {value!r}{remedy}")


def _quantities(wanted: Sequence[str] | str | None, targets: list[Target]) -> tuple[str, ...]:
    if wanted is None:
        # What is found later may have states that can only be numbered.
        return (*DEFAULT_QUANTITIES, *STATES)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if names == ["all"]:
        return tuple(QUANTITIES)
    for name in names:
        if name not in QUANTITIES:
            raise UnknownNameError("quantity", name, QUANTITIES)
    if not names:
        raise SettingError("quantities is empty: nothing would be recorded")
    modes = {target.mode for target in targets}
    without = {mode for mode, cell in CELLS.items() if not cell.has_cell}
    if modes and modes <= without and set(names) <= {"cell", "cell_carry", "cell_path"}:
        raise SettingError(f"no site has {' or '.join(names)}: only an LSTM has a cell state; ask for 'hidden'")
    return tuple(name for name in QUANTITIES if name in names)


def _labels(given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SettingError(f"labels must be a mapping such as {{'init': 'chrono', 'seed': 3}}, not {given!r}")
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str | int | float | bool | None):
            raise SettingError(f"labels are words or numbers under names, not {name!r}: {value!r}")
    return dict(given)


def _distributed() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
