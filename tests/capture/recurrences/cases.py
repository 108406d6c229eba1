"""What a model of this package promises: its sites, the steps of each, and the name that each true state may bear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

T, B, FEATURES, H = 9, 4, 3, 5


@dataclass(frozen=True)
class Site:
    """One recurrence that a person would name.

    Attributes
    ----------
    names : tuple of str
        Patterns of names, any of which will do.
    states : mapping of str to tuple of str
        Noted state to the quantities it may be called: ``hidden``, ``cell``, or ``state`` for a numbered one, and
        ``absent`` where it follows from the others. Several noted states joined by ``|`` are equally good answers.
    after : int
        Steps of the same sequence in another module after this one's last.
    known : bool
        A layer of torch.nn that needs no search.
    """

    names: tuple[str, ...]
    states: Mapping[str, tuple[str, ...]]
    after: int = 0
    known: bool = False


def site(
    *names: str, after: int = 0, known: bool = False, states: Mapping[str, str] | None = None, **more: str
) -> Site:
    """``site("cell", h="hidden", c="cell|state")``."""
    labels = {name: tuple(label.split("|")) for name, label in {**(states or {}), **more}.items()}
    return Site(names, labels, after, known)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).pow(2).mean()


@dataclass(frozen=True)
class Case:
    """A model as somebody wrote it.

    ``refusal`` is a pattern of the reason that coverage may give instead of numbers, where that is allowed.
    """

    name: str
    model: Callable[[], nn.Module]
    sites: tuple[Site, ...]
    loss: Callable[[nn.Module, Tensor], Tensor] = squares
    shape: tuple[int, ...] = (B, T, FEATURES)
    refusal: str | None = None
    #: Which axis of the states is the batch; in what is found it is the first after time. None where there is none.
    batch_axis: int | None = 0

    def build(self, dtype: torch.dtype, seed: int = 3) -> nn.Module:
        torch.manual_seed(seed)
        return self.model().to(dtype)

    def data(self, dtype: torch.dtype, seed: int = 4) -> Tensor:
        return torch.randn(self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


CASES: dict[str, Case] = {}


def case(*sites: Site, **options: Any) -> Callable[[Any], Any]:
    """Add a model class to the table."""

    def add(model: Any) -> Any:
        assert model.__name__ not in CASES
        CASES[model.__name__] = Case(model.__name__, model, sites, **options)
        return model

    return add


def variants(base: Case, **models: Callable[[], nn.Module]) -> None:
    """Add the same promise for models that differ in one detail."""
    for name, model in models.items():
        CASES[name] = replace(base, name=name, model=model)
