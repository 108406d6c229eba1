"""Where the gradient of the loss enters a recurrence, from the gradient that arrives from above at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope import reasons
from gradscope.errors import SettingError

Floats = NDArray[np.float64]

#: A lag where the direct gradient is at least this share of the total is one where the gradient enters.
ENTRY_SHARE = 0.5


@dataclass(frozen=True)
class Entry:
    """Where a gradient enters.

    Attributes
    ----------
    lag : float
        Largest lag where at least half of the total comes from above. The recurrence is judged from there on, unless
        a gradient enters everywhere.
    everywhere : bool
        A gradient enters at most of the later lags too, so that the curve is not the recurrence's alone.
    source : {"loss", "layer"}
        What lies above: the loss or something unknown, or another layer of the same stack. Through a layer a single
        loss reaches every step, and a level curve means that it does.
    growth : float
        Total gradient at the last lag over the sum of all that entered up to there, geometric mean over sequences. A
        recurrence that amplifies nothing keeps it at 1 or below.
    lags : tuple of float
        First and last lag of the table.
    known : bool
        Whether what enters was recorded. Where it was not, it may enter everywhere.
    """

    lag: float
    everywhere: bool
    growth: float
    lags: tuple[float, float]
    source: str = "loss"
    known: bool = True

    def explains_growth(self, factor: float) -> bool:
        """Whether what enters along the way explains a growing curve: the total stays below a multiple of its sum."""
        return self.known and self.everywhere and not self.growth >= factor

    @property
    def explains_level(self) -> bool:
        """Whether a curve may be level because of what enters along the way."""
        return self.everywhere and self.source == "loss"

    @property
    def words(self) -> str:
        """What the curve shows instead of the recurrence."""
        if not self.known:
            return reasons.ENTRY_NOT_RECORDED
        first, last = self.lags
        # Close to the end most of the total is carried all the same.
        mostly = self.lag > first and self.lag - first >= 0.5 * (last - first)
        return reasons.enters_up_to(self.lag) if mostly else reasons.ENTERS_AT_MOST_STEPS


def unknown_entry(lags: ArrayLike, source: str = "loss") -> Entry:
    """Of a curve beside which what enters from above was not recorded.

    Examples
    --------
    >>> from gradscope.diagnostics import unknown_entry
    >>> unknown_entry(range(20)).known
    False
    """
    at = np.asarray(lags, dtype=np.float64)
    return Entry(float(at[0]), True, float("nan"), (float(at[0]), float(at[-1])), source, known=False)


def find_entry(lags: ArrayLike, direct: ArrayLike, total: ArrayLike, source: str = "loss") -> Entry | None:
    """Where the gradient enters; None where none does.

    Parameters
    ----------
    lags : array_like, shape (L,)
        Increasing.
    direct, total : array_like, shape (S, L)
        Norms of ∂L/∂h_t, the part from above and all of it; NaN beyond a sequence's length.
    source : {"loss", "layer"}
        What lies above.

    Raises
    ------
    SettingError
        Shapes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from gradscope.diagnostics import find_entry
    >>> total = 0.9 ** np.arange(20.0)[None]
    >>> find_entry(range(20), np.where(np.arange(20) == 0, total, 0), total).lag
    0.0
    """
    at = np.asarray(lags, dtype=np.float64)
    above, whole = (np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (direct, total))
    if above.shape != whole.shape or above.shape[1:] != at.shape:
        raise SettingError(f"direct and total must be (sequence, lag): got {above.shape} and {whole.shape}.")
    known = np.isfinite(above) & np.isfinite(whole)
    arriving = known & (above > 0) & (whole > 0)
    if not arriving.any():
        return None
    large = arriving & (above >= ENTRY_SHARE * np.where(known, whole, np.inf))
    most = np.flatnonzero(2 * large.sum(axis=0) >= np.maximum(1, (known & (whole > 0)).sum(axis=0)))
    later = known[:, 1:]
    everywhere = bool(later.any()) and float(arriving[:, 1:][later].mean()) >= 0.5
    return Entry(
        lag=float(at[most[-1]]) if most.size else float(at[0]),
        everywhere=everywhere,
        growth=_growth(above, whole, arriving),
        lags=(float(at[0]), float(at[-1])),
        source=source,
    )


def _growth(above: Floats, whole: Floats, arriving: NDArray[np.bool_]) -> float:
    entered = np.cumsum(np.where(arriving, above, 0.0), axis=1)
    logs = []
    for row, total in zip(entered, whole, strict=True):
        usable = np.flatnonzero(np.isfinite(total) & (total > 0) & (row > 0))
        if usable.size:
            logs.append(np.log10(total[usable[-1]]) - np.log10(row[usable[-1]]))
    return float(10 ** np.mean(logs)) if logs else float("nan")
