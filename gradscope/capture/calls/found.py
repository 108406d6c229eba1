"""A recurrence found in the graph of a backward pass: the adjoints that arrive at its states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradscope.adjoint import Adjoints, Order
from gradscope.capture.calls.blocks import Blocks
from gradscope.capture.calls.recurrences.axes import UNBATCHED
from gradscope.capture.calls.sequence import Line
from gradscope.capture.host import added, begun, is_host, rows_of
from gradscope.schema import SiteInfo


@dataclass(eq=False, kw_only=True)
class FoundSequence(Line):
    """The states of one recurrence in one backward pass.

    Attributes
    ----------
    info : SiteInfo
    roles : tuple of str
        Name of each state.
    axes : list of int
        Batch axis of each state; ``UNBATCHED`` where there is none.
    rows : Tensor of int64
    rows_at : list of Tensor
        Where the sequences stand at each step, where they change places; else empty.
    lengths : Tensor of int64 or None
    shapes : list of tuple of int
        Shape of each state without the batch axis.
    incomplete : tuple of str
        States that are left out because the graph does not show them at every step.
    skipped, beyond : int
        Steps at the beginning and at the end whose states no graph shows.
    marked : bool
        Whether the user named the state: what it starts from is not known then.
    before : FoundSequence or None
        The window of the same loop whose last state, without its graph, is what this one starts from.
    goes_on : bool
        Whether it is such a window of another.
    """

    info: SiteInfo
    roles: tuple[str, ...]
    length: int
    axes: list[int]
    rows: Tensor
    whole: bool
    lengths: Tensor | None
    shapes: list[tuple[int, ...]]
    rows_at: list[Tensor] = field(default_factory=list)
    has_direct: bool = False
    entry_axes: list[int] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    initial_states: tuple[int, ...] = ()
    incomplete: tuple[str, ...] = ()
    skipped: int = 0
    beyond: int = 0
    marked: bool = False
    before: FoundSequence | None = None
    goes_on: bool = False

    @property
    def steps(self) -> int:
        return self.length + self.beyond

    def after(self, task: int) -> int:
        """Return how many steps of the sequence follow."""
        return self.beyond + super().after(task)

    def follow(self, before: FoundSequence) -> bool:
        """Take another sequence as the window before this one, where they are alike and no step lies between."""
        alike = (
            (self.roles, self.shapes, self.entry_axes, self.has_direct)
            == (before.roles, before.shapes, before.entry_axes, before.has_direct)
            and self.lengths is before.lengths is None
            and not self.rows_at
            and not before.rows_at
            and torch.equal(self.rows, before.rows)
        )
        if not alike or before.beyond or self.skipped:
            return False
        self.before, before.goes_on, self.use = before, True, before.use
        return True

    def take(self, task: int, name: tuple[Any, ...], gradient: Tensor) -> None:
        """Keep the sampled rows of what arrived at a state, an entry, or an initial state."""
        self.tasks.add(task)
        held = self.gradients[task]
        kind, which, step = name
        axis = self.entry_axes[which] if kind == "entry" else self.axes[which]
        plain = axis == 0 and gradient.dim() == 2 and not gradient.is_complex()
        if plain and self.lengths is None and not self.rows_at and kind != "initial":  # as most
            if None not in held:
                held[None] = Blocks(self.rows, self.length)
            held[None].add((kind, which), step, gradient)
            return
        taken = self._of(gradient, axis, self.rows_at[step] if self.rows_at else self.rows)
        held[name] = added(held[name], taken) if name in held else taken

    def _of(self, gradient: Tensor, axis: int, rows: Tensor) -> Tensor:
        """Return the sampled rows, flat, (b, N); those of another device are on their way to the host."""
        if not is_host(gradient):
            return self._begun(gradient, axis, rows)
        if gradient.is_complex():  # real and imaginary parts side by side
            gradient = torch.view_as_real(gradient.resolve_conj())
        if axis == UNBATCHED:
            return gradient.reshape(1, -1).clone()
        moved = gradient if axis == 0 else gradient.movedim(axis, 0)
        if self.whole and len(moved) == len(rows):
            return moved.reshape(len(rows), -1).clone() if moved.dim() != 2 else moved.clone()
        if self.lengths is not None:
            rows = rows[rows < len(moved)]
        return moved.index_select(0, rows).reshape(len(rows), -1)

    def _begun(self, gradient: Tensor, axis: int, rows: Tensor) -> Tensor:
        if axis == UNBATCHED:
            taken = begun(gradient)[None]
        else:
            rows = rows if self.lengths is None else rows[rows < gradient.shape[axis]]
            taken = rows_of(gradient, axis, rows.tolist())
        return (torch.view_as_real(taken) if taken.is_complex() else taken).reshape(len(taken), -1)

    def adjoints(self, task: int, scale: float) -> Adjoints:
        """Stack what arrived in backward pass ``task``: (T, b, N) of every state."""
        arrived = self.gradients.pop(task)
        blocks: Blocks = arrived.pop(None, None) or Blocks(self.rows, self.length)
        order = Order(self.length, len(self.rows), self.lengths, reverse=False)

        def stacked(kind: str, which: int, shape: tuple[int, ...] | None) -> Tensor:
            values = blocks.get((kind, which))
            if values is None or any(name[:2] == (kind, which) for name in arrived):
                others = self._stacked(arrived, kind, which, shape)
                values = others if values is None else others + values.to(others)
            values = values.to("cpu", torch.float64)
            return values if scale == 1.0 else values / scale

        states = {role: stacked("state", i, self.shapes[i]) for i, role in enumerate(self.roles)}
        numbered = tuple(states[role] for role in self.roles if role.startswith("state_"))
        hidden, cell = states.get("hidden"), states.get("cell")
        direct = None
        if self.has_direct:
            at = self.roles.index("hidden")
            direct = stacked("direct", at, self.shapes[at])
        kinds = {name[:2] for name in arrived} | blocks.names()
        entering = [stacked("entry", i, None) for i in range(len(self.entry_axes)) if ("entry", i) in kinds]
        initial = {i: arrived["initial", i, 0].double() / scale for i in self.initial_states if ("initial", i) in kinds}
        by_role = {self.roles[i]: value for i, value in initial.items()}
        return Adjoints(
            order,
            hidden,
            direct,
            cell=cell,
            cell_carry=states.get("cell_carry"),
            input_gradient=torch.cat(entering, 2) if entering else None,
            states=numbered,
            shapes=tuple(self.shapes),
            roles=self.roles,
            initial_hidden=by_role.get("hidden"),
            initial_cell=by_role.get("cell", by_role.get("cell_carry")),
        )

    def _stacked(self, arrived: dict[Any, Tensor], kind: str, which: int, shape: tuple[int, ...] | None) -> Tensor:
        present = [value for name, value in arrived.items() if name[:2] == (kind, which)]
        if present:
            size = present[0].shape[1]
        else:
            size = 1
            for extent in shape or ():
                size *= extent
        if len(present) == self.length and all(len(value) == len(self.rows) for value in present):
            in_order = [arrived[kind, which, step] for step in range(self.length)]
            return torch.stack(in_order).double()
        result = torch.zeros(self.length, len(self.rows), size, dtype=torch.float64, device="cpu")
        for name, value in arrived.items():
            if name[:2] == (kind, which):
                result[name[2], : len(value)] = value.to(result)
        return result
