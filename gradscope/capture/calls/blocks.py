"""Rows of what arrives in a backward pass, taken a block at a time.

Between the kernels of a pass an operation takes several times as long as in a row: what arrives is held whole for a
while, and its sampled rows are taken together. From another device they are copied at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.capture import host

# So many tensors are held at a time.
_HELD = 96


class Blocks:
    """Sampled rows of tensors (B, N), by what they are and by timestep; what arrives in parts is added up.

    To be read at the end of the pass.

    Parameters
    ----------
    rows : Tensor of int64
        Which to take; of a tensor with a smaller batch those that it has.
    steps : int
    """

    def __init__(self, rows: Tensor, steps: int) -> None:
        self._selected, self._steps = rows, steps
        self._enough = int(rows.max()) if len(rows) else -1
        self._waiting: list[tuple[Any, int, Tensor, Callable[[Tensor], Tensor] | None]] = []
        self._copied: list[tuple[Any, int, Tensor]] = []
        self._rows: dict[Any, tuple[Tensor, tuple[Tensor, ...]]] = {}
        self._steps_of: dict[Any, set[int]] = {}

    def add(self, name: Any, step: int, values: Tensor, read: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take one more tensor, also as (1, B, N), or (N,) of a single sequence; ``read`` finds it in ``values``."""
        if not host.is_host(values):
            whole = _in_rows(values)
            taken = self._selected[self._selected < whole.shape[0]].tolist()
            self._copied.append((name, step, host.rows_of(whole, 0, taken)))
            return
        # Detached: with create_graph it has a graph, which would lead back to who holds this.
        self._waiting.append((name, step, values.detach() if values.requires_grad else values, read))
        if len(self._waiting) >= _HELD:
            self._settle()

    def _settle(self) -> None:
        """Take the rows of what is held."""
        for name, step, values, read in self._waiting:
            values = _in_rows(values if read is None else read(values))
            to, rows = self._place(name, step, values), self._selected
            if values.shape[0] <= self._enough:
                rows = rows[rows < values.shape[0]]
                to = to[: len(rows)]
            if step in self._steps_of[name]:
                to += values.index_select(0, rows)
            else:
                torch.index_select(values, 0, rows, out=to)
                self._steps_of[name].add(step)
        self._waiting.clear()

    def _place(self, name: Any, step: int, like: Tensor) -> Tensor:
        if name not in self._rows:
            whole = like.new_zeros(self._steps, len(self._selected), like.shape[1])
            self._rows[name], self._steps_of[name] = (whole, whole.unbind()), set()
        return self._rows[name][1][step]

    def _arrive(self) -> None:
        self._settle()
        for name, step, values in self._copied:
            self._place(name, step, values)[: len(values)] += values
            self._steps_of[name].add(step)
        self._copied.clear()

    def get(self, name: Any) -> Tensor | None:
        """Return the rows (T, b, N), 0 where there were none; None where there were none at all."""
        self._arrive()
        return self._rows[name][0] if name in self._rows else None

    def at(self, name: Any) -> set[int]:
        """Return the timesteps of which there were any."""
        self._arrive()
        return self._steps_of.get(name, set())

    def names(self) -> set[Any]:
        """Return what there was at all."""
        self._arrive()
        return set(self._rows)


def _in_rows(values: Tensor) -> Tensor:
    """Return a tensor of a batch or of a single sequence as (B, N), or (1, N)."""
    return values if values.dim() == 2 else values[0] if values.dim() > 2 else values[None]
