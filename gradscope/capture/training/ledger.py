"""Scalars, clipping calls and parameter gradient norms of the steps."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture.training.clipping import gradient_norms, value_clip_cosine
from gradscope.schema import ClipEvent, StepRow

# torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
_CLIP_EPSILON = 1e-6


class StepLedger:
    """Collect what belongs to a step rather than to a site."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], lost: Callable[[str, Exception], None]
    ) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._model, self._lost = model, lost
        # The first gives the learning rate. Weak: the script may replace an optimizer by a new one.
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]
        #: Set when a forward pass has begun since the last step ended.
        self.touched = False
        self.parameter_norms: dict[str, float] = {}
        self._raw: dict[str, float] = {}
        self._applied: dict[str, float] = {}
        self._current: dict[str, Any] = {}
        self._ended: tuple[int, dict[str, Any]] | None = None
        self._clips: list[tuple[ClipEvent, Tensor | None]] = []
        self._norm_type = 2.0
        #: The norm type of the clipping call under way, where it is known.
        self.asked_norm_type: float | None = None
        self._logs_after_step = True

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one more optimizer's parameters, and its learning rate once the earlier ones are gone."""
        if optimizer not in self._living():
            self._optimizers.append(weakref.ref(optimizer))

    def _living(self) -> list[torch.optim.Optimizer]:
        return [optimizer for held in self._optimizers if (optimizer := held()) is not None]

    @property
    def optimized(self) -> list[Tensor]:
        """Parameters the optimizer updates, or all that require a gradient."""
        if optimizers := self._living():
            return list({id(p): p for o in optimizers for p in _parameters(o)}.values())
        return [p for p in self._model.parameters() if p.requires_grad]

    # -- scalars ---------------------------------------------------------------------------------------------

    def log(self, scalars: dict[str, Any]) -> None:
        """Add scalars to the current step, or to the one that just ended when no forward pass has begun since."""
        kept = {name: _scalar(name, value) for name, value in scalars.items()}
        after_step = not self.touched
        if self._ended is not None and after_step and self._logs_after_step:
            self._ended[1].update(kept)
        else:
            self._current.update(kept)

    def end_step(self, step: int, recorded: bool) -> None:
        """Close the row of ``step``."""
        if recorded:
            # Forward passes are seen in recorded steps only: a loop that logs before its optimizer step there does
            # so in the others.
            self._logs_after_step = not (self.touched and self._current.keys() - {"grad_norm", "grad_norm_applied"})
        row = self._current
        if (row or recorded) and (optimizers := self._living()):
            row["lr"] = float(optimizers[0].param_groups[0]["lr"])
        self._ended = (step, row)
        self._current = {}
        self._raw = {}
        self._applied = {}
        self.parameter_norms = {}
        self.touched = False

    def take_rows(self, ended_only: bool, step: int) -> list[StepRow]:
        """Return the rows that are complete; with ``ended_only`` False also the current one."""
        rows = [] if self._ended is None else [self._ended]
        if not ended_only and self._current:
            rows.append((step, self._current))
            self._current = {}
        self._ended = None if not rows else (rows[0][0], {})
        return [
            StepRow(number, time.time(), {name: float(value) for name, value in row.items()})
            for number, row in rows
            if row
        ]

    # -- gradient norms --------------------------------------------------------------------------------------

    def measure(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradients as an optimizer is about to see them."""
        parameters = [p for p in _parameters(optimizer) if p.grad is not None]
        self._applied |= dict(zip(map(self._name, parameters), gradient_norms(parameters), strict=True))
        raw = {name: norm for name, norm in self._raw.items() if name in self._applied}
        self.parameter_norms = self._applied | raw
        self._current["grad_norm"] = math.hypot(*self.parameter_norms.values())
        self._current["grad_norm_applied"] = math.hypot(*self._applied.values())

    def _name(self, parameter: Tensor) -> str:
        return self._names.get(id(parameter), f"parameter of shape {tuple(parameter.shape)}")

    # -- clipping --------------------------------------------------------------------------------------------

    def before_clip(self, parameters: list[Tensor], kind: str, threshold: float, recording: bool) -> Any:
        """Measure the raw gradients in recorded steps."""
        if not recording or not self._concerns(parameters):
            return None
        norms = gradient_norms(parameters)
        for parameter, norm in zip(parameters, norms, strict=True):
            if parameter.grad is not None:
                self._raw.setdefault(self._name(parameter), norm)
        return (norms, value_clip_cosine(parameters, threshold) if kind == "value" else None)

    def after_clip(
        self, parameters: list[Tensor], kind: str, threshold: float, before: Any, total_norm: Tensor | None, step: int
    ) -> None:
        """Note a clipping call. Norm clipping is noted at every step, for torch has measured the norm anyway."""
        if not self._concerns(parameters):
            return
        if kind == "value":
            if before is not None:
                norm, after, cosine, clipped = before[1]
                scale = after / norm if norm else 1.0
                self._clips.append(
                    (ClipEvent(step, kind, threshold, norm, after, scale, cosine, clipped, 2.0, len(parameters)), None)
                )
            return
        if self.asked_norm_type is not None:
            self._norm_type = self.asked_norm_type
        elif before is not None and total_norm is not None:
            # The function that torch hands over to does not know; only a 2-norm can be told from the measurement.
            raw = math.hypot(*(norm for norm in before[0] if not math.isnan(norm)))
            same = math.isclose(raw, float(total_norm), rel_tol=1e-2) or not math.isfinite(raw)
            self._norm_type = 2.0 if same else math.nan
        event = ClipEvent(
            step, kind, threshold, math.nan, math.nan, math.nan, 1.0, math.nan, self._norm_type, len(parameters)
        )
        self._clips.append((event, None if total_norm is None else total_norm.detach()))

    def note_adaptive(self, threshold: float, effect: tuple[float, float, float, float], count: int, step: int) -> None:
        """Note an adaptive clipping call: norm before and after, cosine, share of rows clipped."""
        before, after, cosine, clipped = effect
        scale = after / before if before else 1.0
        self._clips.append(
            (ClipEvent(step, "adaptive", threshold, before, after, scale, cosine, clipped, 2.0, count), None)
        )

    def _concerns(self, parameters: list[Tensor]) -> bool:
        return any(id(parameter) in self._names for parameter in parameters)

    def take_clips(self) -> list[ClipEvent]:
        """Return the clipping calls so far; norms on another device come over in one transfer."""
        pending = [norm for _, norm in self._clips if norm is not None]
        values = iter(
            torch.stack([norm.double().reshape(()).to(pending[0].device) for norm in pending]).tolist()
            if pending
            else []
        )
        events = [event if norm is None else _norm_event(event, next(values)) for event, norm in self._clips]
        self._clips.clear()
        return events


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _norm_event(event: ClipEvent, norm: float) -> ClipEvent:
    # inf / (inf + ε): torch's coefficient is 0, and 0 · inf leaves a NaN behind.
    scale = min(1.0, event.threshold / (norm + _CLIP_EPSILON)) if not math.isnan(norm) else math.nan
    after = norm * scale if math.isfinite(norm) else math.nan
    return ClipEvent(
        event.step,
        event.kind,
        event.threshold,
        norm,
        after,
        scale,
        1.0 if math.isfinite(norm) else math.nan,
        float(scale < 1.0) if not math.isnan(scale) else math.nan,
        event.norm_type,
        event.parameters,
    )


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"log({name}=...): a tensor with one element, not of shape {tuple(value.shape)}")
        value = value.detach()
        # Left on its device: reading it now would wait for the whole step.
        return value.reshape(()) if value.device.type != "cpu" else float(value)
    return float(value)
