"""See torch's clipping functions while a recorder is open, whoever calls them.

``clip_grad_norm_`` hands over to ``_clip_grads_with_norm_`` with the norm that ``_get_total_norm`` has just measured;
replacing these inner functions sees every call, also of a ``clip_grad_norm_`` imported by name before, and gets the
norm for free.
``clip_grad_value_`` has no such seam: what its function object runs is replaced, so that a name it was imported under
before leads here as well; where that cannot be done the public names are.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import utils
from torch.nn.utils import clip_grad

from gradscope.capture.host import brought, widest


@dataclass(frozen=True)
class ClipCall:
    """A call of one of torch's clipping functions.

    ``norm_type`` is NaN where it is not known (a total norm that the script computed itself), ``foreach`` None where
    it was not said.
    """

    parameters: list[Tensor]
    kind: str
    threshold: float
    norm_type: float = 2.0
    foreach: bool | None = None


class ClipObserver(Protocol):
    """Who is told of clipping calls."""

    def before_clip(self, call: ClipCall) -> Any:
        """Measure what the call is about to change; what is returned comes back in ``after_clip``."""
        ...

    def after_clip(self, call: ClipCall, before: Any, total_norm: Tensor | None) -> None:
        """Take a clipping call that has been carried out."""
        ...


_observers: list[ClipObserver] = []
_lock = threading.Lock()
_originals: dict[tuple[Any, str], Callable[..., Any]] = {}
# Whether a call is being told of already: a tool that wraps ours keeps it alive under the next recorder's.
_telling = threading.local()
# The total norms just measured, and how: torch hands the norm on, not its type.
_measured: deque[tuple[weakref.ref[Tensor], float]] = deque(maxlen=8)


def observe_clipping(observer: ClipObserver) -> None:
    """Begin to tell ``observer`` of clipping calls."""
    with _lock:
        _observers.append(observer)  # first: where installing fails, leaving undoes what was installed
        if len(_observers) == 1:
            _install()


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
        _replace([clip_grad], "_get_total_norm", _total_norm)
        if hasattr(utils, "get_total_norm"):
            _replace([utils], "get_total_norm", _total_norm)
        if hasattr(utils, "clip_grads_with_norm_"):  # its public name, bound to the function itself
            _replace([utils], "clip_grads_with_norm_", _with_norm)
    else:  # older torch
        _replace([clip_grad, utils], "clip_grad_norm_", _public_norm)
    if not _reroute_value():
        _replace([clip_grad, utils], "clip_grad_value_", _value)


_rerouted: list[tuple[FunctionType, CodeType]] = []


def _reroute_value() -> bool:
    """Let torch's function run ours; whether that can be done."""
    inner = inspect.unwrap(clip_grad.clip_grad_value_)
    if not isinstance(inner, FunctionType) or inner.__closure__ is not None:
        return False
    if inner.__code__.co_varnames[:3] != ("parameters", "clip_value", "foreach") or inner.__code__.co_argcount != 3:
        return False
    _rerouted.append((inner, inner.__code__))
    inner.__code__ = _instead_of_value.__code__
    return True


def _instead_of_value(parameters: Any, clip_value: Any, foreach: Any = None) -> None:
    # Runs with the globals of torch's module.
    from gradscope.capture.training import clipping

    return clipping.value_clip_seen(parameters, clip_value, foreach)


def value_clip_seen(parameters: Any, clip_value: Any, foreach: Any = None) -> None:
    """Clip as torch does and tell the observers; called in place of torch's own code."""
    (function, code), *_ = _rerouted
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    _value(own)(parameters, clip_value, foreach)


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
    while _rerouted:
        function, code = _rerouted.pop()
        function.__code__ = code


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _told(call: ClipCall | None, norm: Tensor | None, carry_out: Callable[[], Any]) -> Any:
    if call is None or getattr(_telling, "now", False):
        return carry_out()
    noted = [(observer, observer.before_clip(call)) for observer in tuple(_observers)]
    _telling.now = True
    try:
        result = carry_out()
    finally:
        _telling.now = False
    measured = norm if norm is not None else result
    for observer, before in noted:
        observer.after_clip(call, before, measured)
    return result


def _call(
    parameters: Any, kind: str, threshold: Any, norm_type: Any = 2.0, foreach: Any = None
) -> tuple[Any, ClipCall | None]:
    """Return the parameters, as something that can be gone through twice, and the call; None for what torch refuses."""
    try:
        listed = _listed(parameters)
        parameters = listed
        return parameters, ClipCall(listed, kind, float(threshold), float(norm_type), foreach)
    except Exception:
        return parameters, None


def _total_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_total_norm(tensors: Any, norm_type: Any = 2.0, *args: Any, **kwargs: Any) -> Any:
        result = original(tensors, norm_type, *args, **kwargs)
        with contextlib.suppress(Exception):
            _measured.append((weakref.ref(result), float(norm_type)))
        return result

    return get_total_norm


def _type_of(total_norm: Any) -> float:
    return next((kind for held, kind in reversed(_measured) if held() is total_norm), float("nan"))


def _with_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grads_with_norm_(
        parameters: Any, max_norm: Any, total_norm: Any, foreach: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        parameters, call = _call(parameters, "norm", max_norm, _type_of(total_norm), foreach)
        norm = total_norm if isinstance(total_norm, Tensor) else torch.as_tensor(total_norm)
        return _told(call, norm, lambda: original(parameters, max_norm, total_norm, foreach, *args, **kwargs))

    return clip_grads_with_norm_


def _public_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_norm_(parameters: Any, max_norm: Any, norm_type: Any = 2.0, *args: Any, **kwargs: Any) -> Any:
        parameters, call = _call(parameters, "norm", max_norm, norm_type)
        return _told(call, None, lambda: original(parameters, max_norm, norm_type, *args, **kwargs))

    return clip_grad_norm_


def _value(original: Callable[..., Any]) -> Callable[..., Any]:
    def clip_grad_value_(parameters: Any, clip_value: Any, foreach: Any = None, *args: Any, **kwargs: Any) -> Any:
        parameters, call = _call(parameters, "value", clip_value, foreach=foreach)
        return _told(call, None, lambda: original(parameters, clip_value, foreach, *args, **kwargs))

    return clip_grad_value_


def gradient_norms(parameters: Iterable[Tensor], norm_type: float = 2.0) -> list[float]:
    """Return the norm of every gradient, in float64 where its device has that; NaN where there is none."""
    grads = [p.grad.detach() if p.grad is not None else None for p in parameters]
    by_device: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
    for place, g in enumerate(grads):
        if g is not None:
            dense = g.coalesce().values() if g.is_sparse else g
            # Of complex gradients, as torch's clipping has it, the norm of their moduli.
            by_device[g.device][place] = dense.abs() if dense.is_complex() else dense
    norms = [math.nan] * len(grads)
    for device, present in by_device.items():
        # Reduced where they are: a copy of the gradients would be as large as the model.
        measured = torch._foreach_norm(list(present.values()), norm_type, dtype=widest(device))
        for place, norm in zip(present, brought(torch.stack(measured)).tolist(), strict=True):
            norms[place] = norm
    return norms


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
        raw = parameter.grad.detach().to(widest(parameter.device))
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
        raw = parameter.grad.to(widest(parameter.device))
        raw = raw.flatten(1) if parameter.dim() > 1 else raw.reshape(-1, 1)
        weight = parameter.to(raw.dtype).reshape(raw.shape)
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
