"""What one step of the recurrence does to the gradient's norm (Pascanu, Mikolov and Bengio 2013, eq. 9)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.errors import SettingError

# The smallest normal number: a run marks what is below it, and does not say how far.
_SMALLEST = np.finfo(np.float64).tiny


def one_step_ratio(
    hidden: ArrayLike, recurrent: ArrayLike | None = None, *, squared_norms: bool = False
) -> NDArray[np.float64]:
    """Ω per lag: ``(‖δ_{k+1} J‖ / ‖δ_{k+1}‖ − 1)²``, 0 where a step preserves the norm.

    This is the paper's eq. 9, with norms. Its eq. 10 and published code take the ratio of *squared* norms instead;
    ``squared_norms=True`` gives that. The two agree at 0 and differ by a factor of about 4 near it.

    Parameters
    ----------
    hidden : array_like, shape (..., L)
        Adjoint norms against lag.
    recurrent : array_like, shape (..., L), optional
        Norms of the part of the adjoint that came through the recurrence, ``δ_{k+1} J``. Without it the whole adjoint
        is taken, which is the same only where no gradient enters directly after the last step.

    Returns
    -------
    ndarray, shape (..., L)
        At lag k, of the step from lag k − 1 to lag k. NaN at lag 0, where the norm before is zero, and where either is
        too small a number to have its digits.

    Examples
    --------
    >>> from gradscope.diagnostics import one_step_ratio
    >>> one_step_ratio([8.0, 4.0, 4.0]).tolist()  # halved, then kept
    [nan, 0.25, 0.0]
    """
    total = np.asarray(hidden, dtype=np.float64)
    through = total if recurrent is None else np.asarray(recurrent, dtype=np.float64)
    if through.shape != total.shape:
        raise SettingError(f"hidden and recurrent must have one shape, got {total.shape} and {through.shape}.")
    omega = np.full(total.shape, np.nan)
    before = total[..., :-1]
    after = through[..., 1:]
    known = (before >= _SMALLEST) & ((after >= _SMALLEST) | (after == 0))
    ratio = np.divide(after, before, out=np.full(before.shape, np.nan), where=known)
    omega[..., 1:] = ((ratio**2 if squared_norms else ratio) - 1.0) ** 2
    return omega
