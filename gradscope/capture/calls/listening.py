"""Who is told what was seen."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from gradscope.adjoint import Adjoints, Keep
from gradscope.capture.layers.discovery import Target


class Listener(Protocol):
    """Who is told what was seen: the recorder, or a snapshot."""

    samples: int | None
    #: Whether adjoints are wanted in float64 throughout.
    precise: bool
    #: What is wanted beside the total adjoints of the states.
    keep: Keep
    #: Which sites are wanted; None for all.
    wanted: tuple[str, ...] | None

    def missing(self, target: Target, quantity: str, reason: str) -> None:
        """Note why a quantity of a site is not recorded."""
        ...

    def nothing(self, reason: str) -> None:
        """Note that nothing recurs in the graph of a loss."""
        ...

    def began(self) -> None:
        """Note that a forward pass has begun."""
        ...

    def opened(self, target: Target) -> Any:
        """Count a sequence with a graph; what is returned is held as long as the graph, and given to ``measured``."""
        ...

    def measured(
        self, target: Target, use: Any, site: str, adjoints: Adjoints, rows: Tensor, carried: int, after: int = 0
    ) -> None:
        """Take the adjoints of one site, at the end of a backward pass.

        ``use`` says which sequence of the module it is: a number from 1, or what ``opened`` returned.
        """
        ...

    def missed(self, target: Target, reason: str) -> None:
        """Note why a call was not recorded."""
        ...

    def failed(self, target: Target, error: Exception) -> None:
        """Note an error of gradscope's own."""
        ...

    def loss_scale(self) -> float:
        """Return the factor the loss was multiplied with."""
        ...

    def harmed(self, doing: str, error: Exception) -> None:
        """Note an error of gradscope's own that belongs to no site."""
        ...
