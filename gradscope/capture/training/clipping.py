"""See torch's clipping functions while a recorder is open, whoever calls them.

``clip_grad_norm_`` hands over to ``_clip_grads_with_norm_`` with the norm it has just measured; replacing that inner
function sees every call, also of a ``clip_grad_norm_`` imported by name before, and gets the norm for free.
``clip_grad_value_`` has no such seam: the public name is replaced, in both places where it can be looked up.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import utils
from torch.nn.utils import clip_grad


class ClipObserver(Protocol):
    """Who is told of clipping calls."""

    def before_clip(self, parameters: list[Tensor], kind: str, threshold: float) -> Any:
        """Measure what the call is about to change; what is returned comes back in ``after_clip``."""
        ...

    def after_clip(
        self, parameters: list[Tensor], kind: str, threshold: float, before: Any, total_norm: Tensor | None
    ) -> None:
        """Take a clipping call that has been carried out."""
        ...


_observers: list[ClipObserver] = []
_lock = threading.Lock()
_originals: dict[tuple[Any, str], Callable[..., Any]] = {}


def observe_clipping(observer: ClipObserver) -> None:
    """Begin to tell ``observer`` of clipping calls."""
    with _lock:
        if not _observers:
            _install()
        _observers.append(observer)


def ignore_clipping(observer: ClipObserver) -> None:
    """Stop telling ``observer``; with the last one torch's own functions are back in place."""
    with _lock:
        if observer in _observers:
            _observers.remove(observer)
            if not _observers:
                _uninstall()


def _install() -> None:
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        _replace([clip_grad], "_clip_grads_with_norm_", _with_norm)
        if hasattr(utils, "clip_grads_with_norm_"):  # its public name, bound to the function itself
            _replace([utils], "clip_grads_with_norm_", _with_norm)
    else:  # older torch
        _replace([clip_grad, utils], "clip_grad_norm_", _public_norm)
    _replace([clip_grad, utils], "clip_grad_value_", _value)


def _replace(places: list[Any], name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original: Callable[..., Any] = getattr(places[0], name)
    wrapped = functools.update_wrapper(wrap(original), original)
    for place in places:
        if getattr(place, name, None) is original:
            _originals[place, name] = original
            setattr(place, name, wrapped)


def _uninstall() -> None:
    for (place, name), original in _originals.items():
        if getattr(getattr(place, name), "__wrapped__", None) is original:
            setattr(place, name, original)
    _originals.clear()


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _told(
    parameters: list[Tensor], kind: str, threshold: Any, norm: Tensor | None, carry_out: Callable[[], Any]
) -> Any:
    noted = [(observer, observer.before_clip(parameters, kind, float(threshold))) for observer in tuple(_observers)]
    result = carry_out()
    measured = norm if norm is not None else result
    for observer, before in noted:
        observer.after_clip(parameters, kind, float(threshold), before, measured)
    return result


def _with_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grads_with_norm_(parameters: Any, max_norm: Any, total_norm: Tensor, *args: Any, **kwargs: Any) -> Any:
        parameters = _listed(parameters)
        return _told(
            parameters,
            "norm",
            max_norm,
            total_norm,
            lambda: original(parameters, max_norm, total_norm, *args, **kwargs),
        )

    return clip_grads_with_norm_


def _public_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_norm_(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = _listed(parameters)
        return _told(parameters, "norm", max_norm, None, lambda: original(parameters, max_norm, *args, **kwargs))

    return clip_grad_norm_


def _value(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_value_(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> Any:
        parameters = _listed(parameters)
        return _told(parameters, "value", clip_value, None, lambda: original(parameters, clip_value, *args, **kwargs))

    return clip_grad_value_


def gradient_norms(parameters: Iterable[Tensor]) -> list[float]:
    """Return the 2-norm of every gradient, in float64; NaN where there is none."""
    listed = list(parameters)
    grads = [p.grad.detach() if p.grad is not None else None for p in listed]
    dense = [g.coalesce().values() if g is not None and g.is_sparse else g for g in grads]
    present = [g for g in dense if g is not None]
    if not present:
        return [float("nan")] * len(listed)
    measured = torch._foreach_norm(present, 2, dtype=torch.float64)
    values = iter(torch.stack([norm.to(measured[0].device) for norm in measured]).tolist())
    return [next(values) if g is not None else float("nan") for g in dense]


def value_clip_cosine(parameters: Iterable[Tensor], threshold: float) -> tuple[float, float, float, float]:
    """Return what clipping every element at ``threshold`` will do.

    Returns
    -------
    norm_before, norm_after, cosine, clipped : float
        Total 2-norms, the cosine between raw and clipped gradient, and the share of elements changed.
    """
    before = after = dot = 0.0
    changed = elements = 0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        raw = parameter.grad.detach().double()
        clipped = raw.clamp(-threshold, threshold)
        before += float(raw.pow(2).sum())
        after += float(clipped.pow(2).sum())
        dot += float((raw * clipped).sum())
        changed += int((raw.abs() > threshold).sum())
        elements += raw.numel()
    cosine = dot / (before * after) ** 0.5 if before > 0 and after > 0 else float("nan")
    return before**0.5, after**0.5, cosine, changed / elements if elements else 0.0


@torch.no_grad()
def clip_grad_adaptive_(
    parameters: Iterable[Tensor], factor: float, eps: float = 1e-3
) -> tuple[float, float, float, float]:
    """Clip each gradient row relative to the norm of its weights (Brock et al. 2021), in place.

    Returns
    -------
    norm_before, norm_after, cosine, clipped : float
        Total 2-norms, the cosine between raw and clipped gradient, and the share of rows clipped.
    """
    before = after = dot = 0.0
    changed = rows = 0
    for parameter in parameters:
        if parameter.grad is None:
            continue
        raw = parameter.grad.double().flatten(1) if parameter.dim() > 1 else parameter.grad.double().reshape(-1, 1)
        weight = parameter.double().reshape(raw.shape)
        norm = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
        limit = factor * torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(eps)
        scale = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
        parameter.grad.mul_(scale.to(parameter.grad.dtype).reshape(-1, *[1] * (parameter.dim() - 1)))
        squared = norm.pow(2)
        before += float(squared.sum())
        after += float((squared * scale.pow(2)).sum())
        dot += float((squared * scale).sum())
        changed += int((norm > limit).sum())
        rows += len(norm)
    cosine = dot / (before * after) ** 0.5 if before > 0 and after > 0 else float("nan")
    return before**0.5, after**0.5, cosine, changed / rows if rows else 0.0
