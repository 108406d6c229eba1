"""``gradscope.clip_whatif``: the decay curve as it would be with the adjoint clipped at every timestep."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, stack_adjoints
from gradscope.adjoint.magnitude import norms
from gradscope.capture.probes.catching import catching, choose_site
from gradscope.errors import SettingError, UnknownNameError
from gradscope.schema import CLIP_KINDS, SiteInfo
from gradscope.store.probes import save_probe

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class ClipWhatIf:
    """Adjoint norms against lag at one site for each clipping threshold.

    Attributes
    ----------
    info : SiteInfo
    thresholds : tuple of float
        As given; inf is no clipping.
    lags : ndarray of int, shape (L,)
    norms : dict of str to ndarray, shape (K, B, L)
        ``hidden``, and ``cell`` of an LSTM (total): one curve per threshold and sequence, NaN beyond a sequence.
    clipped : ndarray, shape (K, L)
        Share of the pre-activation adjoints at each lag that lie on the threshold.
    rows : ndarray of int, shape (B,)
        Which batch rows the sequences are.

    Examples
    --------
    >>> import torch, gradscope
    >>> rnn, x = torch.nn.RNN(2, 8), torch.randn(30, 4, 2)
    >>> measured = gradscope.clip_whatif(rnn, lambda: rnn(x)[0][-1].sum(), 1e-3)
    >>> measured.curves.shape[-1]
    30
    >>> measured.save("whatif.npz")  # for ``gradscope plot whatif whatif.npz``
    """

    info: SiteInfo
    thresholds: tuple[float, ...]
    lags: NDArray[np.int64]
    norms: dict[str, Floats]
    clipped: Floats
    rows: NDArray[np.int64]

    def save(self, path: str | os.PathLike[str], **labels: str | float) -> None:
        """Write it to a ``.npz`` that ``gradscope plot whatif`` draws without the model."""
        save_probe(self, path, labels)

    @property
    def curves(self) -> Floats:
        """The curves of the quantity that describes the site, (K, B, L): ``cell`` for an LSTM, else ``hidden``."""
        return self.norms[self.info.curve]

    def __repr__(self) -> str:
        return f"<ClipWhatIf of {self.info.site}: thresholds {', '.join(f'{c:g}' for c in self.thresholds)}>"


def clip_whatif(
    model: nn.Module,
    closure: Callable[[], Tensor],
    thresholds: Sequence[float] | float,
    *,
    kind: str = "timestep",
    site: str | None = None,
    samples: int | None = 8,
) -> ClipWhatIf:
    """Recompute the adjoint with the clip of Graves (2013) inside the reverse recurrence, without any training.

    At every timestep each ∂L/∂(gate pre-activation) is clamped to ±threshold before it goes on to h_{t−1} and, in a
    stack, to the layer below; so, unlike norm clipping of the parameter gradients, it changes the shape of the decay
    curve. It acts in every layer and direction of the site's module, and in no other module.

    Parameters
    ----------
    model : nn.Module
        With ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` layers; it is not changed, nor is ``.grad`` of its parameters.
    closure : callable
        Runs the forward pass and returns the loss, a scalar. Thresholds are in its units: a mean over B sequences
        makes every adjoint B times smaller than a sum.
    thresholds : sequence of float
        Positive; ``inf`` for no clipping, to compare with.
    kind : str
        ``timestep``. Norm, value and adaptive clipping act on parameter gradients after the backward pass and leave
        the curve as it is; :func:`gradscope.diagnostics.threshold_table` says what they would have done.
    site : str, optional
        May be left out where there is one only.
    samples : int or None
        Sequences to take, evenly spaced over the batch; None for all.

    Returns
    -------
    ClipWhatIf

    Raises
    ------
    NothingToRecordError
        The model has no recurrent layer.
    UnknownNameError
        A site or kind that does not exist.
    SettingError
        No threshold, or one that is not positive; another kind of clipping; several sites and none chosen; the site's
        module was not called exactly once; a loss that is no scalar or has no graph.

    Examples
    --------
    >>> import torch, gradscope
    >>> rnn, x = torch.nn.RNN(2, 8), torch.randn(30, 4, 2)
    >>> measured = gradscope.clip_whatif(rnn, lambda: rnn(x)[0][-1].sum(), [float("inf"), 1e-3])
    >>> measured.thresholds
    (inf, 0.001)
    """
    limits = _checked(thresholds, kind, samples)
    target, info = choose_site(model, site)
    if target.kind != "fused":
        raise SettingError(f"{info.site!r} is a {info.module_class}; clip_whatif needs nn.RNN, nn.LSTM or nn.GRU.")
    with torch.enable_grad(), catching(target, samples) as caught:
        loss = closure()
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise SettingError("the closure must return the loss, a tensor with one element, and not call backward().")
    watched = caught.one(info, "clip_whatif")
    if not watched.edges or not loss.requires_grad:
        raise SettingError(f"the loss has no graph that leads back to {info.module!r} (no_grad, or all frozen).")
    call = replace(watched.call, **watched.gradients([loss], retain_graph=False))  # type: ignore[arg-type]
    place = info.layer, int(info.reverse)
    # Adjoints hold whole trajectories: only the curves of one threshold are kept before the next is computed.
    curves = [_curves(stack_adjoints(call, layers=[info.layer], clip=_clamp(c))[place], c) for c in limits]
    return ClipWhatIf(
        info=info,
        thresholds=limits,
        lags=np.arange(call.input.shape[0]),
        norms={name: np.stack([found[name] for found, _ in curves]) for name in curves[0][0]},
        clipped=np.stack([share for _, share in curves]),
        rows=watched.selection.rows.numpy(),
    )


def _checked(thresholds: Sequence[float] | float, kind: str, samples: int | None) -> tuple[float, ...]:
    if kind not in CLIP_KINDS:
        raise UnknownNameError("clip kind", kind, CLIP_KINDS)
    if kind != "timestep":
        raise SettingError(
            f"{kind} clipping acts on parameter gradients after the backward pass and leaves the decay curve as it is; "
            "for what a threshold would have done to the steps, see gradscope.diagnostics.threshold_table."
        )
    given = [thresholds] if isinstance(thresholds, int | float) else thresholds
    limits = tuple(float(c) for c in given)
    if not limits or not all(c > 0 for c in limits):
        raise SettingError(f"thresholds must be positive (inf for no clipping), got {limits}.")
    if samples is not None and samples < 1:
        raise SettingError(f"samples must be a positive number or None, got {samples}.")
    return limits


def _clamp(threshold: float) -> Callable[[Tensor], object] | None:
    return None if threshold == float("inf") else lambda delta: delta.clamp_(-threshold, threshold)


def _curves(adjoints: Adjoints, threshold: float) -> tuple[dict[str, Floats], Floats]:
    """Return the norms (B, L) by quantity, and the share of clipped elements (L,)."""
    assert adjoints.hidden is not None
    assert adjoints.gates is not None
    values = {"hidden": adjoints.hidden} | ({} if adjoints.cell is None else {"cell": adjoints.cell})
    order = adjoints.order
    curves = {name: order.to_lag(norms(value)).numpy() for name, value in values.items()}
    limited = order.to_lag((adjoints.gates.abs() >= threshold).double().mean(2))
    return curves, torch.nanmean(limited, 0).numpy()
