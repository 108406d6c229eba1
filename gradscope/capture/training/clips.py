"""The clipping calls of a step: where each stood, what it changed, and whether the update used that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradscope.capture.host import MOST_KEPT, is_host, kept, numbers
from gradscope.capture.training.clipping import ClipCall, gradient_norms, value_clip_cosine
from gradscope.capture.training.gradients import PassNote
from gradscope.capture.training.ledger import StepLedger
from gradscope.schema import ClipEvent

if TYPE_CHECKING:
    from gradscope.capture.training.account import Account

#: Calls that may wait for the end of their step.
WAITING = 4096
#: Characters of a name of a set of parameters that are kept.
_PART_LENGTH = 60

# torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
_CLIP_EPSILON = 1e-6


@dataclass(eq=False)
class ClipNote:
    """A clipping call whose place in the step may still be open.

    Attributes
    ----------
    touches : set of int
        Identities of the parameters.
    notes : list of PassNote
        The passes in their gradients at the call.
    anew : bool
        Whether the script had put a gradient of its own making in place before.
    place : str
        One of ``schema.CLIP_PLACES``, empty while it is open.
    used : bool
        Whether the update used the gradient that it left.
    in_updates : dict of int to float
        Norms of the parameters' gradients as the updates used them.
    norm : Tensor or None
        The total norm as torch measured it; ``value`` once it has been waited for and read.
    """

    step: int
    kind: str
    threshold: float
    touches: set[int]
    parameters: int
    notes: list[PassNote] = field(default_factory=list)
    place: str = ""
    anew: bool = False
    used: bool = False
    norm: Tensor | None = None
    before: float = math.nan
    after: float = math.nan
    cosine: float = math.nan
    clipped: float = math.nan
    norm_type: float = 2.0
    foreach: int = -1
    part: str = ""
    loss_scale: float = 1.0
    overflow: bool = False
    applied: float = math.nan
    evaluation: int = 0
    measured: list[float] | None = None
    asked_two: float = math.nan
    left: float | None = None
    in_updates: dict[int, float] = field(default_factory=dict)
    value: float | None = None

    @property
    def open(self) -> bool:
        """Whether it is still to be seen what became of the clipped gradient."""
        return self.place in ("", "partial")

    def settle(self, skipped: bool) -> None:
        """Close the place at the end of the step."""
        if not self.open:
            return
        if skipped:
            self.place = "skipped"
        elif not self.used and not (self.place == "" and self.evaluation > 1):
            self.place = "dropped"
        elif self.place == "":
            self.place = "update"

    @property
    def effective(self) -> bool:
        """Whether the update used what it did."""
        return self.place in ("update", "partial")

    def event(self, norm: float | None) -> ClipEvent:
        """Return what is stored; ``norm`` is the value of :attr:`norm`, on the host."""
        before, after, scale, cosine, clipped = self.before, self.after, math.nan, self.cosine, self.clipped
        if norm is not None:
            before = norm
            # inf / (inf + ε): torch's coefficient is 0, and 0 · inf leaves a NaN behind.
            scale = min(1.0, self.threshold / (norm + _CLIP_EPSILON)) if not math.isnan(norm) else math.nan
            after = norm * scale if math.isfinite(norm) else 0.0 if self.overflow else math.nan
            cosine = 1.0 if math.isfinite(norm) else math.nan
            clipped = float(scale < 1.0) if not math.isnan(scale) else math.nan
        else:
            scale = after / before if before else 1.0
        return ClipEvent(
            self.step,
            self.kind,
            self.threshold,
            before / self.loss_scale,
            after / self.loss_scale,
            scale,
            cosine,
            clipped,
            self.norm_type,
            self.parameters,
            place=self.place,
            effective=int(self.effective),
            passes=len(self.notes),
            applied=self.applied,
            loss_scale=self.loss_scale,
            foreach=self.foreach,
            overflow=int(self.overflow),
            part=self.part,
        )


def applied_norm(norms: list[float], norm_type: float) -> float:
    """Return the total norm from those of the parameters."""
    known: list[Any] = [norm for norm in norms if not math.isnan(norm)]
    if not known:
        return math.nan
    if math.isinf(norm_type):
        return float(max(known) if norm_type > 0 else min(known))
    if norm_type == 2:
        return math.hypot(*known)
    return float(sum(norm**norm_type for norm in known) ** (1 / norm_type))


class ClipBook:
    """Note the clipping calls on a model's gradients.

    Parameters
    ----------
    account : Account
    ledger : StepLedger
    """

    def __init__(self, account: Account, ledger: StepLedger) -> None:
        self._account, self._ledger = account, ledger
        self._done: list[ClipNote] = []
        self._parts: dict[frozenset[int], str] = {}
        self._begins_with_a_clip = False
        self._last_recorded = False

    def before(self, call: ClipCall, step: int, recording: bool) -> ClipNote | None:
        """Take a call before it is carried out; None where it is another model's."""
        account, parameters = self._account, call.parameters
        if not any(p in self._ledger for p in parameters):
            return None
        account.settle_clips()
        note = ClipNote(step, call.kind, call.threshold, {id(p) for p in parameters}, len(parameters))
        note.norm_type, note.foreach = call.norm_type, -1 if call.foreach is None else int(call.foreach)
        note.part, note.evaluation = self._part(parameters), account.evaluation
        note.notes = account.passes_in(parameters)
        note.anew = bool(account.book.placed(note.touches))
        if not note.notes and not note.anew:
            self._place_outside(note, parameters)
        else:
            account.prepared()
        measured = self._last_recorded if note.place == "after" else recording
        if measured or call.kind == "norm":
            note.loss_scale = account.scales.left_in(parameters)
        if measured:
            norms = gradient_norms(parameters)
            if account.placed_anew(parameters):
                self._ledger.forget_passes()
            if note.notes:
                self._ledger.unclipped(parameters, norms, note.loss_scale)
            note.measured = norms
            if call.kind == "value":
                note.before, note.after, note.cosine, note.clipped = value_clip_cosine(parameters, call.threshold)
            if math.isnan(note.norm_type):
                note.asked_two = math.hypot(*(n for n in norms if not math.isnan(n)))
        return note

    def _place_outside(self, note: ClipNote, parameters: list[Tensor]) -> None:
        """A call on no pass's gradient: before the pass of its iteration, or after the update."""
        if not self._account.seen_passes:
            self._begins_with_a_clip = True
        # In a loop that clips before its pass, the gradient of the last update is still there at the call.
        if self._begins_with_a_clip or all(p.grad is None for p in parameters) or note.step == 0:
            note.place = "before"
        else:
            note.place, note.step = "after", note.step - 1
            note.applied = applied_norm(
                [self._ledger.applied.get(self._ledger.name(p), math.nan) for p in parameters], 2.0
            )

    def after(self, call: ClipCall, note: ClipNote, total_norm: Tensor | None) -> None:
        """Take the call as carried out."""
        self._account.book.edit(call.parameters)
        self._account.order.append(f"clip {call.kind}")
        if self._account.perhaps_by_hand and note.measured is not None:
            scale = self._account.scales.left_in(call.parameters)
            self._ledger.changed(call.parameters, scale)
            kind = 2.0 if math.isnan(note.norm_type) else note.norm_type
            note.left = applied_norm(gradient_norms(call.parameters, kind), kind) / scale
        if call.kind == "value" and note.measured is None:
            return
        if call.kind == "norm" and total_norm is not None:
            self._check_norm(call, note, total_norm)
        (self._account.clips if note.open else self._done).append(note)
        if len(self._account.clips) > WAITING:
            self._let_go()

    def _let_go(self) -> None:
        """Take the calls whose gradients were dropped as settled: in a step without end they would be ever more."""
        waiting = self._account.clips
        self._done += [note for note in waiting if note.place == "dropped"]
        self._account.clips = [note for note in waiting if note.place != "dropped"]

    @property
    def many(self) -> bool:
        """Whether so many calls are settled that they should be written before their step ends."""
        return len(self._done) > WAITING

    def _check_norm(self, call: ClipCall, note: ClipNote, total_norm: Tensor) -> None:
        note.norm = total_norm.detach() if is_host(total_norm) else kept(total_norm)
        if not is_host(total_norm) and note.measured is None:
            return
        norm = note.value = numbers([note.norm])[0]
        if math.isnan(note.norm_type) and note.measured is not None:
            # A norm that the script computed itself: only a 2-norm can be told from the measurement.
            same = math.isclose(note.asked_two, norm, rel_tol=1e-2) or not math.isfinite(norm)
            note.norm_type = 2.0 if same else math.nan
        if not math.isfinite(norm):
            grads = [p.grad for p in call.parameters if p.grad is not None]
            note.overflow = bool(grads) and not any(bool(g.count_nonzero()) for g in grads if not g.is_sparse)

    def note_adaptive(self, note: ClipNote, effect: tuple[float, float, float, float]) -> None:
        """Take what adaptive clipping has done: norm before and after, cosine, share of rows clipped."""
        note.before, note.after, note.cosine, note.clipped = effect

    def applied(self, parameters: Iterable[Tensor]) -> None:
        """Note what the update used of the gradients that were clipped."""
        given = {id(p): p for p in parameters}
        for note in self._account.clips:
            if note.used and (touched := [given[i] for i in note.touches if i in given]):
                kind = 2.0 if math.isnan(note.norm_type) else note.norm_type
                scale = self._account.scales.left_in(touched)
                # Another optimizer may have used, or be about to use, the rest of what was clipped.
                for parameter, norm in zip(touched, gradient_norms(touched, kind), strict=True):
                    note.in_updates[id(parameter)] = norm / scale
                note.applied = applied_norm(list(note.in_updates.values()), kind)

    def applied_by_hand(self) -> None:
        """Note the same where the update was seen only after it."""
        for note in self._account.clips:
            if note.used and note.left is not None:
                note.applied = note.left

    def end_step(self, step: int, recorded: bool) -> None:
        """Take over the calls of a step that is over."""
        for note in self._account.clips:
            note.step = step
        self._done += self._account.clips
        self._last_recorded = recorded

    def take(self, wait: bool) -> Iterator[ClipEvent]:
        """Yield the calls of the steps that are over; not those whose norm would have to be waited for."""
        unread = [note for note in self._done if note.norm is not None and note.value is None]
        wait = wait or len(unread) >= MOST_KEPT
        if wait:
            norms = [note.norm for note in unread if note.norm is not None]
            for note, value in zip(unread, numbers(norms), strict=True):
                note.value = value
        done, self._done = self._done, [] if wait else unread
        for note in done:
            if note not in self._done:
                yield note.event(note.value)

    def _part(self, parameters: list[Tensor]) -> str:
        """Name a set of parameters by the modules it fills; empty for all that are trained."""
        given = frozenset(id(p) for p in parameters)
        if given not in self._parts:
            trained = [p for p in self._account.optimized if p in self._ledger]
            names = {id(p): self._ledger.name(p) for p in trained}
            self._parts[given] = "" if given >= names.keys() else _named(given, names)
        return self._parts[given]


def _named(given: frozenset[int], names: dict[int, str]) -> str:
    """Join the outermost modules whose parameters are all ``given``, and the parameters beside them."""
    chosen: list[str] = []
    rest = {i for i in given if i in names}
    inside: dict[str, set[int]] = {}
    for i, name in names.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            inside.setdefault(".".join(parts[:depth]), set()).add(i)
    for prefix in sorted(inside, key=lambda p: p.count(".")):
        if inside[prefix] <= rest:
            chosen.append(prefix)
            rest -= inside[prefix]
    order = list(inside)
    text = ", ".join(sorted(chosen, key=order.index)) or "parameters outside of the model"
    return text if len(text) <= _PART_LENGTH else text[: _PART_LENGTH - 3] + "..."
