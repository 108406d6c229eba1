"""Custom recurrent layers: how a fused, scripted or looped layer tells gradscope its recurrence.

The protocol is one function, ``step(x_t, state) -> state``: given one timestep (B, I) and the state (a tensor (B, H) or
a tuple of them), return the next state. It must compute what the layer computes; the layer itself stays as it is and
may be as fused as it likes. The first state is what ``hidden`` means, the second, if any, is ``cell``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture import host
from gradscope.capture.host import brought, weight
from gradscope.errors import AdapterError

State = Any  # a tensor (B, H) or a tuple of tensors


@dataclass(frozen=True)
class Adapter:
    """How to replay a custom layer.

    Attributes
    ----------
    step : callable or None
        ``step(module, x_t, state) -> state``. Without one the layer is a black box, of which only the gradient of the
        input is recorded.
    initial_state : callable or None
        ``initial_state(module, x) -> state`` for the layer's own input ``x``, when the caller gives none.
    output : callable
        ``output(module, state) -> output_t`` (B, H); the first state by default.
    batch_first : bool or None
        Whether the layer's input is (B, T, I); the module's attribute ``batch_first`` when None, else True.
    curve : str
        The quantity whose decay describes the layer: ``cell`` for one with a cell state, ``hidden`` by default.
    gates : tuple of str
        Gate names, for labels.
    time_axis : int or None
        Of a black box whose input has two axes: which of them is time, 0 or 1.
    """

    step: Callable[[nn.Module, Tensor, State], State] | None = None
    initial_state: Callable[[nn.Module, Tensor], State] | None = None
    output: Callable[[nn.Module, State], Tensor] | None = None
    batch_first: bool | None = None
    curve: str = ""
    gates: tuple[str, ...] = ()
    time_axis: int | None = None

    def time_first(self, module: nn.Module) -> bool:
        """Return whether the layer's input is (T, B, I)."""
        batch_first = self.batch_first
        if batch_first is None:
            found: list[Any] = [m.batch_first for m in module.modules() if hasattr(m, "batch_first")]
            batch_first = bool(found[0]) if found else True
        return not batch_first


_REGISTRY: dict[type[nn.Module], Adapter] = {}


def register_adapter(
    layer: type[nn.Module],
    *,
    step: Callable[[nn.Module, Tensor, State], State] | None = None,
    initial_state: Callable[[nn.Module, Tensor], State] | None = None,
    output: Callable[[nn.Module, State], Tensor] | None = None,
    batch_first: bool | None = None,
    curve: str = "",
    gates: tuple[str, ...] = (),
    time_axis: int | None = None,
) -> Adapter:
    """Let a custom layer be recorded like ``nn.LSTM``: exact adjoints from its own ``step``.

    The layer's ``forward(x, state=None)`` returns the outputs of all timesteps, or ``(outputs, final_state)``. Check
    the adapter once with :func:`check_adapter`.

    Parameters
    ----------
    layer : type
        A subclass of ``nn.Module``; subclasses of it are covered too.
    step : callable, optional
        ``step(module, x_t, state) -> state``; the layer's own method ``step(x_t, state)`` by default.
    initial_state : callable, optional
        ``initial_state(module, x) -> state``; the layer's own method ``initial_state(x)`` by default.
    output : callable, optional
        ``output(module, state) -> output_t``; the first state by default.
    batch_first : bool, optional
        Whether the input is (B, T, I); the layer's attribute ``batch_first``, else True.
    curve : str, optional
        ``hidden`` or ``cell``.
    gates : tuple of str, optional
    time_axis : {0, 1}, optional
        Of a layer without a step that takes a whole window, (B, T) or (T, B): which axis is time. It is recorded by the
        gradient of its input when it is named in ``sites=``.

    Returns
    -------
    Adapter

    Raises
    ------
    AdapterError
        ``layer`` is no module class, or has no ``step`` and none was given.

    Examples
    --------
    A layer whose steps are hidden, such as a scripted one, with a method that makes one of them:

    >>> import torch, gradscope
    >>> class Leaky(torch.nn.Module):
    ...     def forward(self, x):  # (B, T, I)
    ...         h, outputs = torch.zeros(len(x), x.shape[2]), []
    ...         for x_t in x.unbind(1):
    ...             h = self.step(x_t, h)
    ...             outputs.append(h)
    ...         return torch.stack(outputs, 1)
    ...
    ...     def step(self, x_t, h):
    ...         return 0.9 * h + 0.1 * x_t
    ...
    ...     def initial_state(self, x):
    ...         return torch.zeros(len(x), x.shape[2])
    >>> adapter = gradscope.register_adapter(Leaky)
    >>> leaky, x = Leaky(), torch.randn(3, 30, 2, requires_grad=True)
    >>> gradscope.check_adapter(leaky, x)
    >>> snapshot = gradscope.snapshot(leaky, lambda: leaky(x)[:, -1].sum())
    >>> round(snapshot.decay().half_life, 2)  # ln .5 / ln .9
    6.58
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        hint = ": pass the class, not an instance" if isinstance(layer, nn.Module) else ""
        raise AdapterError(f"register_adapter takes a subclass of nn.Module, not {layer!r}{hint}")
    if time_axis is not None and time_axis not in (0, 1):
        raise AdapterError(
            f"time_axis must be 0 or 1, the axis of a (T, B) or (B, T) input that is time, not {time_axis!r}"
        )
    if step is None and time_axis is None:
        if not callable(getattr(layer, "step", None)):
            raise AdapterError(f"{layer.__name__} has no method step(x_t, state): pass step=")
        step = _own_step
    if initial_state is None and callable(getattr(layer, "initial_state", None)):
        initial_state = _own_initial_state
    adapter = Adapter(step, initial_state, output, batch_first, curve, gates, time_axis)
    _REGISTRY[layer] = adapter
    return adapter


def _own_step(module: Any, x: Tensor, state: State) -> State:
    return module.step(x, state)


def _own_initial_state(module: Any, x: Tensor) -> State:
    return module.initial_state(x)


def adapter_for(module: nn.Module) -> Adapter | None:
    """Return the adapter registered for the module's class or a base of it."""
    return next((_REGISTRY[kind] for kind in type(module).__mro__ if kind in _REGISTRY), None)


def tensors_in(value: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a state, however nested."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, tuple | list):
        return tuple(tensor for part in value for tensor in tensors_in(part))
    return ()


def mapped(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """Return a state, however nested, with every tensor of it changed; None where there is none."""
    if state is None:
        return None
    return change(state) if isinstance(state, Tensor) else tuple(mapped(change, part) for part in state)


class _Runner(nn.Module):
    """Run part of an adapter through ``functional_call``, so that it sees the parameters on the host, in any type."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        copied = {name: weight(value) for name, value in (*self.named_parameters(), *self.named_buffers())}
        host.wait()
        self.values = {name: value.to(dtype) if value.is_floating_point() else value for name, value in copied.items()}

    def run(self, part: Callable[..., Any], *args: Any) -> Any:
        return torch.func.functional_call(self, self.values, (part, *args))

    def forward(self, part: Callable[..., Any], *args: Any) -> Any:
        return part(self.layer, *args)


@dataclass(frozen=True)
class Replay:
    """A layer run step by step with autograd: every state is a node of the graph.

    Attributes
    ----------
    x : Tensor, shape (T, B, I)
    states : list of tuple of Tensor
    outputs : Tensor, shape (T, B, N)
    """

    x: Tensor
    states: list[tuple[Tensor, ...]]
    outputs: Tensor


def replay(module: nn.Module, adapter: Adapter, x: Tensor, state: State | None, dtype: torch.dtype) -> Replay:
    """Run ``adapter.step`` over ``x`` (T, B, I) from ``state``, on the host in ``dtype``, keeping the graph.

    Without a state, from the one that the adapter begins with.
    """
    assert adapter.step is not None
    runner = _Runner(module, dtype)
    with torch.enable_grad():
        x = x.detach().to(dtype).requires_grad_()
        if state is None:
            ordered = x.detach() if adapter.time_first(module) else x.detach().transpose(0, 1)
            state = runner.run(first_state, adapter, ordered)
        # Requires a gradient so that every state after it is a node, also when x and the parameters are constants.
        current = mapped(lambda part: part.detach().to(dtype).requires_grad_(), state)
        states, outputs = [], []
        for x_t in x:
            current = runner.run(adapter.step, x_t, current)
            states.append(tensors_in(current))
            outputs.append(states[-1][0] if adapter.output is None else runner.run(adapter.output, current))
        return Replay(x, states, torch.stack(outputs))


def check_adapter(module: nn.Module, x: Tensor, state: State | None = None, *, rtol: float = 1e-4) -> None:
    """Compare a layer's adapter with autograd through the layer itself.

    Parameters
    ----------
    module : nn.Module
        An instance of a registered layer.
    x : Tensor
        An input as the layer takes it.
    state : tensor or tuple, optional
        Initial state.
    rtol : float
        Largest relative difference allowed.

    Raises
    ------
    AdapterError
        No adapter is registered, or outputs or input gradients differ; the message says by how much, and where first.

    Examples
    --------
    >>> import torch, gradscope
    >>> class Integrator(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.cumsum(1)
    ...
    ...     def step(self, x_t, h):
    ...         return h + 2 * x_t  # wrong
    ...
    ...     def initial_state(self, x):
    ...         return torch.zeros(len(x), x.shape[2])
    >>> adapter = gradscope.register_adapter(Integrator)
    >>> gradscope.check_adapter(Integrator(), torch.randn(3, 30, 2))
    Traceback (most recent call last):
        ...
    gradscope.errors.AdapterError: ...
    """
    adapter = adapter_for(module)
    if adapter is None or adapter.step is None:
        raise AdapterError(f"no adapter is registered for {type(module).__name__}: call register_adapter first")
    time_first = adapter.time_first(module)
    leaf = x.detach().clone().requires_grad_()
    returned = module(leaf) if state is None else module(leaf, state)
    own = returned if isinstance(returned, Tensor) else returned[0]
    weights = torch.linspace(-1, 1, own.numel(), dtype=own.dtype, device=own.device).reshape(own.shape)
    (own_gradient,) = torch.autograd.grad((own * weights).sum(), leaf)
    steps = brought(x if time_first else x.transpose(0, 1))
    ours = replay(module, adapter, steps, mapped(brought, state), own.dtype)
    told = (brought(value) for value in (own, weights, own_gradient))
    ordered = [value if time_first else value.transpose(0, 1) for value in told]
    _compare(module, "outputs", ordered[0], ours.outputs.detach(), rtol)
    (gradient,) = torch.autograd.grad((ours.outputs * ordered[1]).sum(), ours.x)
    _compare(module, "input gradients", ordered[2], gradient, rtol)


def first_state(module: nn.Module, adapter: Adapter, x: Tensor) -> State:
    """Return the state a layer starts from when its caller gives none."""
    if adapter.initial_state is None:
        raise AdapterError(
            f"{type(module).__name__} was called without a state and its adapter has no initial_state: pass one to "
            "register_adapter"
        )
    return adapter.initial_state(module, x)


def _compare(module: nn.Module, what: str, expected: Tensor, found: Tensor, rtol: float) -> None:
    name = type(module).__name__
    if expected.shape != found.shape:
        raise AdapterError(
            f"{name}: {what} of the layer are {tuple(expected.shape)}, of its adapter {tuple(found.shape)} (time first)"
        )
    scale = float(expected.abs().max()) or 1.0
    per_step = (expected - found).abs().flatten(1).amax(1) / scale
    worst = float(per_step.max())
    if not worst <= rtol:
        first = int((~(per_step <= rtol)).nonzero()[0])
        raise AdapterError(
            f"{name}: {what} of the adapter differ from the layer's by {worst:.2g} of their largest value, first at "
            f"timestep {first}; step() must compute what forward() computes"
        )
