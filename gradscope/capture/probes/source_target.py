"""``gradscope.source_target``: how much of the loss at each step depends on the state at each step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscope.adjoint import stack_adjoints
from gradscope.adjoint.products.source_target import Targets, source_target_norms
from gradscope.capture.probes.catching import CaughtCall, catching, choose_site
from gradscope.errors import SettingError
from gradscope.schema import SiteInfo
from gradscope.store.probes import save_probe

Floats = NDArray[np.float64]

# Direct gradients of so many bytes are held at once; targets beyond wait for the next sweep.
_BYTES_AT_ONCE = 256 << 20


@dataclass(frozen=True, eq=False, repr=False)
class SourceTarget:
    """Norms ‖∂L_t/∂h_s‖ at one site, in input time order: row = target t, column = source s.

    Attributes
    ----------
    info : SiteInfo
    hidden : ndarray, shape (N, T)
        Mean over the sequences; exactly 0 where L_t cannot depend on h_s (s > t, of a forward direction).
    hidden_per_sequence : ndarray, shape (N, T, B)
        NaN beyond the end of a sequence.
    cell, cell_per_sequence : ndarray or None
        The same of c_s, total (through h_s as well), for an LSTM.
    input, input_per_sequence : ndarray
        ‖∂L_t/∂x_s‖, through this site only, in the same shapes.
    rows : ndarray of int, shape (B,)
        Which batch rows the sequences are.
    per_step : bool
        Whether each L_t was found to depend on the module's output at t alone, so that one pass through what follows
        the module gave all direct gradients; otherwise each target had a pass of its own.

    Examples
    --------
    >>> import torch, gradscope
    >>> gru, x = torch.nn.GRU(2, 8), torch.randn(12, 4, 2)
    >>> measured = gradscope.source_target(gru, lambda: gru(x)[0].square().mean(dim=(1, 2)))
    >>> measured.save("forecasts.npz")  # for ``gradscope plot connectivity forecasts.npz``
    """

    info: SiteInfo
    hidden: Floats
    hidden_per_sequence: Floats
    cell: Floats | None
    cell_per_sequence: Floats | None
    rows: NDArray[np.int64]
    per_step: bool
    input: Floats
    input_per_sequence: Floats

    def save(self, path: str | os.PathLike[str], **labels: str | float) -> None:
        """Write it to a ``.npz`` that ``gradscope plot connectivity`` and ``source_target`` draw without the model."""
        save_probe(self, path, labels)

    def __repr__(self) -> str:
        return f"<SourceTarget of {self.info.site}: {self.hidden.shape[0]} targets, {self.hidden.shape[1]} sources>"


def source_target(
    model: nn.Module,
    closure: Callable[[], Tensor | Sequence[Tensor]],
    *,
    site: str | None = None,
    samples: int | None = 8,
    targets_at_once: int | None = None,
) -> SourceTarget:
    """Measure ‖∂L_t/∂h_s‖ for every target t and source s at one site, exactly.

    All targets are carried as a batch in one reverse sweep in float64, instead of one backward pass each. The model
    is not changed, and ``.grad`` of its parameters stays as it is.

    Parameters
    ----------
    model : nn.Module
        With ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` layers.
    closure : callable
        Runs the forward pass and returns the losses of N targets: (N,), or (N, B) with one per sequence, which are
        summed. For one loss per timestep, N = T: ``criterion(output, y, reduction="none")``, time first.
    site : str, optional
        May be left out where there is one only.
    samples : int or None
        Sequences to take, evenly spaced over the batch; None for all.
    targets_at_once : int, optional
        Targets in one sweep; chosen so that memory stays near 256 MiB by default.

    Returns
    -------
    SourceTarget

    Raises
    ------
    NothingToRecordError
        The model has no recurrent layer.
    UnknownNameError
        A site that does not exist.
    SettingError
        Several sites and none chosen; the site's module was not called exactly once; losses without a graph.

    Notes
    -----
    Whether L_t depends on the output at t alone is tested, not assumed: random sums over 2 ⌈log2 T⌉ sets of targets,
    of which every two steps are parted by some set, must leave an exactly zero gradient at all other steps.

    Examples
    --------
    One loss for each of 12 timesteps: the loss at t cannot depend on a later state.

    >>> import torch, gradscope
    >>> gru, x = torch.nn.GRU(2, 8), torch.randn(12, 4, 2)
    >>> measured = gradscope.source_target(gru, lambda: gru(x)[0].square().mean(dim=(1, 2)))
    >>> bool((measured.hidden[3, 4:] == 0).all())  # target 3, sources after it
    True
    """
    for name, value in (("samples", samples), ("targets_at_once", targets_at_once)):
        if value is not None and value < 1:
            raise SettingError(f"{name} must be a positive number or None, got {value}.")
    target, info = choose_site(model, site)
    if target.kind != "fused":
        raise SettingError(f"{info.site!r} is a {info.module_class}; source_target needs nn.RNN, nn.LSTM or nn.GRU.")
    with torch.enable_grad(), catching(target, samples) as caught:
        losses = _Losses.of(closure())
    watched = caught.one(info, "a source-target matrix")
    if not watched.edges or not losses.have_graph:
        raise SettingError(f"the losses have no graph that leads back to {info.module!r} (no_grad, or all frozen).")
    per_step = _per_step(watched, losses)
    call = watched.call
    sites = stack_adjoints(call, layers=range(info.layer, len(call.weights)))
    found = [
        source_target_norms(call, sites, (info.layer, int(info.reverse)), targets)
        for targets in _targets(watched, losses, per_step, targets_at_once)
    ]
    hidden = _whole([h for h, _, _ in found], call.lengths)
    entering = _whole([x for _, _, x in found], call.lengths)
    cells = [c for _, c, _ in found if c is not None]
    cell = _whole(cells, call.lengths) if cells else None
    return SourceTarget(
        info=info,
        hidden=np.nanmean(hidden, axis=2),
        hidden_per_sequence=hidden,
        cell=None if cell is None else np.nanmean(cell, axis=2),
        cell_per_sequence=cell,
        rows=watched.selection.rows.numpy(),
        per_step=per_step is not None,
        input=np.nanmean(entering, axis=2),
        input_per_sequence=entering,
    )


@dataclass(frozen=True)
class _Losses:
    """The losses of the targets: one tensor whose first axis they are, or a tensor for each."""

    tensors: tuple[Tensor, ...]
    apart: bool

    @classmethod
    def of(cls, losses: Tensor | Sequence[Tensor]) -> _Losses:
        if isinstance(losses, list | tuple) and losses and all(isinstance(loss, Tensor) for loss in losses):
            return cls(tuple(losses), apart=True)
        if not isinstance(losses, Tensor) or losses.dim() == 0 or not losses.numel():
            raise SettingError(
                "the closure must return one loss per target: a tensor (N,) or (N, B), not a single loss."
            )
        return cls((losses,), apart=False)

    def __len__(self) -> int:
        return len(self.tensors) if self.apart else len(self.tensors[0])

    @property
    def have_graph(self) -> bool:
        return any(loss.requires_grad for loss in self.tensors)

    def weighted(self, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return what to differentiate, and from which gradients, for the sum of the losses with weights (N,).

        The weights go to the losses' device, where nothing is computed for it but the backward pass.
        """
        if self.apart:
            parts = [(loss, weight.expand(loss.shape)) for loss, weight in zip(self.tensors, weights, strict=True)]
        else:
            (loss,) = self.tensors
            parts = [(loss, weights.reshape(-1, *[1] * (loss.dim() - 1)).expand(loss.shape))]
        chosen = [(loss, seed) for loss, seed in parts if loss.requires_grad and bool(seed.any())]
        return [loss for loss, _ in chosen], [seed.to(loss.device, loss.dtype) for loss, seed in chosen]


def _per_step(watched: CaughtCall, losses: _Losses) -> Tensor | None:
    """Return all direct gradients, (T, B, D·P), if each target's comes through the output of its own step only."""
    steps = watched.call.input.shape[0]
    if len(losses) != steps:
        return None
    every = torch.arange(steps, device="cpu")
    factors = torch.rand(steps, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu") + 0.5
    for bit in range(max(1, (steps - 1).bit_length())):
        for value in (0, 1):
            chosen = (every >> bit) % 2 == value
            if not chosen.any():
                continue
            arrived = watched.gradients(*losses.weighted(factors * chosen))
            if any(bool(g.any()) for name, g in arrived.items() if name != "grad_output"):
                return None
            if "grad_output" in arrived and bool(arrived["grad_output"][~chosen].any()):
                return None
    return (
        watched.gradients(*losses.weighted(torch.ones(steps, device="cpu")))
        .get("grad_output", torch.zeros_like(watched.call.output))
        .double()
    )


def _targets(watched: CaughtCall, losses: _Losses, per_step: Tensor | None, at_once: int | None) -> Iterator[Targets]:
    output = watched.call.output
    if at_once is None:
        widest = max(output.shape[2], watched.call.input.shape[2])
        at_once = max(1, _BYTES_AT_ONCE // (3 * 8 * output.shape[0] * output.shape[1] * widest))
    for first in range(0, len(losses), at_once):
        chosen = range(first, min(first + at_once, len(losses)))
        if per_step is not None:
            direct = per_step.new_zeros(*per_step.shape[:2], len(chosen), per_step.shape[2])
            for n, t in enumerate(chosen):
                direct[t, :, n] = per_step[t]
            yield Targets(direct)
        else:
            arrived = [
                watched.gradients(*losses.weighted(torch.arange(len(losses), device="cpu") == n)) for n in chosen
            ]
            yield Targets(
                _stacked("grad_output", arrived, output),
                _stacked("grad_hn", arrived, watched.call.h0),
                None if watched.call.c0 is None else _stacked("grad_cn", arrived, watched.call.c0),
            )


def _stacked(name: str, arrived: list[dict[str, Tensor]], like: Tensor) -> Tensor:
    return torch.stack([found.get(name, torch.zeros_like(like)).double() for found in arrived], 2)


def _whole(parts: list[Tensor], lengths: Tensor | None) -> Floats:
    whole = torch.cat(parts)
    if lengths is not None:
        beyond = torch.arange(whole.shape[1], device="cpu")[:, None] >= lengths
        whole = whole.masked_fill(beyond, float("nan"))
    result: Floats = whole.numpy()
    return result
