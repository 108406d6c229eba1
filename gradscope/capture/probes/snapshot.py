"""``gradscope.snapshot``: one exact measurement, in memory, of every sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, Keep, weight_contribution
from gradscope.capture.calls import passes
from gradscope.capture.calls.graph import root_nodes
from gradscope.capture.calls.home import Home
from gradscope.capture.calls.passes import Pass
from gradscope.capture.calls.reduction import TENSORS
from gradscope.capture.calls.watcher import Watcher
from gradscope.capture.host import brought
from gradscope.capture.layers.discovery import Target, discover, names_in, select
from gradscope.capture.probes import measured_decay
from gradscope.capture.training.coverage import FAILED, NO_GRADIENT, NOT_CALLED
from gradscope.errors import (
    InternalError,
    NothingToRecordError,
    NotRecordedError,
    SettingError,
    UnknownNameError,
)
from gradscope.schema import MAX_STATES, Coverage, SiteInfo, in_order

if TYPE_CHECKING:
    from gradscope.diagnostics import DecayFit


@dataclass(frozen=True, eq=False, repr=False)
class SiteSnapshot:
    """Adjoints at one site. Tensors are float64, time-major, in input time order, 0 on padding.

    Adjoints are computed in float64 whatever the model's type, so that 1e-60 is not mistaken for 0. A quantity the
    site does not have (``cell`` of a GRU) raises NotRecordedError. The states of a recurrence that was found have the
    shape that the user's code gave them, (T, B, ...), and the precision that the user's code computed them with.

    Attributes
    ----------
    carried, after : int
        Steps of the same sequence before the first and after the last of these, in other calls or layers; ``carried``
        is −1 where that is unknown.
    """

    info: SiteInfo
    adjoints: Adjoints
    carried: int = 0
    after: int = 0
    reasons: Mapping[str, str] = field(default_factory=dict)

    def _tensor(self, quantity: str) -> Tensor:
        values = TENSORS[quantity](self.adjoints)
        if values is None:
            has = ", ".join(name for name, of in TENSORS.items() if of(self.adjoints) is not None)
            why = f": {self.reasons[quantity]}" if quantity in self.reasons else f"; it has {has}"
            raise NotRecordedError(f"site {self.info.site!r} ({self.info.cell}) has no quantity {quantity!r}{why}")
        shapes = dict(zip(self.adjoints.roles, self.adjoints.shapes, strict=True))
        ordered = self.adjoints.order.apply(values)
        shape = shapes.get("hidden" if quantity in ("direct", "recurrent") else quantity)
        return ordered if shape is None or len(shape) == 1 else ordered.reshape(*ordered.shape[:2], *shape)

    def state(self, number: int) -> Tensor:
        """Return the adjoint of a state that can only be told by its number, from 1 (T, B, ...).

        Raises
        ------
        NotRecordedError
            The site has no such state.
        """
        return self._tensor(f"state_{number}") if 1 <= number <= MAX_STATES else self._no_state(number)

    def _no_state(self, number: int) -> Tensor:
        raise NotRecordedError(f"site {self.info.site!r} has no state {number}")

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Adjoints of all states: hidden and cell, or those that are told by their numbers, each (T, B, ...)."""
        roles = self.adjoints.roles or tuple(
            name for name in ("hidden", "cell") if getattr(self.adjoints, name) is not None
        )
        return tuple(self._tensor(role) for role in roles)

    @cached_property
    def hidden(self) -> Tensor:
        """∂L/∂h_t, total (T, B, H)."""
        return self._tensor("hidden")

    @cached_property
    def cell(self) -> Tensor:
        """∂L/∂c_t, total: through h_t as well (T, B, H)."""
        return self._tensor("cell")

    @cached_property
    def cell_carry(self) -> Tensor:
        """∂L/∂c_t with h_t held fixed (T, B, H)."""
        return self._tensor("cell_carry")

    @cached_property
    def gates(self) -> Tensor:
        """∂L/∂(gate pre-activation) (T, B, G·H), PyTorch's gate order."""
        return self._tensor("gates")

    @cached_property
    def input(self) -> Tensor:
        """∂L/∂x_t through this site only (T, B, I)."""
        return self._tensor("input")

    @cached_property
    def direct(self) -> Tensor:
        """What reached h_t from above; not an adjoint (T, B, H)."""
        return self._tensor("direct")

    @cached_property
    def recurrent(self) -> Tensor:
        """What reached h_t through the recurrence: hidden minus direct (T, B, H)."""
        return self._tensor("recurrent")

    @cached_property
    def cell_path(self) -> Tensor:
        """∂L/∂c_t along the cell path alone, h detached between steps (T, B, H)."""
        return self._tensor("cell_path")

    @cached_property
    def weight(self) -> Tensor:
        """Norm of each timestep's contribution to ∂L/∂W_hh, summed over the batch (T,)."""
        values = weight_contribution(self.adjoints)
        if values is None:
            raise NotRecordedError(f"site {self.info.site!r} ({self.info.cell}) has no quantity 'weight'")
        return values

    @property
    def initial_hidden(self) -> Tensor | None:
        """∂L/∂h_0 (B, H), or None where it is not available."""
        return self.adjoints.initial_hidden

    @property
    def initial_cell(self) -> Tensor | None:
        """∂L/∂c_0 (B, H), or None where it is not available."""
        return self.adjoints.initial_cell

    @property
    def lengths(self) -> Tensor:
        """Valid steps of each sequence (B,)."""
        order = self.adjoints.order
        if order.lengths is not None:
            return order.lengths
        return torch.full((order.batch,), order.steps, dtype=torch.int64, device="cpu")

    def __repr__(self) -> str:
        return measured_decay.shapes(self)


class Snapshot(Mapping[str, SiteSnapshot]):
    """One measurement: site name to its adjoints; ``coverage`` says what was not seen, and why.

    ``print(snapshot)`` says how far back the gradient reaches at every site.

    Examples
    --------
    >>> import torch, gradscope
    >>> gru, x = torch.nn.GRU(2, 8, num_layers=2), torch.randn(50, 4, 2)
    >>> snapshot = gradscope.snapshot(gru, lambda: gru(x)[0][-1].sum())
    >>> list(snapshot)
    ['model/l0', 'model/l1']
    >>> snapshot.decay("model/l0").verdict
    'vanishing'
    >>> [line.status for line in snapshot.coverage]
    ['recorded', 'recorded']
    """

    def __init__(self, loss: float, sites: dict[str, SiteSnapshot], coverage: list[Coverage]) -> None:
        self.loss, self._sites, self.coverage = loss, sites, coverage

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites)

    def __getitem__(self, site: str) -> SiteSnapshot:
        if site not in self._sites:
            raise UnknownNameError("site", site, self._sites)
        return self._sites[site]

    def __contains__(self, site: object) -> bool:
        return site in self._sites

    def get(self, site: str, default: Any = None) -> Any:
        """Return a site's adjoints, or ``default`` where it was not recorded."""
        return self._sites.get(site, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"Snapshot(loss={self.loss:.6g}, sites={list(self._sites)})"

    def decay(self, site: str | None = None, quantity: str | None = None, **options: Any) -> DecayFit:
        """Fit the decay of the gradient at a site, as ``run.decay`` does of a recorded one.

        Parameters
        ----------
        site : str, optional
            May be left out where there is one.
        quantity : str, optional
            By default the one that describes the site: the cell state of an LSTM, else the hidden state.
        **options
            Of :func:`gradscope.fit_decay`.

        Raises
        ------
        UnknownNameError, NotRecordedError, SettingError
        """
        return measured_decay.decay(self, site, quantity, **options)

    def __str__(self) -> str:
        return "\n".join([repr(self), *(f"  {line}" for line in measured_decay.said(self))])

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{escape(line)}</li>" for line in measured_decay.said(self))
        return f"<div><b>Snapshot</b>, loss {self.loss:.6g}<ul>{items}</ul></div>"


class _Collector:
    """Keeps the adjoints of every site of one backward pass."""

    samples: int | None = None
    precise = True
    keep = Keep(gates=True)

    def __init__(self, wanted: tuple[str, ...] | None) -> None:
        self.wanted = wanted
        self.sites: dict[str, SiteSnapshot] = {}
        self.reasons: dict[str, dict[str, None]] = {}
        self.lacks: dict[str, dict[str, str]] = {}
        self.errors: list[Exception] = []
        self.no_recurrence = ""
        self._uses: dict[str, int] = {}

    @property
    def saw_nothing(self) -> bool:
        """Whether no call of the model was seen."""
        return not self._uses and not self.reasons

    def began(self) -> None:
        return

    def opened(self, target: Target) -> int:
        self._uses[target.path] = self._uses.get(target.path, 0) + 1
        return self._uses[target.path]

    def measured(
        self, target: Target, use: int, site: str, adjoints: Adjoints, rows: Tensor, carried: int, after: int = 0
    ) -> None:
        info = next(info for info in target.sites if info.site == site)
        name = site if use == 1 else f"{site}#{use}"
        self.sites[name] = SiteSnapshot(
            replace(info, site=name, call=use), adjoints, carried, after, self.lacks.get(target.path, {})
        )

    def missed(self, target: Target, reason: str) -> None:
        self.reasons.setdefault(target.path, {})[reason] = None

    def missing(self, target: Target, quantity: str, reason: str) -> None:
        self.lacks.setdefault(target.path, {})[quantity] = reason

    def failed(self, target: Target, error: Exception) -> None:
        self.errors.append(error)
        self.missed(target, FAILED)

    def harmed(self, doing: str, error: Exception) -> None:
        self.errors.append(error)

    def nothing(self, reason: str) -> None:
        self.no_recurrence = reason

    def loss_scale(self) -> float:
        return 1.0

    def in_order(self, targets: list[Target]) -> dict[str, SiteSnapshot]:
        """Return the sites as the model defines them, then what was found; a backward pass meets the last one first."""
        known = [info.site for target in targets for info in target.sites]
        names = in_order(dict.fromkeys([*(site for site in known if site in self.sites), *self.sites]))
        return {name: self.sites[name] for name in names}

    def coverage(self, targets: list[Target]) -> list[Coverage]:
        """Return a line for every site, and for everything that is no site but might be expected to be one."""
        lines, told = [], set()
        for info in (info for target in targets for info in target.sites):
            told |= {info.site, info.module}
            if info.site in self.sites:
                lines.append(Coverage(info.site, "recorded", count=1))
                lines += [Coverage(info.site, "partial", reason, 1) for reason in self.reasons.get(info.module, ())]
                continue
            reasons = self.reasons.get(info.module) or [NO_GRADIENT if info.module in self._uses else NOT_CALLED]
            lines.append(Coverage(info.site, "missing", "; ".join(reasons)))
        for name, site in self.sites.items():
            if name not in told:
                told.add(name)
                lines.append(Coverage(name, "recorded", site.info.how, 1))
                for quantity, reason in self.lacks.get(site.info.module, {}).items():
                    lines.append(Coverage(name, "partial", f"{quantity}: {reason}", 1))
                lines += [Coverage(name, "partial", reason, 1) for reason in self.reasons.get(name, ())]
        for path, missed in self.reasons.items():
            if path not in told:
                lines += [Coverage(path, "missing", reason) for reason in missed]
        return lines


def snapshot(model: nn.Module, closure: Callable[[], Tensor], *, sites: Sequence[str] | str | None = None) -> Snapshot:
    """Measure the exact adjoints of one loss, for all sequences, and leave the model as it was.

    Parameters
    ----------
    model : nn.Module
        Any model with recurrent layers; it is not changed, and ``.grad`` of its parameters stays as it is.
    closure : callable
        Runs the forward pass and returns the loss, a scalar tensor. It must not call ``backward``.
    sites : sequence of str, optional
        Sites, module paths or patterns to measure; all by default.

    Returns
    -------
    Snapshot
        ``snapshot["lstm/l0"].hidden`` is ∂L/∂h_t, (T, B, H) float64, time-major, 0 on padding.

    Raises
    ------
    NothingToRecordError
        Nothing in the graph of the loss recurs, or it is another model's.
    UnknownNameError
        A site that does not exist.
    SettingError
        The closure is no function, does not return a scalar loss with a graph, or calls ``backward``.

    Examples
    --------
    >>> import torch, gradscope
    >>> lstm, x = torch.nn.LSTM(2, 8), torch.randn(50, 4, 2)
    >>> snapshot = gradscope.snapshot(lstm, lambda: lstm(x)[0][-1].sum())
    >>> snapshot.sites
    ('model/l0',)
    >>> snapshot["model/l0"].cell.shape  # dL/dc_t, (T, B, H)
    torch.Size([50, 4, 8])
    """
    if not callable(closure):
        raise SettingError(
            "closure must be a function that runs the forward pass and returns the loss, not "
            f"{type(closure).__name__}: snapshot(model, lambda: criterion(model(x), y))"
        )
    targets = select(model, discover(model), sites)
    wanted = None if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
    collector = _Collector(wanted)
    watcher = Watcher(targets, collector, names_in(model), Home(model.parameters()))
    watcher.start()
    try:
        loss = _loss_of(closure)
        _run_backward(loss, model)
    finally:
        watcher.close()
    if collector.errors:
        raise InternalError(
            f"an error inside gradscope ({type(collector.errors[0]).__name__}); please report it with the traceback"
        ) from collector.errors[0]
    if collector.no_recurrence and not collector.sites:
        raise NothingToRecordError(f"{type(model).__name__}: {collector.no_recurrence}")
    if not collector.sites and collector.saw_nothing:
        raise NothingToRecordError(
            f"the closure called no recurrent layer of this {type(model).__name__}: does it run another model, or a "
            "copy?"
        )
    return Snapshot(float(brought(loss)), collector.in_order(targets), collector.coverage(targets))


class _Backward:
    """Notices a ``backward`` that the closure makes itself; gradients may be taken in it."""

    def __init__(self) -> None:
        self.called, self._thread = False, get_ident()

    def pass_begins(self, begun: Pass) -> None:
        self.called = self.called or (begun.kind == "backward" and get_ident() == self._thread)

    def pass_ends(self, ended: Pass) -> None:
        return

    def harmed(self, doing: str, error: Exception) -> None:
        return


def _loss_of(closure: Callable[[], Any]) -> Tensor:
    """Run the closure; refuse what is no loss."""
    noticed = _Backward()
    passes.observe(noticed)
    try:
        with torch.enable_grad():
            loss = closure()
    finally:
        passes.ignore(noticed)
    if noticed.called or not isinstance(loss, Tensor) or loss.numel() != 1:
        raise SettingError("the closure must return the loss, a tensor with one element, and not call backward()")
    if not loss.requires_grad:
        raise SettingError("the loss that the closure returns has no graph: it was detached, or computed under no_grad")
    return loss


def _run_backward(loss: Tensor, model: nn.Module) -> None:
    """Run backward without touching any ``.grad``: the gradients of all leaves are asked for instead."""
    leaves, seen, todo, reentrant = {}, set(), root_nodes([loss]), False
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        reentrant = reentrant or node.name().startswith("CheckpointFunction")
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        todo.extend(child for child, _ in node.next_functions if child is not None)
    if not reentrant:
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return
    # Reentrant checkpointing knows no gradient but that of backward(): put every .grad back.
    before = {id(p): (p, p.grad) for p in leaves.values()}
    before |= {id(p): (p, p.grad) for p in model.parameters()}
    for leaf, _ in before.values():
        leaf.grad = None
    try:
        loss.backward()
    finally:
        for leaf, gradient in before.values():
            leaf.grad = gradient
