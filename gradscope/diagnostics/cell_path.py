"""How much of an LSTM's gradient comes along the cell path alone (Arpit et al. 2019, "h-detach")."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.errors import SettingError


def cell_path_share(cell_path: ArrayLike, cell: ArrayLike) -> NDArray[np.float64]:
    """``‖∂L/∂c_t with h detached‖ / ‖∂L/∂c_t‖``: below 1 where the paths through h add to the gradient.

    It is a ratio of norms, not a share of a sum: paths may cancel, and it may then exceed 1.

    Parameters
    ----------
    cell_path, cell : array_like, shape (..., L)

    Returns
    -------
    ndarray, shape (..., L)
        NaN where the total is zero, or below the normal numbers.

    Examples
    --------
    >>> from gradscope.diagnostics import cell_path_share
    >>> cell_path_share([1.0, 0.25], [1.0, 0.5]).tolist()
    [1.0, 0.5]
    """
    part, total = np.asarray(cell_path, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    if part.shape != total.shape:
        raise SettingError(f"cell_path and cell must have one shape, got {part.shape} and {total.shape}.")
    return np.asarray(
        np.divide(part, total, out=np.full(total.shape, np.nan), where=total >= np.finfo(np.float64).tiny)
    )
