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

from gradscope.capture.guard import Observers, tell
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

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...


_CLIPPING = "clipping"
_originals: list[tuple[Any, str, Callable[..., Any]]] = []
_rerouted: list[tuple[FunctionType, CodeType, Callable[..., Any]]] = []
# Whether a call is being told of already: a tool that wraps ours keeps it alive under the next recorder's.
_telling = threading.local()
# The total norms just measured, and how: torch hands the norm on, not its type.
_measured: deque[tuple[weakref.ref[Tensor], float]] = deque(maxlen=8)


def observe_clipping(observer: ClipObserver) -> None:
    """Begin to tell ``observer`` of clipping calls."""
    _observers.add(observer)


def ignore_clipping(observer: ClipObserver) -> None:
    """Stop telling ``observer``; with the last one torch's own functions are back in place."""
    _observers.discard(observer)


def observers() -> Iterable[ClipObserver]:
    """Who is told."""
    return _observers


def _install() -> None:
    if _originals or _rerouted:
        return
    if hasattr(clip_grad, "_clip_grads_with_norm_"):
        with_norm = _seen(clip_grad._clip_grads_with_norm_, _norm_given)
        _replace([clip_grad], "_clip_grads_with_norm_", with_norm)
        _replace([clip_grad], "_get_total_norm", _total_norm(clip_grad._get_total_norm))
        if hasattr(utils, "get_total_norm"):
            _replace([utils], "get_total_norm", _total_norm(utils.get_total_norm))
        if hasattr(utils, "clip_grads_with_norm_"):  # its public name, bound to the function itself
            _replace([utils], "clip_grads_with_norm_", _seen(utils.clip_grads_with_norm_, _norm_given))
    else:  # older torch
        _replace([clip_grad, utils], "clip_grad_norm_", _seen(utils.clip_grad_norm_, _norm_asked))
    if not _reroute_value():
        _replace([clip_grad, utils], "clip_grad_value_", _seen(utils.clip_grad_value_, _value_asked))


def _reroute_value() -> bool:
    """Let torch's function run ours; whether that can be done."""
    inner = inspect.unwrap(clip_grad.clip_grad_value_)
    if not isinstance(inner, FunctionType) or inner.__closure__ is not None:
        return False
    if inner.__code__.co_varnames[:3] != ("parameters", "clip_value", "foreach") or inner.__code__.co_argcount != 3:
        return False
    own = FunctionType(inner.__code__, inner.__globals__, inner.__name__, inner.__defaults__)
    _rerouted.append((inner, inner.__code__, _seen(own, _value_asked)))
    inner.__code__ = _instead_of_value.__code__
    return True


def _instead_of_value(parameters: Any, clip_value: Any, foreach: Any = None) -> None:
    # Runs as torch's function, with the globals of its module.
    from gradscope.capture.training import clipping

    return clipping._rerouted[0][-1](parameters, clip_value, foreach)


def _replace(places: list[Any], name: str, wrapped: Callable[..., Any]) -> None:
    original: Callable[..., Any] = getattr(places[0], name)
    for place in places:
        if getattr(place, name, None) is original:
            _originals.append((place, name, original))
            setattr(place, name, wrapped)


def _uninstall() -> None:
    while _originals:
        place, name, original = _originals[-1]
        if getattr(getattr(place, name), "__wrapped__", None) is original:
            setattr(place, name, original)
        _originals.pop()
    while _rerouted:
        function, code, _ = _rerouted[-1]
        function.__code__ = code
        _rerouted.pop()


_observers: Observers[ClipObserver] = Observers(_install, _uninstall)


def _seen(original: Callable[..., Any], describe: Callable[..., tuple[ClipCall, Tensor | None]]) -> Callable[..., Any]:
    """Return a clipping function that tells of itself; ``describe`` makes a call of its arguments."""

    @functools.wraps(original)
    def seen(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if not _observers.held or getattr(_telling, "now", False):
            return original(parameters, *args, **kwargs)
        if not isinstance(parameters, Tensor):
            parameters = list(parameters)  # gone through twice
        noted = None
        try:
            noted = _before(describe, parameters, args, kwargs)
        except Exception as error:
            with contextlib.suppress(Exception):
                _observers.harmed(_CLIPPING, error)
        _telling.now = True
        try:
            result = original(parameters, *args, **kwargs)
        finally:
            _telling.now = False
        try:
            if noted is not None:
                _after(noted, result)
        except Exception as error:
            with contextlib.suppress(Exception):
                _observers.harmed(_CLIPPING, error)
        return result

    return seen


@dataclass
class _Noted:
    """A call under way, its total norm where that is known before, and what the observers have noted."""

    call: ClipCall
    norm: Tensor | None
    by: list[tuple[ClipObserver, Any]]


def _before(
    describe: Callable[..., tuple[ClipCall, Tensor | None]], parameters: Any, args: Any, kwargs: Any
) -> _Noted | None:
    try:
        call, norm = describe([parameters] if isinstance(parameters, Tensor) else parameters, *args, **kwargs)
    except (TypeError, ValueError):  # torch refuses it
        return None
    noted = _Noted(call, norm, [])
    _observers.tell(_CLIPPING, lambda observer: noted.by.append((observer, observer.before_clip(call))))
    return noted


def _after(noted: _Noted, result: Any) -> None:
    measured = noted.norm if noted.norm is not None else result
    for observer, before in noted.by:
        tell(observer, _CLIPPING, functools.partial(_tell_after, noted.call, before, measured))


def _tell_after(call: ClipCall, before: Any, measured: Any, observer: ClipObserver) -> None:
    observer.after_clip(call, before, measured)


def _norm_given(
    parameters: list[Tensor], max_norm: Any, total_norm: Any, foreach: Any = None, *_: Any, **__: Any
) -> tuple[ClipCall, Tensor | None]:
    norm = total_norm if isinstance(total_norm, Tensor) else torch.as_tensor(total_norm, device="cpu")
    return ClipCall(parameters, "norm", float(max_norm), _type_of(total_norm), foreach), norm


def _norm_asked(
    parameters: list[Tensor], max_norm: Any, norm_type: Any = 2.0, *_: Any, **__: Any
) -> tuple[ClipCall, Tensor | None]:
    return ClipCall(parameters, "norm", float(max_norm), float(norm_type)), None


def _value_asked(
    parameters: list[Tensor], clip_value: Any, foreach: Any = None, *_: Any, **__: Any
) -> tuple[ClipCall, Tensor | None]:
    return ClipCall(parameters, "value", float(clip_value), foreach=foreach), None


def _total_norm(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_total_norm(tensors: Any, norm_type: Any = 2.0, *args: Any, **kwargs: Any) -> Any:
        result = original(tensors, norm_type, *args, **kwargs)
        with contextlib.suppress(Exception):
            _measured.append((weakref.ref(result), float(norm_type)))
        return result

    return get_total_norm


def _type_of(total_norm: Any) -> float:
    return next((kind for held, kind in reversed(tuple(_measured)) if held() is total_norm), float("nan"))


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
def adaptive_scales(
    parameters: Iterable[Tensor], factor: float, eps: float = 1e-3
) -> tuple[list[Tensor | None], tuple[float, float, float, float]]:
    """Return what each gradient row is multiplied with, relative to the norm of its weights (Brock et al. 2021).

    Returns
    -------
    scales : list of Tensor or None
        One for each parameter, in the shape that its gradient is multiplied with; None where there is none.
    effect : tuple of float
        Total 2-norms before and after, the cosine between raw and clipped gradient, and the share of rows clipped.
    """
    before = after = dot = 0.0
    changed = rows = 0
    scales: list[Tensor | None] = []
    for parameter in parameters:
        if parameter.grad is None:
            scales.append(None)
            continue
        raw = parameter.grad.to(widest(parameter.device))
        raw = raw.flatten(1) if parameter.dim() > 1 else raw.reshape(-1, 1)
        weight = parameter.to(raw.dtype).reshape(raw.shape)
        norm = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
        limit = factor * torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(eps)
        scale = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
        scales.append(scale.to(parameter.grad.dtype).reshape(-1, *[1] * (parameter.dim() - 1)))
        squared = norm.pow(2)
        before += float(squared.sum())
        after += float((squared * scale.pow(2)).sum())
        dot += float((squared * scale).sum())
        changed += int((norm > limit).sum())
        rows += len(norm)
    cosine = dot / (before * after) ** 0.5 if before > 0 and after > 0 else float("nan")
    return scales, (before**0.5, after**0.5, cosine, changed / rows if rows else 0.0)
