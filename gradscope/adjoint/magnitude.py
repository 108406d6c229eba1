"""How large vectors are: norms that neither overflow nor underflow, at the price of the type they are in."""

from __future__ import annotations

import torch
from torch import Tensor

#: Below this the smaller elements of an adjoint lose digits in float32, whose smallest normal number is 2^-126.
FADES_BELOW = 2.0**-100

# Between these a float32 norm has squares that float32 holds; beyond them float64 has to sum them.
_SAFE = 2.0**-50, 2.0**60

# As many elements are summed in float64 in the time that looking at the norms takes.
_FEW = 2**18

# Between these the squares of a float64 vector neither underflow nor overflow when they are summed.
_SQUARES_SAFE = 1e-140, 1e150


def largest(x: Tensor, dim: int = -1) -> Tensor:
    """Return the largest magnitude along ``dim``; a tenth of the time that the inf-norm takes."""
    # -0 + 0 is 0: of zeros alone the largest would otherwise be -0.
    return torch.maximum(x.amax(dim), x.amin(dim).neg_()).add_(0.0)


def norms(x: Tensor) -> Tensor:
    """Return the 2-norm over the last axis, as float64.

    Squares are summed in float32 only where they are far from both ends of its range.
    """
    if x.dtype == torch.float64:
        return _double_norms(x)
    if x.numel() <= _FEW and x.dtype == torch.float32:
        # No square of a float32 is out of float64's range: one operation instead of several.
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64)
    plain = torch.linalg.vector_norm(x.float(), dim=-1).double()
    unsafe = ~((plain > _SAFE[0]) & (plain < _SAFE[1]))
    if not bool(unsafe.any()):
        return plain
    unsafe &= largest(x) != 0
    if int(unsafe.sum()) > unsafe.numel() // 4:
        return _double_norms(x.double())
    plain[unsafe] = _double_norms(x[unsafe].double())
    return plain


def _double_norms(x: Tensor) -> Tensor:
    plain = torch.linalg.vector_norm(x, dim=-1)
    unsafe = ~((plain > _SQUARES_SAFE[0]) & (plain < _SQUARES_SAFE[1]))
    if not bool(unsafe.any()):
        return plain
    top = largest(x)
    scaled = torch.linalg.vector_norm(x / torch.where(top > 0, top, 1.0)[..., None], dim=-1)
    return torch.where(unsafe & top.isfinite(), top * scaled, plain)
