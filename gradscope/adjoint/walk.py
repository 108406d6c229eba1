"""Walk the time axis backward in blocks, with a floating scale where the arithmetic is float32.

Blocks keep the coefficients of a stretch of timesteps in the cache. The scale keeps float32 exact enough over any
number of decades: the recurrence is linear in the adjoint, so a block may be multiplied by a power of two, chosen so
that the adjoint starts it near 1. Norms divide it out again in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Long enough to hide the work between blocks, short enough for the cache and for float32's 76 decades.
BLOCK = 64

# A direct gradient this much louder than the adjoint that walks towards it begins a block of its own.
_JUMP = 2.0**40

# A scale beyond this would not fit float64, and neither would the norms: 2^-1000 is 1e-301.
_LARGEST_EXPONENT = 1000


class Walk:
    """Buffers of a backward walk, filled block by block with what arrives from above and from later steps.

    Attributes
    ----------
    hidden : Tensor, shape (T, B, P)
        Adjoint of h_t, once a block has been walked.
    carry : Tensor of shape (T, B, H) or None
        Adjoint of c_t with h_t held fixed.
    faded : list of bool
        Steps the adjoint did not reach because it had fallen below 2^-1000: they hold 0, which it is not.
    """

    def __init__(
        self, direct: Tensor, dtype: torch.dtype, direct_cell: Tensor | None = None, cell_size: int = 0
    ) -> None:
        self._sources = [direct, direct_cell] if cell_size else [direct]
        self.steps, batch = direct.shape[:2]
        # Zeros, because blocks that nothing reaches are not walked.
        self.hidden = torch.zeros(direct.shape, dtype=dtype, device=direct.device)
        self.carry = torch.zeros(self.steps, batch, cell_size, dtype=dtype, device=direct.device) if cell_size else None
        self.faded = [False] * self.steps
        self._late: list[Tensor] = []
        self._fading = False
        self._floating = dtype != torch.float64
        self._running = 1.0
        if self._floating:
            self._scales = [1.0] * self.steps
            present = [source.flatten(1) for source in self._sources if source is not None and batch]
            loud = [torch.linalg.vector_norm(source, torch.inf, dim=1) for source in present]
            self._loudest = torch.stack(loud).amax(0).tolist() if loud else [0.0] * self.steps

    @property
    def scale(self) -> Tensor | None:
        """What the buffers have been multiplied with, float64 (T, 1, 1); None when nothing has."""
        if not self._floating:
            return None
        return torch.tensor(self._scales, dtype=torch.float64, device=self.hidden.device)[:, None, None]

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield ``low, high`` from the last block to the first, the buffers of each prepared."""
        high = self.steps
        while high > 0:
            low = max(0, high - BLOCK)
            if self._floating:
                low = self._rescale(low, high)
            if self._floating and not self._late and not any(self._loudest[low:high]):
                self.faded[low:high] = [self._fading] * (high - low)
                high = low
                continue
            self._fill(low, high)
            yield low, high
            high = low

    def leave(self, *arriving: Tensor) -> None:
        """Hand over what reaches the step before the block through the recurrence: h, and c if there is one."""
        self._late = list(arriving)

    def _fill(self, low: int, high: int) -> None:
        for buffer, direct in zip((self.hidden, self.carry), self._sources, strict=False):
            assert buffer is not None
            if direct is None or (self._floating and not any(self._loudest[low:high])):
                continue
            if self._running == 1.0:
                buffer[low:high] = direct[low:high]
            else:
                # In float64: the direct gradient of a lower layer may be out of float32's range before it is scaled.
                buffer[low:high] = direct[low:high].double() * self._running
        for buffer, arriving in zip((self.hidden, self.carry), self._late, strict=False):
            assert buffer is not None
            buffer[high - 1] += arriving

    def _rescale(self, low: int, high: int) -> int:
        """Choose the scale of the block that ends at ``high``; return where it begins."""
        arriving = max((float(tensor.abs().max()) for tensor in self._late if tensor.numel()), default=0.0)
        arriving /= self._running
        if arriving < 2.0**-_LARGEST_EXPONENT:
            self._fading |= arriving > 0
            arriving, self._late = 0.0, []
        level = max(arriving, self._loudest[high - 1])
        for t in range(high - 2, low - 1, -1):
            if self._loudest[t] > level * _JUMP:
                low = t + 1
                break
        largest = max(arriving, *self._loudest[low:high])
        if not math.isfinite(largest) or largest == 0.0:
            largest = 1.0
        exponent = -math.frexp(largest)[1]
        scale = math.ldexp(1.0, max(-_LARGEST_EXPONENT, min(_LARGEST_EXPONENT, exponent)))
        if scale != self._running:
            self._late = [tensor * (scale / self._running) for tensor in self._late]
        self._running = scale
        self._scales[low:high] = [scale] * (high - low)
        return low
