"""The decay curve: one geometric mean over sequences per lag. See :mod:`gradscope.diagnostics.decay` for its rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.errors import SettingError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DecayCurve:
    """Geometric mean of gradient norms against lag, and what had to be left out of it.

    Attributes
    ----------
    lags : ndarray, shape (L,)
        Increasing.
    log10 : ndarray, shape (L,)
        log10 of the chained geometric mean; NaN where no sequence is active.
    sequences : ndarray, shape (S, L)
        log10 norm of each sequence, NaN where it is not active. Gaps inside a sequence are interpolated.
    support : ndarray of int, shape (L,)
        How many sequences really have a usable norm at the lag.
    n_zero, n_below_normal, n_nonfinite : ndarray of int, shape (L,)
        Norms left out at the lag: exact zeros, norms below the smallest normal number, NaN or infinite gradients.
    n_unreached : ndarray of int, shape (L,)
        Exact zeros before a sequence's first gradient, not among ``n_zero``: no gradient has arrived there yet.
    first, last : int
        Positions between which at least half of the sequences are active; ``last < first`` when there are none.
    """

    lags: Floats
    log10: Floats
    sequences: Floats
    support: Counts
    n_zero: Counts
    n_below_normal: Counts
    n_nonfinite: Counts
    n_unreached: Counts
    first: int
    last: int

    @property
    def active(self) -> Bools:
        """Whether a sequence takes part at a lag, shape (S, L)."""
        return ~np.isnan(self.sequences)


def decay_curve(
    lags: ArrayLike,
    norms: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    starts: ArrayLike | None = None,
    smallest_normal: float | None = None,
) -> DecayCurve:
    """Average gradient norms over sequences, in log space, lag by lag.

    The mean is *chained*: its step from one lag to the next is the mean step of the sequences present at both. Where
    every sequence has every lag this is the geometric mean itself; in a ragged batch a short sequence that drops out
    does not leave a jump that a fit would take for decay.

    Parameters
    ----------
    lags : array_like, shape (L,)
        Distinct; any order.
    norms : array_like, shape (L,) or (S, L)
        NaN beyond a sequence's length.
    lengths : array_like of int, shape (S,), optional
        A NaN at a lag below the length is then counted as a non-finite gradient; without lengths, only a NaN that
        is followed by a number is.
    starts : array_like of int, shape (S,), optional
        First lag of each sequence, 0 when not given: what goes on in another module begins later, and a NaN before
        is no gradient.
    smallest_normal : float, optional
        Norms below it have lost precision and are left out; that of the dtype of ``norms`` when not given.

    Raises
    ------
    SettingError
        Shapes that do not fit, repeated lags, or negative norms.

    Examples
    --------
    >>> from gradscope.diagnostics import decay_curve
    >>> curve = decay_curve([0, 1, 2], [[1.0, 0.1, 0.01], [1.0, 0.01, 0.0]])
    >>> curve.log10[:2].tolist(), curve.n_zero.tolist()
    ([0.0, -1.5], [0, 0, 1])
    """
    at, table, smallest = _checked(lags, norms, smallest_normal)
    order = np.argsort(at)
    at, table = at[order], table[:, order]
    nonfinite = _nonfinite(at, table, lengths, starts)
    zero = table == 0
    below = (table > 0) & (table < smallest)
    usable = np.isfinite(table) & ~zero & ~below
    logs = np.full(table.shape, np.nan)
    logs[usable] = np.log10(table[usable])
    # Before the step where a sequence's gradient enters (a loss in the middle, a direction read at its other end).
    unreached = zero & ~np.logical_or.accumulate(usable, axis=1) & usable.any(axis=1, keepdims=True)
    return curve_of_logs(
        at,
        logs,
        n_zero=(zero & ~unreached).sum(0),
        n_below_normal=below.sum(0),
        n_nonfinite=nonfinite.sum(0),
        n_unreached=unreached.sum(0),
    )


def curve_of_logs(
    lags: Floats,
    logs: Floats,
    *,
    n_zero: Counts | None = None,
    n_below_normal: Counts | None = None,
    n_nonfinite: Counts | None = None,
    n_unreached: Counts | None = None,
) -> DecayCurve:
    """:func:`decay_curve` from log10 norms, shape (S, L), over increasing lags; NaN where there is none."""
    none = np.zeros(lags.size, dtype=np.int64)
    sequences = _filled(lags, logs)
    active = ~np.isnan(sequences)
    first, last = _half_present(active)
    return DecayCurve(
        lags=lags,
        log10=_chained_mean(sequences, active),
        sequences=sequences,
        support=(~np.isnan(logs)).sum(0),
        n_zero=none if n_zero is None else n_zero,
        n_below_normal=none if n_below_normal is None else n_below_normal,
        n_nonfinite=none if n_nonfinite is None else n_nonfinite,
        n_unreached=none if n_unreached is None else n_unreached,
        first=first,
        last=last,
    )


def _checked(lags: ArrayLike, norms: ArrayLike, smallest_normal: float | None) -> tuple[Floats, Floats, float]:
    at, raw = np.asarray(lags, dtype=np.float64), np.asarray(norms)
    if smallest_normal is None:
        dtype = raw.dtype if np.issubdtype(raw.dtype, np.floating) else np.dtype(np.float64)
        smallest_normal = float(np.finfo(dtype).tiny)
    table = np.atleast_2d(raw.astype(np.float64))
    if at.ndim != 1 or table.ndim != 2 or table.shape[1] != at.size:
        raise SettingError(
            f"norms must be (lag,) or (sequence, lag) with one column per lag: got lags {at.shape}, norms {raw.shape}."
        )
    if np.unique(at).size != at.size:
        raise SettingError("lags repeat: pass one row per sequence, a (sequence, lag) table, not a long list.")
    if not np.isfinite(at).all():
        raise SettingError("lags must be finite numbers.")
    if np.any(table < 0):
        raise SettingError("norms must not be negative: pass the norms themselves, not their logarithms.")
    return at, table, float(smallest_normal)


def _nonfinite(at: Floats, table: Floats, lengths: ArrayLike | None, starts: ArrayLike | None) -> Bools:
    missing = np.isnan(table)
    if lengths is None:
        # A trailing NaN is padding; one that a number follows is a gradient that was not a number.
        followed = np.cumsum(~missing[:, ::-1], axis=1)[:, ::-1] > 0
    else:
        followed = at[None, :] < _each(lengths, table, "lengths")[:, None]
    if starts is not None:
        followed &= at[None, :] >= _each(starts, table, "starts")[:, None]
    result: Bools = np.isinf(table) | (missing & followed)
    return result


def _each(given: ArrayLike, table: Floats, name: str) -> Counts:
    values = np.asarray(given)
    if values.shape != (table.shape[0],):
        raise SettingError(f"{name} must hold one number per sequence: got {values.shape} for {table.shape[0]}.")
    return values


def _filled(lags: Floats, logs: Floats) -> Floats:
    """Gaps between a sequence's first and last usable lag interpolated, so that the chain of steps holds."""
    sequences = logs.copy()
    known = ~np.isnan(logs)
    # A gap is a missing value with known ones on both sides.
    inside = np.logical_or.accumulate(known, axis=1) & np.logical_or.accumulate(known[:, ::-1], axis=1)[:, ::-1]
    for index in np.flatnonzero((inside & ~known).any(axis=1)):
        gap = inside[index] & ~known[index]
        sequences[index, gap] = np.interp(lags[gap], lags[known[index]], logs[index, known[index]])
    return sequences


def _half_present(active: Bools) -> tuple[int, int]:
    """First and last position of the first stretch where at least half of the (non-empty) sequences are active."""
    n_sequences = int(active.any(axis=1).sum())
    present = (2 * active.sum(0) >= n_sequences) & (n_sequences > 0)
    if not present.any():
        return 0, -1
    first = int(np.argmax(present))
    absent = np.flatnonzero(~present[first:])
    return first, int(first + absent[0] - 1) if absent.size else active.shape[1] - 1


def _chained_mean(sequences: Floats, active: Bools) -> Floats:
    curve = np.full(sequences.shape[1], np.nan)
    count = active.sum(0)
    if not count.any():
        return curve
    if np.all(active == active[:, :1]):  # every sequence has every lag: the plain mean, without accumulated rounding
        return np.asarray(sequences[active[:, 0]].mean(axis=0))
    both = active[:, 1:] & active[:, :-1]
    links = both.sum(0)
    steps = np.where(both, np.diff(sequences, axis=1), 0.0).sum(0)
    start = int(np.argmax(count > 0))
    curve[start] = np.nanmean(sequences[:, start])
    broken = np.flatnonzero(links[start:] == 0)
    stop = start + int(broken[0]) if broken.size else links.size
    curve[start + 1 : stop + 1] = curve[start] + np.cumsum(steps[start:stop] / links[start:stop])
    return curve
