"""Walk the time axis backward in blocks, with a floating scale where the arithmetic is float32.

A block of timesteps is walked in buffers that every block uses again: they stay in the cache, and the views of their
timesteps are made once. The scale keeps float32 exact enough over any number of decades: the recurrence is linear in
the adjoint, so a block may be multiplied by a power of two, chosen so that the adjoint starts it near 1. Norms divide
it out again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.adjoint.magnitude import largest
from gradscope.adjoint.order import Order
from gradscope.adjoint.types import Adjoints, Trajectory, Weights

# Long enough to hide the work between blocks, short enough for the cache and for float32's 76 decades.
BLOCK = 32

# A direct gradient this much louder than the adjoint that walks towards it begins a block of its own.
_JUMP = 2.0**40

# A scale beyond this would not fit float64, and neither would the norms: 2^-1000 is 1e-301.
_LARGEST_EXPONENT = 1000


class Walk:
    """The blocks of a backward walk, with what arrives at each from above and from later steps.

    ``last``, where given, is the adjoint of h_t at the last step, whatever arrives there.

    Attributes
    ----------
    block : int
        Timesteps of the longest block: the first axis of every buffer.
    a : Tensor, shape (block, B, P)
        Buffer for the adjoint of h_t. Holds what arrives from above when a block begins, and at its last step also what
        comes from later ones; to be completed in place.
    carry_in : Tensor of shape (B, H) or None
        Adjoint of c_t, with h_t held fixed, at the last step of the block; None without a cell state.
    hidden : Tensor, shape (T, B, P)
        Adjoint of h_t, once its block has been walked.
    faded : list of bool
        Steps the adjoint did not reach because it had fallen below 2^-1000: they hold 0, which it is not.
    """

    def __init__(
        self,
        direct: Tensor,
        dtype: torch.dtype,
        direct_cell: Tensor | None = None,
        cell_size: int = 0,
        last: Tensor | None = None,
    ) -> None:
        self._direct, self._direct_cell, self._last = direct, direct_cell, last
        self.steps, batch = direct.shape[:2]
        self.block = max(1, min(BLOCK, self.steps))
        self.a = torch.empty(self.block, *direct.shape[1:], dtype=dtype, device="cpu")
        self.carry_in = torch.zeros(batch, cell_size, dtype=dtype, device="cpu") if cell_size else None
        self.hidden = torch.empty(direct.shape, dtype=dtype, device="cpu")
        self.faded = [False] * self.steps
        self._late: list[Tensor] = []
        self._fading, self._low = False, 0
        self._floating = dtype != torch.float64
        self._running = 1.0
        if self._floating:
            self._scales = [1.0] * self.steps
            present = [source.flatten(1) for source in (direct, direct_cell) if source is not None and batch]
            loud = [largest(source) for source in present]
            self._loudest = torch.stack(loud).amax(0).tolist() if loud else [0.0] * self.steps
            if last is not None and last.numel():
                self._loudest[-1] = float(last.abs().max())

    @property
    def scale(self) -> Tensor | None:
        """What the buffers have been multiplied with, float64 (T, 1, 1); None when nothing has."""
        if not self._floating:
            return None
        return torch.tensor(self._scales, dtype=torch.float64, device="cpu")[:, None, None]

    def adjoints(self, order: Order, trajectory: Trajectory, weights: Weights) -> Adjoints:
        """Return what every cell has of it once all blocks have been walked, initial states included."""
        states = [self.a[0]] if self.carry_in is None else [self.a[0], self.carry_in]
        # What came past the first step; nothing, where that was never reached or the adjoint had faded.
        arrived = self._late or [torch.zeros_like(state) for state in states]
        initial = [tensor.double() / self._running for tensor in arrived]
        return Adjoints(
            order,
            self.hidden,
            self._direct,
            trajectory,
            weights,
            initial_hidden=initial[0],
            initial_cell=initial[1] if len(initial) > 1 else None,
            scale=self.scale,
            faded=self.faded,
        )

    def buffer(self, *sizes: int) -> Tensor:
        """Make a buffer (block, B, *sizes) for what the walk of a block needs."""
        return self.a.new_empty(self.block, self.a.shape[1], *sizes)

    def result(self, *sizes: int) -> Tensor:
        """Make a tensor (T, B, *sizes) for what the walk leaves behind, with the scale of ``hidden``."""
        return self.a.new_empty(self.steps, self.a.shape[1], *sizes)

    def blocks(self, *results: Tensor | None) -> Iterator[slice]:
        """Yield the timesteps of each block, from the last to the first, the buffers prepared.

        Blocks that nothing reaches are not walked, but filled with 0, in ``results`` (T, ...) too.
        """
        high = self.steps
        while high > 0:
            low = max(0, high - self.block)
            if self._floating:
                low = self._rescale(low, high)
            if self._floating and not self._late and not any(self._loudest[low:high]):
                self.faded[low:high] = [self._fading] * (high - low)
                for result in (self.hidden, *results):
                    if result is not None:
                        result[low:high] = 0
            else:
                self._low = low
                self._fill(low, high)
                yield slice(low, high)
                self.hidden[low:high] = self.a[: high - low]
            high = low

    def quiet(self, t: int) -> bool:
        """Whether nothing arrives from above at step ``t`` of the block."""
        return self._floating and not self._loudest[self._low + t]

    def cell_from_above(self, t: int) -> Tensor | None:
        """What arrives from above at the cell of step ``t`` of the block, (B, H); None for nothing."""
        if self._direct_cell is None or self.quiet(t):
            return None
        return self._scaled(self._direct_cell[self._low + t])

    def leave(self, *arriving: Tensor) -> None:
        """Hand over what reaches the step before the block through the recurrence: h, and c if there is one."""
        self._late = list(arriving)

    def _fill(self, low: int, high: int) -> None:
        here = self.a[: high - low]
        if self._floating and not any(self._loudest[low:high]):
            here.zero_()
        else:
            here.copy_(self._scaled(self._direct[low:high]))
        if self._last is not None and high == self.steps:
            here[-1].copy_(self._scaled(self._last))
        if self.carry_in is not None:
            above = self.cell_from_above(high - 1 - low)
            self.carry_in.zero_() if above is None else self.carry_in.copy_(above)
        for buffer, arriving in zip((here[-1], self.carry_in), self._late, strict=False):
            assert buffer is not None
            buffer += arriving

    def _scaled(self, direct: Tensor) -> Tensor:
        if self._running == 1.0:
            return direct
        # What is out of float32's range before it is scaled, or the scale itself, needs float64.
        return (direct if 2.0**-100 < self._running < 2.0**100 else direct.double()) * self._running

    def _rescale(self, low: int, high: int) -> int:
        """Choose the scale of the block that ends at ``high``; return where it begins."""
        arriving = 0.0
        if self._late and self._late[0].numel():
            arriving = max(float(late.abs().max()) for late in self._late) / self._running
        if arriving < 2.0**-_LARGEST_EXPONENT:
            self._fading |= arriving > 0
            arriving, self._late = 0.0, []
        level = max(arriving, self._loudest[high - 1])
        for t in range(high - 2, low - 1, -1):
            if self._loudest[t] > level * _JUMP:
                low = t + 1
                break
        top = max(arriving, *self._loudest[low:high])
        if not math.isfinite(top) or top == 0.0:
            top = 1.0
        exponent = -math.frexp(top)[1]
        scale = math.ldexp(1.0, max(-_LARGEST_EXPONENT, min(_LARGEST_EXPONENT, exponent)))
        if scale != self._running:
            self._late = [tensor * (scale / self._running) for tensor in self._late]
        self._running = scale
        self._scales[low:high] = [scale] * (high - low)
        return low
