"""Calls of one fused layer that hand their state on: one sequence, one lag axis.

Autograd delivers the whole adjoint of the state between two calls, so each call is exact on its own; calls of the same
length are replayed side by side, as so many more rows of a batch. A decoder of T one-step calls costs one batched step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.adjoint import Adjoints, Keep, Order
from gradscope.adjoint.types import Trajectory
from gradscope.capture.calls.fused import FusedCall
from gradscope.capture.calls.prehook import CannotRecordError
from gradscope.capture.calls.stepping import (
    Arrived,
    NextStep,
    adjoints_of_steps,
    known_by_step,
    origin_of,
    parts_of,
    rows_of,
)
from gradscope.capture.host import added
from gradscope.capture.layers.discovery import Target
from gradscope.capture.torch_private import current_node


@dataclass(eq=False, kw_only=True)
class Line:
    """One chain of states through several calls; takes what arrives at them.

    Attributes
    ----------
    target : Target or None
        What it is a sequence of.
    use : int or what a listener returned
        Which sequence of the module in this step it is, from 1.
    carried : int
        Steps of the sequence before the first of these; −1 where that is unknown.
    done, told : callable or None
        Take the end of a pass, and an error.
    calls : list
        In the order in which they hand their state on.
    ends : dict of (int, int) to int
        The states that the last one left, as in :class:`~gradscope.capture.calls.graph.KnownCall`.
    followers : list of Line
        Sequences of other layers that the last state was handed to.
    tasks : set of int
        Backward passes that reached it.
    delivered : bool
        Whether a pass through it has ended.
    mixed : bool
        Whether a state between two calls is used elsewhere too, or may be: what reached it from above cannot be told
        then.
    again : bool
        Whether its calls were made during a backward pass: by a checkpoint.
    unfollowed : str
        Why the rows cannot be followed from call to call; empty where they can.
    """

    target: Target | None = None
    use: Any = 1
    carried: int = 0
    done: Callable[[Any, int], None] | None = None
    told: Callable[[Exception], None] | None = None
    calls: list[Any] = field(default_factory=list)
    ends: dict[tuple[int, int], int] = field(default_factory=dict)
    followers: list[Line] = field(default_factory=list)
    tasks: set[int] = field(default_factory=set)
    delivered: bool = False
    mixed: bool = True
    again: bool = False
    unfollowed: str = ""
    gradients: dict[int, dict[Any, Any]] = field(default_factory=dict)
    graphed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    @property
    def steps(self) -> int:
        return len(self.calls)

    def after(self, task: int) -> int:
        """Return how many steps of the sequence follow in other layers, as far as the pass reached them."""
        return max((f.steps + f.after(task) for f in self.followers if task in f.tasks), default=0)

    def take(self, task: int, name: Any, gradient: Tensor) -> None:
        """Keep a gradient that arrived in backward pass ``task``."""
        raise NotImplementedError

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        self.gradients.pop(task, None)

    def finished(self, task: int) -> None:
        """Take the end of a pass in which something arrived."""
        self.delivered = True
        if self.done is not None and self.gradients.get(task):
            self.done(self, task)

    def failed(self, error: Exception) -> None:
        """Note why a pass is not recorded, or an error of gradscope's own."""
        if self.told is not None:
            self.told(error)


@dataclass(eq=False, kw_only=True)
class FusedSequence(Line):
    """Calls of one fused module."""

    # How many calls were counted so far, and their steps: asked for at every call of a decoder.
    _counted: tuple[int, int] = (0, 0)

    @property
    def steps(self) -> int:
        counted, steps = self._counted
        if counted < len(self.calls):
            steps += sum(call.steps for call in self.calls[counted:])
            self._counted = len(self.calls), steps
        return steps

    @property
    def batch(self) -> int:
        return self.calls[0].selection.size

    def take(self, task: int, name: Any, gradient: Any) -> None:
        """Keep the sampled rows of what arrived in backward pass ``task`` at one of the calls.

        A gradient by position and name; by position alone all that arrived at the single node of a call.
        """
        held = self.gradients[task]
        self.tasks.add(task)
        if isinstance(name, int):
            if None not in held:
                held[None] = Arrived(self.calls[0].selection, len(self.calls))
            held[None].take(name, gradient, current_node())
            return
        call = self.calls[name[0]]
        taken = call.rows_of(name[1], gradient)
        held[name] = added(held[name], taken) if name in held else taken

    def forget(self, task: int) -> None:
        """Drop what arrived in backward pass ``task``."""
        super().forget(task)
        for call in self.calls:
            if call.step_nodes is not None:
                call.step_nodes.forget(task)

    def adjoints(
        self, task: int, layers: set[int], scale: float, precise: bool, keep: Keep
    ) -> dict[tuple[int, int], Adjoints]:
        """Return the adjoints of backward pass ``task`` at every site, all calls in a row.

        Raises
        ------
        CannotRecordError
            The weights have changed, or the rows of the batch cannot be followed.
        """
        if self.unfollowed:
            self.forget(task)
            raise CannotRecordError(self.unfollowed)
        if any(call.changed for call in self.calls if not isinstance(call, NextStep)):
            self.forget(task)
            raise CannotRecordError("the weights changed during backward (an optimizer inside backward?)")
        gradients = self.gradients.pop(task)
        nodes = gradients.pop(None, None)
        steps = {position: call for position, call in enumerate(self.calls) if call.steps == 1}
        if len(steps) == len(self.calls) > 1 and known_by_step(self.calls[0].call):
            rows = rows_of(steps, gradients, nodes)
            whole = adjoints_of_steps(self.calls[0].call, rows, scale, precise, keep)
            return {(0, 0): replace(whole, direct=None) if self.mixed else whole}
        arrived: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for (position, name), gradient in gradients.items():
            arrived[position][name] = gradient
        if len(self.calls) == 1:
            return self.calls[0].adjoints(task, arrived[0], layers, scale, precise, keep)
        for call in self.calls:
            if call.step_nodes is not None:
                call.step_nodes.forget(task)
                call.step_nodes = None
        alike: dict[int, list[int]] = defaultdict(list)
        for position, call in enumerate(self.calls):
            alike[call.steps].append(position)
        if len(alike) == 1:
            beside, together = _beside(self.calls, [arrived[position] for position in range(len(self.calls))])
            # Of the calls side by side only the first one's initial states are those of the sequence.
            keep = replace(keep, begins=self.calls[0].call.output.shape[1])
            found = beside.adjoints(task, together, layers, scale, precise, keep)
            return {place: self._in_a_row(place, adjoints, arrived, scale) for place, adjoints in found.items()}
        parts: list[dict[tuple[int, int], Adjoints]] = [{} for _ in self.calls]
        for positions in alike.values():
            if nodes is not None and len(steps) == len(positions) and positions[0] in steps:
                origin, ends = origin_of(self.calls[positions[0]]).call, positions[-1] == len(self.calls) - 1
                whole = adjoints_of_steps(origin, rows_of(steps, gradients, nodes), scale, precise, keep, ends)
                for position, part in zip(positions, parts_of(whole), strict=True):
                    parts[position][0, 0] = part
                    arrived[position].pop("grad_hn", None)  # is in no direct gradient
                continue
            beside, together = _beside(
                [self.calls[position] for position in positions], [arrived[position] for position in positions]
            )
            found = beside.adjoints(task, together, layers, scale, precise, keep)
            for place, adjoints in found.items():
                for position, part in zip(positions, _apart(adjoints, len(positions)), strict=True):
                    parts[position][place] = part
        return {place: self._joined(place, parts, arrived, scale) for place in parts[0]}

    def _in_a_row(
        self, place: tuple[int, int], adjoints: Adjoints, arrived: dict[int, dict[str, Tensor]], scale: float
    ) -> Adjoints:
        """Do what :func:`_apart` and :meth:`_joined` do, at once, where every call is of the same length."""
        calls = len(self.calls)
        length, batch = adjoints.order.steps, adjoints.order.batch // calls

        def by_call(value: Tensor) -> Tensor:
            return value.unflatten(1, (calls, batch)).transpose(0, 1)

        def row(value: Tensor | None) -> Any:
            return None if value is None else by_call(value).flatten(0, 1)

        changes: dict[str, Any] = {name: row(getattr(adjoints, name)) for name in _BY_STEP}
        for name in _INITIAL:
            initial = getattr(adjoints, name)
            changes[name] = None if initial is None else initial[:batch]
        if self.mixed or adjoints.direct is None:
            changes["direct"] = None
        else:
            direct = by_call(adjoints.direct).clone()
            between = [position for position in range(calls - 1) if "grad_hn" in arrived[position]]
            if between:
                handed = torch.stack([arrived[position]["grad_hn"][place[0]] for position in between])
                direct[between, -1] -= handed.to(direct) / scale
            changes["direct"] = direct.flatten(0, 1)
        if adjoints.direct_cell is not None:
            direct_cell = by_call(adjoints.direct_cell).clone()
            direct_cell[:-1] = 0
            changes["direct_cell"] = direct_cell.flatten(0, 1)
        if adjoints.scale is not None:
            changes["scale"] = adjoints.scale.repeat(calls, 1, 1)
        if adjoints.faded is not None:
            changes["faded"] = adjoints.faded * calls
        if (trajectory := adjoints.trajectory) is not None:
            changes["trajectory"] = Trajectory(**{name: row(getattr(trajectory, name)) for name in _TRAJECTORY})
        return replace(adjoints, order=Order(length * calls, batch, None, reverse=False), **changes)

    def _joined(
        self,
        place: tuple[int, int],
        parts: list[dict[tuple[int, int], Adjoints]],
        arrived: dict[int, dict[str, Tensor]],
        scale: float,
    ) -> Adjoints:
        """Put the calls of one site in a row; of what arrived at the states between them nothing came from above."""
        index = place[0]  # a module that runs in both directions is not joined
        for position, part in enumerate(parts[:-1]):
            adjoints = part[place]
            if self.mixed or adjoints.direct is None:
                adjoints.direct = None
            elif "grad_hn" in arrived[position]:
                handed = arrived[position]["grad_hn"][index].to(adjoints.direct.dtype) / scale
                adjoints.direct = adjoints.direct.clone()
                adjoints.direct[-1] = adjoints.direct[-1] - handed
            if adjoints.direct_cell is not None:
                adjoints.direct_cell = torch.zeros_like(adjoints.direct_cell)
        return joined([part[place] for part in parts])


def _beside(calls: list[FusedCall | NextStep], arrived: list[dict[str, Tensor]]) -> tuple[FusedCall, dict[str, Tensor]]:
    """Put calls of the same length side by side, as rows of one batch, with what arrived at them."""
    first = calls[0].call

    def rows(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors, 1).flatten(1, 2)

    def of(name: str) -> Any:
        values = [getattr(call.call, name) for call in calls]
        return None if values[0] is None else rows(values)

    masks = None
    if first.masks is not None:
        masks = tuple(rows([call.call.masks[i] for call in calls if call.call.masks]) for i in range(len(first.masks)))
    gradients = {}
    for name, like in (("grad_output", "output"), ("grad_hn", "h0"), ("grad_cn", "c0")):
        given = [held.get(name) for held in arrived]
        if any(gradient is not None for gradient in given):
            like_them = [getattr(call.call, like) for call in calls]
            gradients[name] = rows(
                [torch.zeros_like(z) if g is None else g for g, z in zip(given, like_them, strict=True)]
            )
    call = replace(first, input=of("input"), output=of("output"), h0=of("h0"), c0=of("c0"), masks=masks, kept=None)
    return replace(origin_of(calls[0]), call=call, step_nodes=None), gradients


def _apart(adjoints: Adjoints, calls: int) -> list[Adjoints]:
    """Undo :func:`_beside`: return the adjoints of each call."""
    order = Order(adjoints.order.steps, adjoints.order.batch // calls, None, adjoints.order.reverse)

    def part(value: Tensor | None, call: int, axis: int = 1) -> Any:
        if value is None:
            return None
        batch = value.shape[axis] // calls
        return value.narrow(axis, call * batch, batch)

    result = []
    for call in range(calls):
        changes: dict[str, Any] = {name: part(getattr(adjoints, name), call) for name in _BY_STEP}
        changes |= {name: part(getattr(adjoints, name), call, 0) for name in _INITIAL}
        trajectory = adjoints.trajectory
        if trajectory is not None:
            changes["trajectory"] = Trajectory(**{n: part(getattr(trajectory, n), call) for n in _TRAJECTORY})
        result.append(replace(adjoints, order=order, **changes))
    return result


# Fields of adjoints that have a time axis, those of the initial state, and those of a trajectory.
_BY_STEP = ("hidden", "direct", "gates", "gates_hh", "cell", "cell_carry", "direct_cell", "input_gradient")
_INITIAL = ("initial_hidden", "initial_cell")
_TRAJECTORY = tuple(Trajectory.__dataclass_fields__)


def joined(parts: list[Adjoints]) -> Adjoints:
    """Put the adjoints of several calls in a row along time; what one of them lacks is left out."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]

    def row(values: Iterable[Tensor | None]) -> Any:
        values = list(values)
        return None if any(value is None for value in values) else torch.cat(values)  # type: ignore[arg-type]

    for part in parts:
        if part.direct_cell is None and part.cell is not None and any(p.direct_cell is not None for p in parts):
            part.direct_cell = torch.zeros_like(part.cell)
    changes: dict[str, Any] = {name: row(getattr(part, name) for part in parts) for name in _BY_STEP}
    changes["states"] = tuple(torch.cat(states) for states in zip(*[part.states for part in parts], strict=True))
    if any(part.scale is not None for part in parts):
        scales = [
            torch.ones(part.order.steps, 1, 1, dtype=torch.float64, device="cpu") if part.scale is None else part.scale
            for part in parts
        ]
        changes["scale"] = torch.cat(scales)
    if any(part.faded is not None for part in parts):
        changes["faded"] = [faded for part in parts for faded in part.faded or [False] * part.order.steps]
    if all(part.trajectory is not None for part in parts):
        changes["trajectory"] = Trajectory(
            **{n: row(getattr(part.trajectory, n) for part in parts) for n in _TRAJECTORY}
        )
    else:
        changes["trajectory"] = None
    order = Order(sum(part.order.steps for part in parts), first.order.batch, None, reverse=False)
    return replace(first, order=order, **changes)
