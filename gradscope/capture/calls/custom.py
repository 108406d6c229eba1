"""Watch custom layers: replay those with an adapter, take the input gradient of the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, Order
from gradscope.capture.calls.prehook import CannotRecordError, on_arrival
from gradscope.capture.host import added, is_host, rows_of
from gradscope.capture.layers.adapters import Adapter, mapped, replay, tensors_in
from gradscope.capture.layers.rows import Selection

# A replay that is further than this from the layer's own output is of another function.
_REPLAY_TOLERANCE = 1e-2


@dataclass
class LayerCall:
    """A forward call of a custom layer under way, and the gradients as they arrive."""

    module: nn.Module
    adapter: Adapter
    selection: Selection
    x: Tensor
    state: Any
    output: Tensor
    inner: frozenset[str] = frozenset()
    done: Callable[[LayerCall, int], None] | None = None
    told: Callable[[Exception], None] | None = None
    gradients: dict[int, dict[Any, Any]] = field(default_factory=dict)
    graphed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self.gradients.pop(task, None)

    def take(self, task: int, name: str, gradient: Tensor) -> None:
        """Keep the sampled rows of a gradient that arrived in backward pass ``task``."""
        held = self.gradients[task]
        taken = self.selection.sequence(gradient) if name == "output" else self.rows_of_state(gradient)
        held[name] = added(held[name], taken) if name in held else taken

    def finished(self, task: int) -> None:
        """Take the end of a pass in which something arrived."""
        if self.done is not None and self.gradients.get(task):
            self.done(self, task)

    def failed(self, error: Exception) -> None:
        """Note why a pass is not recorded, or an error of gradscope's own."""
        if self.told is not None:
            self.told(error)

    def rows_of_state(self, state: Tensor) -> Tensor:
        """Take the sampled rows of a state, or of its gradient."""
        rows = self.selection.rows
        return state.detach().index_select(0, rows) if is_host(state) else rows_of(state, 0, rows.tolist())

    def adjoints(self, task: int, dtype: torch.dtype, scale: float) -> Adjoints:
        """Replay the layer step by step and let autograd go through it."""
        arrived = {name: gradient.to(dtype) / scale for name, gradient in self.gradients.pop(task).items()}
        run = replay(self.module, self.adapter, self.x, self.state, dtype)
        self._check(run.outputs.detach())
        targets = {"output": run.outputs} | {f"state{i}": state for i, state in enumerate(run.states[-1])}
        arrived = {name: gradient for name, gradient in arrived.items() if name in targets}
        self._subtract_inner(targets, arrived)
        wanted = [run.x, *(state for states in run.states for state in states)]
        filled = _gradients(targets, arrived, wanted)
        per_step = len(run.states[0])
        columns = [torch.stack(filled[1 + i :: per_step]) for i in range(per_step)]
        order = Order(self.x.shape[0], self.x.shape[1], None, reverse=False)
        return Adjoints(order, columns[0], cell=columns[1] if per_step > 1 else None, input_gradient=filled[0])

    def _subtract_inner(self, targets: dict[str, Tensor], arrived: dict[str, Tensor]) -> None:
        """Leave of a final state's gradient only what came from outside the layer.

        In a looped layer the final state is a node on the way to the outputs, so autograd delivers its total
        derivative. What the outputs and the states that depend on it account for is subtracted.
        """
        inner = [name for name in arrived if name in self.inner]
        states = [targets[name] for name in inner]

        def feeds(name: str) -> int:
            """Count the final states that are computed from this one."""
            ones = [torch.ones_like(state) for state in states]
            pairs = zip(states, ones, strict=True)
            found = [torch.autograd.grad(s, targets[name], o, retain_graph=True, allow_unused=True) for s, o in pairs]
            return sum(gradient is not None for (gradient,) in found)

        settled = {name: gradient for name, gradient in arrived.items() if name not in inner}
        for name in sorted(inner, key=feeds):
            explained = _gradients(targets, settled, [targets[name]])[0]
            arrived[name] = settled[name] = arrived[name] - explained

    def _check(self, outputs: Tensor) -> None:
        largest = float(self.output.abs().max()) or 1.0
        same = outputs.shape == self.output.shape
        if not same or float((outputs - self.output).abs().max()) > _REPLAY_TOLERANCE * largest:
            raise CannotRecordError(
                f"the adapter of {type(self.module).__name__} does not reproduce the layer's output: see check_adapter"
            )


def _gradients(targets: dict[str, Tensor], arrived: dict[str, Tensor], wanted: list[Tensor]) -> list[Tensor]:
    if not arrived:
        return [torch.zeros_like(w) for w in wanted]
    ends = [targets[name] for name in arrived]
    found = torch.autograd.grad(ends, wanted, list(arrived.values()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]


def open_layer_call(
    module: nn.Module,
    adapter: Adapter,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    samples: int | None,
) -> tuple[LayerCall, dict[str, Tensor]]:
    """Copy what the replay of this call needs; return it with the outputs to watch, by name."""
    x, given = (*args, *kwargs.values(), None)[:2]
    sequence = output if isinstance(output, Tensor) else output[0]
    final = tensors_in(output[1:]) if isinstance(output, tuple | list) else ()
    values = {"output": sequence} | {f"state{i}": state for i, state in enumerate(final)}
    watched = {name: value for name, value in values.items() if value.requires_grad}
    if not watched:
        raise CannotRecordError("its output requires no gradient (everything before it is frozen, or no_grad)")
    if x.dim() != 3:
        raise CannotRecordError(f"its input has {x.dim()} axes; a custom layer is recorded for (B, T, I) or (T, B, I)")
    with torch.no_grad():
        selection = Selection.of(x, not adapter.time_first(module), samples)
        call = LayerCall(
            module,
            adapter,
            selection,
            selection.sequence(x.detach()),
            None,
            selection.sequence(sequence.detach()),
            _inside(watched, steps=x.shape[0] if adapter.time_first(module) else x.shape[1]),
        )
        call.state = mapped(call.rows_of_state, given)
    return call, watched


def _ancestors(nodes: list[Any], limit: int) -> Iterator[Any]:
    """Walk the autograd graph breadth first, at most ``limit`` nodes."""
    seen, queue = set(nodes), deque(nodes)
    while queue and limit:
        node, limit = queue.popleft(), limit - 1
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                queue.append(following)


def _inside(watched: dict[str, Tensor], steps: int) -> frozenset[str]:
    """Return the final states that lie on the way to the outputs, found close to where the outputs are gathered."""
    if "output" not in watched:
        return frozenset()
    end = watched["output"].grad_fn
    nodes = {node for node in _ancestors([end], limit=16 * (steps + 4)) if node is not end}
    return frozenset(name for name, value in watched.items() if name != "output" and value.grad_fn in nodes)


EDITS_INPUT = (
    "it edits its input in place, so that the gradient through it alone is no tensor's: pass it a copy "
    "(x.clone()) to have it recorded"
)


@dataclass
class InputTap:
    """The input of a black box: a copy the module is given instead, whose gradient is ∂L/∂x through it alone."""

    selection: Selection
    shape: torch.Size
    done: Callable[[InputTap, int], None]
    told: Callable[[Exception], None]
    gradients: dict[int, dict[Any, Any]] = field(default_factory=dict)
    graphed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def take(self, task: int, name: str, gradient: Tensor) -> None:
        """Keep the sampled rows of the gradient of the input."""
        gradient = gradient.detach()
        self.gradients[task][name] = self.selection.sequence(gradient[..., None] if gradient.dim() == 2 else gradient)

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self.gradients.pop(task, None)

    def finished(self, task: int) -> None:
        """Take the end of a pass in which something arrived."""
        if self.gradients.get(task):
            self.done(self, task)

    def failed(self, error: Exception) -> None:
        """Note why a pass is not recorded, or an error of gradscope's own."""
        self.told(error)

    def adjoints(self, task: int, dtype: torch.dtype, scale: float) -> Adjoints:
        """Return ∂L/∂x_t of backward pass ``task``."""
        values = self.gradients.pop(task)["input"].to(dtype) / scale
        return Adjoints(Order(values.shape[0], values.shape[1], None, reverse=False), None, input_gradient=values)


def tap_input(
    module: nn.Module,
    adapter: Adapter,
    x: Any,
    samples: int | None,
    done: Callable[[InputTap, int], None],
    told: Callable[[Exception], None],
) -> tuple[Tensor, InputTap]:
    """Return a copy of ``x`` to hand to the module, and what watches it.

    A copy, because the gradient of ``x`` itself would include its other uses, and data does not require one.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise CannotRecordError(
            f"its input is {kind}, which has no gradient; name the module after the embedding to see ∂L/∂x_t"
        )
    window = x.dim() == 2 and adapter.time_axis is not None
    if x.dim() != 3 and not window:
        raise CannotRecordError(
            f"its input has {x.dim()} axes, none of which is known to be time; ∂L/∂x_t of a whole sequence is recorded "
            "for (B, T, I) or (T, B, I), for (B, T) where register_adapter(..., time_axis=1) says so; the state of a "
            "loop is found by itself, or marked with gradscope.state"
        )
    with torch.enable_grad():
        copied = (x if x.requires_grad else x.detach().requires_grad_()).clone()
    batch_first = adapter.time_axis == 1 if window else not adapter.time_first(module)
    as_sequence = x.detach()[..., None] if window else x.detach()
    tap = InputTap(Selection.of(as_sequence, batch_first, samples), x.shape, done, told)

    assert copied.grad_fn is not None
    on_arrival(copied.grad_fn, [(0, "input", None)], tap)
    return copied, tap


def edit_too(x: Tensor, copied: Tensor) -> None:
    """Do to the input of a black box what the box did to the copy that it was given."""
    with torch.set_grad_enabled(x.requires_grad):
        x.copy_(copied)
