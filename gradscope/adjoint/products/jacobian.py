"""Singular values of products of one-step Jacobians ∂s_t/∂s_{t−1} of the joint state."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.order import Order


def random_frame(batch: int, size: int, vectors: int, like: Tensor, seed: int) -> Tensor:
    """Return orthonormal vectors (B, S, k), the same for every sequence.

    Random, so that none of them lies in a subspace that the recurrence never leaves; and not from torch's generator,
    for weights drawn with the same seed would then be aligned with it.
    """
    start = torch.from_numpy(np.random.default_rng(seed).normal(size=(size, vectors)))
    return torch.linalg.qr(start)[0].to(like).expand(batch, -1, -1)


def smallest_ratio(size: int, dtype: torch.dtype) -> float:
    """Below this share of the largest stretch, one step's stretch cannot be told from 0 in ``dtype``."""
    return 8 * size * torch.finfo(dtype).eps


def log_singular_values(
    linearization: Linearization, order: Order, lags: Collection[int] | None = None, seed: int = 0
) -> Tensor:
    """Singular values of ∂s_T/∂s_t against lag T − t, as natural logarithms.

    The product is kept as Q · diag(e^l) · U by one QR per step, so that a value of e^−3000 is as good as one of 1;
    relative errors stay near 1e-8 for every value, however far apart they are.

    Parameters
    ----------
    linearization : Linearization
    order : Order
        T is each sequence's last processed step.
    lags : collection of int, optional
        All from 0 to T − 1 by default.
    seed : int
        Of the random frame the product is seen from; the result does not depend on it.

    Returns
    -------
    Tensor, shape (L, B, S)
        Largest first. −inf for 0, also where one step shrinks a direction to rounding level (about 1e-13 of its
        largest stretch); NaN at lags beyond the first step of a sequence.

    Notes
    -----
    Chen, Pennington & Schoenholz 2018 and Gilboa et al. 2019 for the spectrum; the graded product is that of
    Loh & Gubernatis 1992 for determinants.
    """
    wanted = range(linearization.steps) if lags is None else lags
    last = max(wanted, default=-1)
    maps = linearization.in_lag_order(order)
    size, batch = maps.size, maps.batch
    found = {}
    frame = random_frame(batch, size, size, maps.like, seed)
    log_scale = frame.new_zeros(batch, size)
    rows = torch.eye(size, dtype=frame.dtype, device="cpu").expand(batch, -1, -1)
    for lag in range(last + 1):
        if lag in wanted:
            found[lag] = _graded_log_singular_values(log_scale, rows)
        if lag < last:
            frame, triangle = torch.linalg.qr(maps.pull(lag, frame.transpose(1, 2)).transpose(1, 2))
            log_scale, rows = _extend(_without_rounding(triangle), log_scale, rows)
    values = torch.stack([found[lag] for lag in wanted])
    if order.lengths is not None:
        beyond = torch.tensor(list(wanted), device="cpu")[:, None] >= order.lengths
        values = values.masked_fill(beyond[:, :, None], float("nan"))
    return values


def _without_rounding(triangle: Tensor) -> Tensor:
    """Set the rows of R to 0 that hold only rounding errors."""
    largest = triangle.abs().amax(-1, keepdim=True)
    noise = smallest_ratio(triangle.shape[-1], triangle.dtype) * largest.amax(-2, keepdim=True)
    return triangle * (largest > noise)


def _extend(triangle: Tensor, log_scale: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply diag(e^log_scale) · rows by R from the left, in the same form."""
    # R is upper triangular: row i sees the scales from i on.
    reach = log_scale.flip(-1).cummax(-1).values.flip(-1)
    safe = reach.masked_fill(reach.isinf(), 0.0)
    product = (triangle * (log_scale[:, None, :] - safe[:, :, None]).clamp_max(0).exp()) @ rows
    norm = torch.linalg.vector_norm(product, dim=-1)
    unit = product / norm.masked_fill(norm == 0, 1.0)[..., None]
    return torch.where(norm > 0, safe + norm.log(), float("-inf")), unit


# Singular values within CORE of each other are taken from one window; MARGIN on either side leaves errors of
# exp(−2 MARGIN) relative, and e^(CORE + MARGIN) times the rounding error.
_CORE, _MARGIN = math.log(1e2), math.log(1e6)


def _graded_log_singular_values(log_scale: Tensor, rows: Tensor) -> Tensor:
    """Singular values of diag(e^log_scale) · rows, (B, S), as logarithms."""
    log_scale, place = log_scale.sort(-1, descending=True)
    rows = rows.gather(1, place[:, :, None].expand_as(rows))
    # In R = QR(rowsᵀ) · diag(e^scale) values of different size have parted: column j is of size e^scale_j.
    triangles = torch.linalg.qr(rows.transpose(1, 2))[1]
    return torch.stack([_one_graded(*pair) for pair in zip(log_scale, triangles, strict=True)])


def _one_graded(log_scale: Tensor, triangle: Tensor) -> Tensor:
    values = torch.full_like(log_scale, float("-inf"))
    scales = log_scale[log_scale > float("-inf")].tolist()
    for start, stop, first, last in _windows(scales):
        shift = log_scale[first]
        block = triangle[first:last, first:last] * (log_scale[first:last] - shift).exp()
        values[start:stop] = torch.linalg.svdvals(block)[start - first : stop - first].log() + shift
    return values


def _windows(scales: Sequence[float]) -> list[tuple[int, int, int, int]]:
    """Cut descending scales into cores, each with the margins around it: start, stop, first, last."""
    found, count, start = [], len(scales), 0
    if count and scales[0] - scales[-1] <= _CORE + _MARGIN:
        return [(0, count, 0, count)]
    while start < count:
        stop = next((j for j in range(start, count) if scales[j] < scales[start] - _CORE), count)
        first = next(j for j in range(count) if scales[j] <= scales[start] + _MARGIN)
        last = next((j for j in range(stop, count) if scales[j] < scales[stop - 1] - _MARGIN), count)
        found.append((start, stop, first, last))
        start = stop
    return found
