"""Lyapunov exponents of a recurrence along its trajectory, from tangent products and QR; no Jacobian is formed."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.order import Order
from gradscope.adjoint.products.jacobian import random_frame, smallest_ratio
from gradscope.errors import SettingError

#: More steps than this between two QR factorisations spoil all but the largest exponents.
MAX_QR_INTERVAL = 10


def lyapunov_exponents(
    linearization: Linearization,
    order: Order,
    k: int | None = None,
    *,
    warmup: int = 0,
    qr_every: int = 1,
    seed: int = 0,
) -> Tensor:
    """Mean logarithmic growth of nearby states, per sequence (Benettin et al. 1980; Vogt et al. 2020).

    Parameters
    ----------
    linearization : Linearization
        Of the joint state: (h, c) for an LSTM.
    order : Order
    k : int, optional
        How many exponents, largest first; all S by default.
    warmup : int
        First steps, in which the tangents align, to leave out.
    qr_every : int
        Steps between two QR factorisations, at most 10 (Engelken et al. 2023).
    seed : int
        Of the random tangents to start from.

    Returns
    -------
    Tensor, shape (B, k)
        In natural log per step, largest first; −inf for directions that the recurrence destroys.

    Raises
    ------
    SettingError
        A sequence has no step after the warm-up, or ``k``, ``warmup`` or ``qr_every`` is out of range.
    """
    size, steps = linearization.size, linearization.steps
    k = size if k is None else k
    lengths = torch.full((order.batch,), steps, device="cpu") if order.lengths is None else order.lengths
    _check(k, size, warmup, qr_every, int(lengths.min()))
    frame = random_frame(linearization.batch, size, k, linearization.like, seed)
    growth = frame.new_zeros(linearization.batch, k)
    pending = 0
    for t in range(steps):
        within = t < lengths
        pushed = linearization.push(t, frame.transpose(1, 2)).transpose(1, 2)
        # A sequence that has ended keeps its frame.
        frame = torch.where(within[:, None, None], pushed, frame) if order.lengths is not None else pushed
        pending += 1
        if pending < qr_every and t + 1 not in (warmup, steps):
            continue
        frame, triangle = torch.linalg.qr(frame)
        if t >= warmup:
            growth += _log_stretch(triangle, pending)
        pending = 0
    exponents = growth / (lengths - warmup)[:, None]
    return exponents.sort(-1, descending=True).values


def _log_stretch(triangle: Tensor, steps: int) -> Tensor:
    """Return ln |R_ii|, −inf where R_ii is a rounding error."""
    stretch = triangle.diagonal(dim1=-2, dim2=-1).abs()
    noise = smallest_ratio(triangle.shape[-1], triangle.dtype) * triangle.abs().amax((-2, -1))[:, None]
    # Over several steps a small R_ii may be real: only one step's ratio tells a destroyed direction from a small one.
    return torch.where((stretch > noise) | (steps > 1), stretch, 0.0).log()


def _check(k: int, size: int, warmup: int, qr_every: int, shortest: int) -> None:
    if not 1 <= k <= size:
        raise SettingError(f"the number of exponents must lie between 1 and the state size {size}, got {k}.")
    if not 1 <= qr_every <= MAX_QR_INTERVAL:
        raise SettingError(f"qr_every must lie between 1 and {MAX_QR_INTERVAL}, got {qr_every}.")
    if not 0 <= warmup < shortest:
        raise SettingError(
            f"a warm-up of {warmup} steps leaves nothing of a sequence of {shortest}; give longer sequences, a "
            "smaller warmup, or exponents=0 for none."
        )
