"""Catch the forward calls of one recurrent module while the user's code runs, for the diagnostics on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gradscope.adjoint import StackCall
from gradscope.capture import host
from gradscope.capture.calls.cells import states_of
from gradscope.capture.calls.fused import open_call, returned_by, settled
from gradscope.capture.calls.prehook import CannotRecordError
from gradscope.capture.calls.views import behind_views
from gradscope.capture.layers.discovery import Target, discover, select
from gradscope.capture.layers.rows import Selection
from gradscope.capture.torch_private import remove_global_hook
from gradscope.errors import NothingToRecordError, SettingError
from gradscope.schema import SiteInfo


@dataclass
class CaughtCall:
    """One forward call of a fused module.

    Attributes
    ----------
    call : StackCall
        Sampled rows, detached.
    selection : Selection
    edges : dict of str to (GradientEdge, callable)
        Where the graph leaves the module (``grad_output``, ``grad_hn``, ``grad_cn``), and what brings a gradient from
        there into the shape of what the module returned. Edges rather than tensors, and behind the module's own views,
        for the user's code may edit an output in place. Empty without a graph.
    """

    call: StackCall
    selection: Selection
    edges: dict[str, tuple[GradientEdge, Callable[[Tensor], Tensor]]]

    def gradients(
        self, values: Sequence[Tensor], seeds: Sequence[Tensor] | None = None, retain_graph: bool = True
    ) -> dict[str, Tensor]:
        """Return what of d ``values`` arrives at the module's outputs directly, time-major, by name."""
        if not values:
            return {}
        edges = [edge for edge, _ in self.edges.values()]
        arrived = torch.autograd.grad(values, edges, seeds, retain_graph=retain_graph, allow_unused=True)
        with torch.no_grad():
            found = {name: g for name, g in zip(self.edges, arrived, strict=True) if g is not None}
            found = {name: self.edges[name][1](gradient) for name, gradient in found.items()}
            taken = {
                name: self.selection.sequence(g) if name == "grad_output" else self.selection.state(g)
                for name, g in found.items()
            }
            host.wait()
            return {name: self.selection.settled(gradient) for name, gradient in taken.items()}


@dataclass
class StepCall:
    """One call of a cell: detached input and states, (B, N) each."""

    x: Tensor
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


@dataclass
class Caught:
    """The calls of one module during one run of the user's code."""

    fused: list[CaughtCall] = field(default_factory=list)
    steps: list[StepCall] = field(default_factory=list)

    def one(self, info: SiteInfo, purpose: str) -> CaughtCall:
        """Return the only call of the module.

        Raises
        ------
        SettingError
            It was not called, called more than once, or has no graph where ``purpose`` needs one.
        """
        if len(self.fused) != 1:
            times = "not called" if not self.fused else f"called {len(self.fused)} times"
            raise SettingError(f"{info.module!r} was {times} while it was watched; {purpose} needs exactly one call.")
        return self.fused[0]


def choose_site(model: nn.Module, site: str | None) -> tuple[Target, SiteInfo]:
    """Return the site called ``site``, or the only one.

    Raises
    ------
    NothingToRecordError
        The model has no recurrent layer.
    UnknownNameError
        No such site.
    SettingError
        ``site`` names several, or is missing where there are several.
    """
    targets = discover(model)
    if not targets:
        raise NothingToRecordError(
            f"{type(model).__name__} has no recurrent layer whose equations are known: nn.RNN, nn.LSTM, nn.GRU, their "
            "cells, or one with an adapter (gradscope.register_adapter)."
        )
    chosen = targets if site is None else select(model, targets, site)
    found = [(target, info) for target in chosen for info in target.sites]
    if len(found) != 1:
        names = ", ".join(info.site for _, info in found)
        raise SettingError(f"{len(found)} sites to choose from ({names}); pass one of them as site=.")
    target, info = found[0]
    if info.curve == "input":
        raise SettingError(f"{info.site!r} ({info.module_class}) is not a recurrent layer with a state.")
    whole = next((t for t in targets if t.path == target.path), target)
    return whole, info


@contextmanager
def catching(target: Target, samples: int | None = None) -> Iterator[Caught]:
    """Catch every call of ``target`` inside the block; nothing is attached to the user's modules."""
    caught = Caught()
    rng: list[Tensor] = []

    def before(module: nn.Module, args: Any) -> None:
        if module is target.module and isinstance(module, nn.RNNBase) and module.dropout and module.training:
            rng[:] = [torch.get_rng_state()]

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module is not target.module:
            return
        if isinstance(module, nn.RNNBase):
            caught.fused.append(_fused(module, args, kwargs, output, samples, rng.pop() if rng else None))
        else:
            caught.steps.append(_step(args, kwargs, output))

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, with_kwargs=True)]
    try:
        yield caught
    finally:
        for handle in handles:
            remove_global_hook(handle)
        host.wait()
        host.forget()
        for fused in caught.fused:
            fused.call = settled(fused.call, fused.selection)


def _fused(
    module: nn.RNNBase,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    samples: int | None,
    rng: Tensor | None,
) -> CaughtCall:
    sources = behind_views({name: value for name, value in returned_by(output).items() if value.requires_grad})
    edges = {name: (get_gradient_edge(source.tensor), source.layout) for name, source in sources.items()}
    # A trajectory needs no graph: a stand-in that requires grad lets frozen models and no_grad pass.
    standing = _map(output, lambda value: value.detach().requires_grad_())
    try:
        call, _ = open_call(module, args, kwargs, standing, samples, rng)
    except CannotRecordError as reason:
        raise SettingError(f"this call of {type(module).__name__} cannot be replayed: {reason}") from None
    return CaughtCall(call.call, call.selection, edges)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value._replace(data=change(value.data))
    return tuple(_map(part, change) for part in value)


def _step(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> StepCall:
    """Take a call of ``nn.RNNCell``, ``nn.LSTMCell`` or ``nn.GRUCell``."""
    x, given, after = states_of(args, kwargs, output)
    before = given or tuple(torch.zeros(state.shape, dtype=state.dtype, device="cpu") for state in after)

    def rows(value: Tensor) -> Tensor:
        copied = value.detach().clone() if host.is_host(value) else host.begun(value)
        return copied if value.dim() == 2 else copied[None]

    return StepCall(rows(x), tuple(map(rows, before)), tuple(map(rows, after)))
