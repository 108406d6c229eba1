"""Scalars of the steps, and the norms of the parameters' gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from gradscope.capture.host import MOST_KEPT, is_host, kept, numbers
from gradscope.capture.training.clipping import gradient_norms
from gradscope.schema import StepRow

#: Two norms of the same gradient, measured in float64, differ by less.
_SAME = 1e-9


class StepLedger:
    """Collect what belongs to a step rather than to a site. Norms are in true units: a loss scale is divided out."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        #: Set when a forward or backward pass has begun since the last step ended.
        self.touched = False
        self.parameter_norms: dict[str, float] = {}
        #: The gradients as the last measured update used them.
        self.applied: dict[str, float] = {}
        self._applied_before = True
        self._raw: dict[str, float] = {}
        self._at_pass_end: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._current: dict[str, Any] = {}
        # Of iterations that may turn out to have been steps: the row, norms before clipping, norms as passes left them.
        self._iterations: list[tuple[dict[str, Any], dict[str, float], dict[str, float]]] = []
        self._ended: tuple[int, dict[str, Any]] | None = None
        # Rows that hold scalars of another device, which nobody has waited for, and when they were complete.
        self._unread: list[tuple[int, float, dict[str, Any]]] = []
        # Names that the script logs before its steps. Forward passes are seen in recorded steps only: what is logged
        # between one and the backward pass looks as if the step before had just ended.
        self._logged_before: set[str] = set()
        self._logged_now: set[str] = set()

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._names

    def name(self, parameter: Tensor) -> str:
        """Return the parameter's path in the model."""
        return self._names.get(id(parameter), f"parameter of shape {tuple(parameter.shape)}")

    # -- scalars ---------------------------------------------------------------------------------------------

    def log(self, scalars: dict[str, Any]) -> None:
        """Add scalars to the current step; to the one that just ended if no pass has begun since.

        What has once been logged before a step ended belongs to the current one at all times.
        One that is no number keeps no other from being logged; the first of them is raised at the end.
        """
        kept, refused = dict[str, Any](), list[Exception]()
        for name, value in scalars.items():
            try:
                kept[name] = _scalar(name, value)
            except Exception as error:
                refused.append(error)
        over = None
        if not self.touched:
            over = self._iterations[-1][0] if self._iterations else self._ended[1] if self._ended else None
        if over is None:
            self._logged_now.update(kept)  # before a step, if one follows
            over = self._current
        for name, value in kept.items():
            (self._current if name in self._logged_before else over)[name] = value
        if refused:
            raise refused[0]

    def end_iteration(self) -> None:
        """Keep what belongs to an iteration whose gradient was dropped; it may turn out to have been a step."""
        self._iterations.append((self._current, self._raw, self._at_pass_end))
        self._current, self._raw, self._at_pass_end, self._latest = {}, {}, {}, {}
        self._logged_now = set()
        self.touched = False

    def iterations(self, count: int) -> Iterator[None]:
        """Yield for each of the last ``count`` iterations that were kept, with what belongs to it in place."""
        now = self._current, self._raw, self._at_pass_end, self._latest, self.applied, self.parameter_norms
        touched, before, logged = self.touched, self._applied_before, self._logged_now
        kept, self._iterations = self._iterations, []
        for row, raw, left in kept[:count]:
            self._current, self._raw, self._at_pass_end, self._latest = row, raw, left, {}
            self.applied, self.parameter_norms, self._logged_now = {}, {}, set()
            yield
        if kept:
            self._current, self._raw, self._at_pass_end, self._latest, self.applied, self.parameter_norms = now
            self.touched, self._applied_before, self._logged_now = touched, before, logged

    def end_step(self, step: int, recorded: bool, rate: float | None) -> None:
        """Close the row of ``step``."""
        for row, *_ in self._iterations:  # that were parts of the step after all
            self._current = row | self._current
        self._iterations = []
        row = self._current
        if (row or recorded) and rate is not None:
            row["lr"] = rate
        self._ended = (step, row)
        self._logged_before |= self._logged_now
        self._current, self._logged_now = {}, set()
        self._raw = {}
        self._at_pass_end, self._latest = {}, {}
        self.parameter_norms = {}
        self._applied_before = True
        self.touched = False

    def take_rows(self, ended_only: bool, step: int, wait: bool) -> list[StepRow]:
        """Return the rows that are complete; with ``ended_only`` False also the current one.

        Unless ``wait``, those are kept back for a while whose scalars would have to be waited for.
        """
        rows = [] if self._ended is None else [self._ended]
        if not ended_only and self._current:
            rows.append((step, self._current))
            self._current = {}
        self._ended = None if not rows else (rows[0][0], {})
        complete = [(number, time.time(), row) for number, row in rows if row]
        every = [*self._unread, *complete]
        held = [any(isinstance(value, Tensor) for value in row.values()) for _, _, row in every]
        wait = wait or sum(held) >= MOST_KEPT
        self._unread = [] if wait else [row for row, is_held in zip(every, held, strict=True) if is_held]
        if wait:
            _read(row for _, _, row in every)
        return [StepRow(*row) for row, is_held in zip(every, held, strict=True) if wait or not is_held]

    # -- gradient norms --------------------------------------------------------------------------------------

    def pass_ended(self, parameters: Iterable[Tensor] | None, scale: float) -> None:
        """Forget the norms of a partial sum; measure the new one where ``parameters`` are given."""
        self._raw = {}
        self._at_pass_end = {} if parameters is None else self._norms(parameters, scale)
        self._latest = dict(self._at_pass_end)

    def unclipped(self, parameters: Iterable[Tensor], norms: Iterable[float], scale: float) -> None:
        """Take norms measured before a clipping call; the first call after a pass sees what the pass left."""
        for parameter, norm in zip(parameters, norms, strict=True):
            if parameter.grad is not None:
                self._raw.setdefault(self.name(parameter), norm / scale)

    def forget_passes(self) -> None:
        """Forget what passes have left: the script has put another gradient in place."""
        self._raw, self._at_pass_end = {}, {}

    def measure(self, parameters: Iterable[Tensor], scale: float, again: bool) -> None:
        """Measure the gradients as an update is about to use them; ``again`` where that replaces a measurement."""
        if again or self._applied_before:
            self.applied, self._applied_before = {}, False
        self.applied |= self._norms(parameters, scale)
        raw = {name: norm for name, norm in (self._at_pass_end | self._raw).items() if name in self.applied}
        self.parameter_norms = self.applied | raw
        self._current["grad_norm"] = math.hypot(*self.parameter_norms.values())
        self._current["grad_norm_applied"] = math.hypot(*self.applied.values())

    def changed(self, parameters: Iterable[Tensor], scale: float) -> None:
        """Measure what a clipping call has left, where the update may come without a word."""
        self._latest |= self._norms(parameters, scale)

    def updated_by_hand(self) -> None:
        """Take the last gradients that were measured for those of the update."""
        if self._latest:
            self.applied, self._applied_before = dict(self._latest), False
            self.parameter_norms = self._latest | self._at_pass_end | self._raw
            self._current["grad_norm"] = math.hypot(*self.parameter_norms.values())
            self._current["grad_norm_applied"] = math.hypot(*self._latest.values())

    def skipped(self) -> None:
        """No update used the gradient: what is known of it was measured before."""
        self._current.pop("grad_norm_applied", None)
        if raw := self._at_pass_end | self._raw:
            self._current.setdefault("grad_norm", math.hypot(*raw.values()))

    def changed_unseen(self) -> bool:
        """Whether the update used another gradient than the pass left, though no recognised call has changed it."""
        return any(
            name not in self._raw and not math.isclose(norm, self.applied[name], rel_tol=_SAME, abs_tol=1e-300)
            for name, norm in self._at_pass_end.items()
            if name in self.applied and math.isfinite(norm)
        )

    def _norms(self, parameters: Iterable[Tensor], scale: float) -> dict[str, float]:
        present = [p for p in parameters if p.grad is not None]
        return {self.name(p): norm / scale for p, norm in zip(present, gradient_norms(present), strict=True)}


def _read(rows: Iterable[dict[str, Any]]) -> None:
    """Put values in place of scalars that were left on their device."""
    places = [(row, name) for row in rows for name, value in row.items() if isinstance(value, Tensor)]
    for (row, name), value in zip(places, numbers([row[name] for row, name in places]), strict=True):
        row[name] = value


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"log({name}=...): a tensor with one element, not of shape {tuple(value.shape)}")
        value = value.detach()
        # Read later: now it would have to be waited for, and the whole step with it.
        return float(value) if is_host(value) else kept(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"log({name}=...): a number, not {type(value).__name__}") from None
