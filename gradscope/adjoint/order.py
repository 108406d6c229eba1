"""Processing order: the order in which a recurrence visits the timesteps of each sequence.

Every equation in this package runs in processing order, where sequence b occupies steps ``0 .. len_b - 1`` and
padding follows, in either direction. That leaves one form of each recurrence, and lag = len_b - 1 - step.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Order:
    """Map time-major tensors between input time order and processing order.

    Parameters
    ----------
    steps, batch : int
        Sizes of the time and batch axes.
    lengths : Tensor of int64, shape (B,), or None
        Valid steps of each sequence; None when all are ``steps`` long.
    reverse : bool
        Whether the recurrence runs from the last step to the first.
    """

    def __init__(self, steps: int, batch: int, lengths: Tensor | None, reverse: bool) -> None:
        self.steps, self.batch, self.lengths, self.reverse = steps, batch, lengths, reverse
        self._index: Tensor | None = None
        if reverse and lengths is not None:
            time = torch.arange(steps, device="cpu")[:, None]
            # Reversing within the length is its own inverse; padding stays where it is.
            self._index = torch.where(time < lengths, lengths - 1 - time, time)

    def apply(self, x: Tensor) -> Tensor:
        """Reorder ``x`` (T, B, ...) from one order to the other; the map is its own inverse."""
        if not self.reverse:
            return x
        if self._index is None:
            return x.flip(0)
        index = self._index.reshape(self.steps, self.batch, *([1] * (x.dim() - 2))).expand_as(x)
        return x.gather(0, index)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return 1 on valid steps and 0 on padding, (T, B, 1), or None without padding."""
        if self.lengths is None:
            return None
        time = torch.arange(self.steps, device="cpu")[:, None]
        return (time < self.lengths).to(dtype)[..., None]

    def inject_last(self, target: Tensor, gradient: Tensor) -> None:
        """Add ``gradient`` (B, H) to ``target`` (T, B, H) at each sequence's last processed step, in place."""
        if self.lengths is None:
            target[-1] += gradient
        else:
            valid = (self.lengths > 0).nonzero().squeeze(1)
            target[self.lengths[valid] - 1, valid] += gradient[valid]

    def to_lag(self, x: Tensor) -> Tensor:
        """Reorder ``x`` (T, B, ...) from processing order to lag order (B, L, ...), NaN beyond the length."""
        if self.lengths is None:
            return x.flip(0).transpose(0, 1)
        time = torch.arange(self.steps, device="cpu")[:, None]
        valid = time < self.lengths
        index = torch.where(valid, self.lengths - 1 - time, time)
        shape = (self.steps, self.batch, *([1] * (x.dim() - 2)))
        lagged = x.gather(0, index.reshape(shape).expand_as(x))
        return lagged.masked_fill(~valid.reshape(shape), float("nan")).transpose(0, 1)
