"""What clipping did to the gradients of a run, call by call. For other thresholds see :mod:`.thresholds`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscope.errors import SettingError

Floats = NDArray[np.float64]

#: torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
TORCH_EPSILON = 1e-6

#: The quantiles every summary here uses.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def quantiles(values: Floats) -> tuple[float, ...]:
    """:data:`QUANTILES` of the finite values; NaN without any."""
    finite = values[np.isfinite(values)]
    return tuple(map(float, np.quantile(finite, QUANTILES))) if finite.size else (float("nan"),) * len(QUANTILES)


def norm_scale(norms: ArrayLike, threshold: float) -> Floats:
    """The factor that torch's norm clipping applies: ``min(1, threshold / (norm + 1e-6))``; NaN for a NaN norm.

    Examples
    --------
    >>> from gradscope.diagnostics import norm_scale
    >>> norm_scale([0.5, 2.0], threshold=1.0).round(3).tolist()
    [1.0, 0.5]
    """
    if not threshold > 0:
        raise SettingError(f"a clipping threshold must be positive, got {threshold}.")
    norm = np.asarray(norms, dtype=np.float64)
    return np.asarray(np.minimum(1.0, threshold / (norm + TORCH_EPSILON)))


@dataclass(frozen=True)
class ValueClipEffect:
    """What clipping each element does to one gradient: its norms, and the angle it is turned by."""

    norm_before: float
    norm_after: float
    cosine: float
    share: float


def value_clip_effect(gradient: ArrayLike, threshold: float) -> ValueClipEffect:
    """Effect of clipping every element of a gradient to ``[-threshold, threshold]``, without clipping it.

    Unlike norm clipping this turns the gradient; ``cosine`` (raw against clipped) says by how much. NaN where the
    gradient is zero or not finite.

    Examples
    --------
    >>> from gradscope.diagnostics import value_clip_effect
    >>> effect = value_clip_effect([3.0, 1.0], threshold=1.0)
    >>> round(effect.cosine, 3), effect.share
    (0.894, 0.5)
    """
    if not threshold > 0:
        raise SettingError(f"a clipping threshold must be positive, got {threshold}.")
    raw = np.asarray(gradient, dtype=np.float64).ravel()
    clipped = np.clip(raw, -threshold, threshold)
    before, after = _norm(raw), _norm(clipped)
    known = np.isfinite(before) and before > 0
    cosine = float((raw / before) @ (clipped / after)) if known else float("nan")
    share = float(np.mean(np.abs(raw) > threshold)) if raw.size else float("nan")
    return ValueClipEffect(before, after, cosine, share)


def _norm(values: Floats) -> float:
    """The 2-norm, its squares taken over the largest element: they would underflow or overflow first."""
    largest = float(np.max(np.abs(values), initial=0.0))
    known = np.isfinite(largest) and largest > 0
    return largest * float(np.linalg.norm(values / largest)) if known else float(np.linalg.norm(values))


@dataclass(frozen=True)
class ClipStatistics:
    """What a run's clipping calls of one kind did.

    Attributes
    ----------
    kind : str
        ``norm``, ``value``, ``adaptive`` or ``timestep``: different operators, never summed up together.
    calls, n_nonfinite : int
        Calls, and those whose gradient norm was not finite (left out of the quantiles).
    thresholds : tuple of float
        Distinct, in order of size.
    fraction_clipped : float
        Share of calls that changed anything, of those with a finite norm.
    mean_share : float
        Mean share of elements (value), rows (adaptive) or the whole (norm) that was changed.
    norm_quantiles, scale_quantiles : tuple of float
        Quantiles at 5, 25, 50, 75 and 95 % over all calls; norms before clipping, scale is norm after / norm before.
    clipped_scale : float
        Median scale of the calls that clipped; NaN when none did.
    cosine_min, cosine_median : float
        Between raw and clipped gradient; 1 by construction for norm clipping, NaN where it was not measured.
    effective_lr : tuple of float or None
        Learning rate times scale at the same quantiles; None when no learning rate was logged. It describes plain
        gradient descent: Adam divides a constant scale out again.
    part : str
        The part of the parameters that was clipped; empty for all that are trained.
    """

    kind: str
    calls: int
    n_nonfinite: int
    thresholds: tuple[float, ...]
    fraction_clipped: float
    mean_share: float
    norm_quantiles: tuple[float, ...]
    scale_quantiles: tuple[float, ...]
    clipped_scale: float
    cosine_min: float
    cosine_median: float
    effective_lr: tuple[float, ...] | None = None
    part: str = ""


def clip_statistics(
    norm_before: ArrayLike,
    scale: ArrayLike,
    clipped: ArrayLike,
    *,
    kind: str = "norm",
    threshold: ArrayLike | float = float("nan"),
    cosine: ArrayLike | None = None,
    lr: ArrayLike | float | None = None,
) -> ClipStatistics:
    """Summarise clipping calls of one kind.

    Parameters
    ----------
    norm_before, scale, clipped : array_like, shape (N,)
        Of each call: total norm before, norm after / norm before, share that was changed (0 or 1 for norm clipping).
    kind : str
    threshold, lr : float or array_like, shape (N,)
    cosine : array_like, shape (N,), optional

    Raises
    ------
    SettingError
        Arrays of different lengths.

    Examples
    --------
    >>> from gradscope.diagnostics import clip_statistics, norm_scale
    >>> norms = [0.5, 2.0, 4.0, float("inf")]
    >>> scale = norm_scale(norms, 1.0)
    >>> found = clip_statistics(norms, scale, scale < 1, threshold=1.0)
    >>> found.calls, found.n_nonfinite, round(found.fraction_clipped, 2)
    (4, 1, 0.67)
    """
    norms, scales, shares = (np.asarray(a, dtype=np.float64).ravel() for a in (norm_before, scale, clipped))
    if not norms.size == scales.size == shares.size:
        raise SettingError(
            f"one value per call each: got {norms.size} norms, {scales.size} scales, {shares.size} shares."
        )
    finite = np.isfinite(norms)
    changed = finite & (shares > 0)
    turned = np.ones_like(norms) if cosine is None and kind == "norm" else np.full_like(norms, np.nan)
    if cosine is not None:
        turned = np.broadcast_to(np.asarray(cosine, dtype=np.float64), norms.shape)
    turned = turned[np.isfinite(turned) & finite]
    rates = None if lr is None else np.broadcast_to(np.asarray(lr, dtype=np.float64), norms.shape)
    used = np.broadcast_to(np.asarray(threshold, dtype=np.float64), norms.shape)
    return ClipStatistics(
        kind=kind,
        calls=int(norms.size),
        n_nonfinite=int((~finite).sum()),
        thresholds=tuple(map(float, np.unique(used[~np.isnan(used)]))),
        fraction_clipped=_mean(changed[finite]),
        mean_share=_mean(shares[finite]),
        norm_quantiles=quantiles(norms),
        scale_quantiles=quantiles(scales[finite]),
        clipped_scale=float(np.median(scales[changed])) if changed.any() else float("nan"),
        cosine_min=float(turned.min()) if turned.size else float("nan"),
        cosine_median=float(np.median(turned)) if turned.size else float("nan"),
        effective_lr=None if rates is None else quantiles((rates * scales)[finite]),
    )


def running_share(clipped: ArrayLike, window: int = 50) -> Floats:
    """Share of the last ``window`` calls that clipped anything, at each call; of fewer at the beginning.

    Examples
    --------
    >>> from gradscope.diagnostics import running_share
    >>> running_share([1, 1, 0, 0], window=2).tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    if window < 1:
        raise SettingError(f"window must be at least 1, got {window}.")
    flags = np.asarray(clipped, dtype=np.float64).ravel() > 0
    total = np.concatenate([[0.0], np.cumsum(flags)])
    end = np.arange(1, flags.size + 1)
    begin = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[begin]) / (end - begin))


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if values.size else float("nan")
