"""``gradscope.snapshot``: one exact measurement, in memory, of every sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints, Keep, weight_contribution
from gradscope.capture.calls.reduction import TENSORS
from gradscope.capture.calls.watcher import Watcher
from gradscope.capture.layers.discovery import Target, discover, discover_or_none, select
from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.schema import Coverage, SiteInfo


@dataclass(frozen=True, eq=False)
class SiteSnapshot:
    """Adjoints at one site. Tensors are float64, time-major, in input time order, 0 on padding.

    Adjoints are computed in float64 whatever the model's type, so that 1e-60 is not mistaken for 0. A quantity the
    site does not have (``cell`` of a GRU) raises NotRecordedError.
    """

    info: SiteInfo
    adjoints: Adjoints

    def _tensor(self, quantity: str) -> Tensor:
        values = TENSORS[quantity](self.adjoints)
        if values is None:
            raise NotRecordedError(f"site {self.info.site!r} ({self.info.cell}) has no quantity {quantity!r}")
        return self.adjoints.order.apply(values)

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
    def lengths(self) -> Tensor:
        """Valid steps of each sequence (B,)."""
        order = self.adjoints.order
        if order.lengths is not None:
            return order.lengths
        return torch.full((order.batch,), order.steps, dtype=torch.int64)


class Snapshot(Mapping[str, SiteSnapshot]):
    """One measurement: site name to :class:`SiteSnapshot`; ``coverage`` says what was not seen, and why."""

    def __init__(self, loss: float, sites: dict[str, SiteSnapshot], coverage: list[Coverage]) -> None:
        self.loss, self._sites, self.coverage = loss, sites, coverage

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites)

    def __getitem__(self, site: str) -> SiteSnapshot:
        if site not in self._sites:
            raise UnknownNameError("site", site, self._sites)
        return self._sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return f"Snapshot(loss={self.loss:.6g}, sites={list(self._sites)})"


class _Collector:
    """Keeps the adjoints of every site of one backward pass."""

    samples: int | None = None
    precise = True
    keep = Keep(gates=True)

    def __init__(self) -> None:
        self.sites: dict[str, SiteSnapshot] = {}
        self.reasons: dict[str, str] = {}
        self.errors: list[Exception] = []
        self._uses: dict[str, int] = {}

    def opened(self, target: Target) -> int:
        self._uses[target.path] = self._uses.get(target.path, 0) + 1
        return self._uses[target.path]

    def measured(self, target: Target, use: int, site: str, adjoints: Adjoints, rows: Tensor, carried: int) -> None:
        info = next(info for info in target.sites if info.site == site)
        name = site if use == 1 else f"{site}#{use}"
        self.sites[name] = SiteSnapshot(info, adjoints)

    def missed(self, target: Target, reason: str) -> None:
        self.reasons[target.path] = reason

    def failed(self, target: Target, error: Exception) -> None:
        self.errors.append(error)

    def loss_scale(self) -> float:
        return 1.0

    def coverage(self, targets: list[Target]) -> list[Coverage]:
        lines = []
        for info in (info for target in targets for info in target.sites):
            if info.site in self.sites:
                lines.append(Coverage(info.site, "recorded", count=1))
                continue
            called = "no gradient arrived at its output" if info.module in self._uses else "it was not called"
            lines.append(Coverage(info.site, "missing", self.reasons.get(info.module, called)))
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
        The model has no recurrent layer.
    UnknownNameError
        A site that does not exist.
    SettingError
        The closure does not return a scalar loss with a graph.
    """
    targets = select(model, discover(model) if sites is None else discover_or_none(model), sites)
    collector = _Collector()
    watcher = Watcher(targets, collector)
    leaves: list[Tensor] = []
    watcher.on_call = leaves.extend
    watcher.start()
    try:
        with torch.enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise SettingError("the closure must return the loss, a tensor with one element, and not call backward()")
        if loss.requires_grad:
            _run_backward(loss, leaves)
    finally:
        watcher.close()
    if collector.errors:
        raise collector.errors[0]
    return Snapshot(float(loss.detach()), collector.sites, collector.coverage(targets))


def _run_backward(loss: Tensor, leaves: list[Tensor]) -> None:
    """Run backward without touching any ``.grad``: gradients of what the layers were given are asked for instead."""
    unique = list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())
    if unique:
        torch.autograd.grad(loss, unique, allow_unused=True)
