"""Whether the sequences of a batch pull in one direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def direction_consistency(vectors: ArrayLike) -> NDArray[np.float64]:
    """Mean cosine between the vectors of two different sequences; near 0 is noise, 1 is agreement.

    Parameters
    ----------
    vectors : array_like, shape (..., B, N)
        One vector per sequence. Zero vectors and vectors with a NaN have no direction and are left out.

    Returns
    -------
    ndarray, shape (...)
        NaN with fewer than two directions.

    Examples
    --------
    >>> from gradscope.diagnostics import direction_consistency
    >>> float(direction_consistency([[1.0, 0.0], [2.0, 0.0]])), float(direction_consistency([[1.0, 0.0], [0.0, 1.0]]))
    (1.0, 0.0)
    """
    v = np.asarray(vectors, dtype=np.float64)
    # Scaled by the largest element first: squares of a vanished gradient would underflow.
    largest = np.max(np.abs(v), axis=-1, keepdims=True, initial=0.0)
    known = np.isfinite(largest) & (largest > 0)
    v = np.divide(v, largest, out=np.zeros_like(v), where=known)
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    unit = np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)
    count = known[..., 0].sum(-1).astype(np.float64)
    # |sum of units|² = B + sum over pairs: all pairs without forming the B x B products.
    pairs = np.sum(unit.sum(-2) ** 2, axis=-1) - count
    return np.asarray(np.divide(pairs, count * (count - 1), out=np.full(count.shape, np.nan), where=count > 1))
