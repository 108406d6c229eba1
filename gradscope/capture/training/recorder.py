"""The recorder: keeps the adjoints of every k-th optimizer step of an ordinary training loop."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints
from gradscope.capture.calls.marks import state
from gradscope.capture.calls.prehook import SECOND_ORDER
from gradscope.capture.calls.reduction import needed, site_record
from gradscope.capture.guard import asked, inside
from gradscope.capture.layers.discovery import Target, unwrapped
from gradscope.capture.training import clipping
from gradscope.capture.training.account import DROPPED, UPDATE
from gradscope.capture.training.arguments import norm_arguments, value_arguments
from gradscope.capture.training.clipping import ClipCall
from gradscope.capture.training.clips import ClipNote
from gradscope.capture.training.coverage import (
    CROWDED,
    FAILED,
    FORGOTTEN,
    OTHER_LOSS,
    ZEROED,
)
from gradscope.capture.training.gradients import PassNote
from gradscope.capture.training.guarding import TARGET
from gradscope.capture.training.life import Life
from gradscope.capture.training.settings import Settings
from gradscope.capture.training.uses import Opened, Uses
from gradscope.errors import SettingError
from gradscope.schema import QUANTITIES, Record, SiteInfo, SiteRecord

_UNSEEN_EDIT = (
    "the gradients were changed between the pass and the update by code that is not recognised as clipping: torch's "
    "functions are if they are looked up when called; recorder.clip_grad_value_ always is"
)
_LATE = "its forward pass ran before it was known that the step before had been skipped"


class Recorder(Life):
    """Records a training; made by :func:`gradscope.record`.

    Attributes
    ----------
    run_dir : Path
    step_number : int
        Optimizer steps so far.
    records_written : int
        Records handed to the run so far.

    Examples
    --------
    Without an optimizer that it knows, it is told where a step ends:

    >>> import torch, gradscope
    >>> gru = torch.nn.GRU(2, 8)
    >>> recorder = gradscope.record(gru, "runs/by hand", every=1)
    >>> gru(torch.randn(20, 4, 2))[0][-1].sum().backward()
    >>> norm = recorder.clip_grad_norm_(1.0)
    >>> recorder.log(temperature=0.5)
    >>> recorder.step()
    >>> recorder.flush()
    >>> recorder.step_number
    1
    >>> recorder.close()
    """

    precise = False

    def __init__(self, model: nn.Module, settings: Settings, targets: list[Target]) -> None:
        super().__init__(unwrapped(model), settings, targets)
        self.samples, self.wanted, self.keep = settings.samples, settings.sites, needed(settings.quantities)
        self.step_number = settings.first_step
        self._uses = Uses()
        self._uses_of = 0
        self._infos: dict[str, SiteInfo] = {info.site: info for target in targets for info in target.sites}
        self._parameters_at: dict[str, frozenset[int]] = {}
        self._late = False
        self._coverage_written = 0
        #: Why there is nothing to record, where a recorded pass has shown it; who says it otherwise keeps this quiet.
        self.nothing_recurs = ""
        self.keeps_quiet = False
        self.records_written = 0
        self._changed_unseen = True  # not known before the first recorded step
        self._writer = self._open_run()
        try:
            self._attach(model)
            self._store(lambda: self._writer.set_sites(self._infos))
            self._begin_step()
        except BaseException:
            self._undo()
            raise

    # -- what the user calls ---------------------------------------------------------------------------------

    @inside("step")
    def step(self) -> None:
        """Mark the end of a step; only needed where no optimizer of torch updates the parameters."""
        if not self._is_closed("step"):
            self.within("step", self._account.mark)

    def state(self, name: str, value: Tensor) -> Tensor:
        """Mark a state inside a hand-written loop; the same as :func:`gradscope.state`.

        Returns
        -------
        Tensor
            ``value`` itself.

        Raises
        ------
        SettingError
            ``name`` is no string, or ``value`` no tensor.
        """
        try:
            return state(name, value)
        except SettingError:
            raise
        except Exception as error:
            with contextlib.suppress(Exception):
                self.harmed(f"the state {name!r}", error)
            return value

    @inside("log")
    def log(self, **scalars: Any) -> None:
        """Log scalars with the current step, or after ``optimizer.step()`` with the step that just ended.

        A name that a script has logged before its step is taken to be logged there always.

        Parameters
        ----------
        **scalars : float or tensor with one element
        """
        if not self._is_closed("log") and "log" not in self._faults:
            self.within("log", self._log, scalars)

    def _log(self, scalars: dict[str, Any]) -> None:
        self._account.settle()
        self._account.prepared()
        self._ledger.log(scalars)

    @asked("clipping", "Tensor")
    def clip_grad_norm_(self, *args: Any, **kwargs: Any) -> tuple[Callable[[], Tensor], None]:
        """Clip as ``torch.nn.utils.clip_grad_norm_`` does, and measure it.

        ``clip_grad_norm_(max_norm, norm_type=2.0, *, parameters=None)`` clips all optimized parameters;
        ``clip_grad_norm_(parameters, max_norm, norm_type=2.0)`` is torch's own call. Both take
        ``error_if_nonfinite`` and ``foreach``.

        Returns
        -------
        Tensor
            Total norm before clipping.
        """
        parameters, rest, options = norm_arguments(args, kwargs, lambda: self._account.optimized)
        given = self._some("clip_grad_norm_", parameters)
        return functools.partial(torch.nn.utils.clip_grad_norm_, given, *rest, **options), None

    @asked("clipping", "None")
    def clip_grad_value_(self, *args: Any, **kwargs: Any) -> tuple[Callable[[], None], None]:
        """Clip as ``torch.nn.utils.clip_grad_value_`` does, and measure it.

        ``clip_grad_value_(clip_value, *, parameters=None)`` clips all optimized parameters;
        ``clip_grad_value_(parameters, clip_value)`` is torch's own call. Both take ``foreach``.
        """
        parameters, rest, options = value_arguments(args, kwargs, lambda: self._account.optimized)
        given = self._some("clip_grad_value_", parameters)
        return functools.partial(torch.nn.utils.clip_grad_value_, given, *rest, **options), None

    @asked("clipping", "None")
    def clip_grad_adaptive_(
        self, factor: float = 0.01, eps: float = 1e-3, *, parameters: Tensor | Iterable[Tensor] | None = None
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Clip every row of every gradient to ``factor`` times the norm of its weights, and measure it.

        Adaptive gradient clipping (Brock et al. 2021): a row g_i is scaled to ``factor`` · max(‖w_i‖, ``eps``) where
        its norm is larger. Rows are the first axis; a vector is taken element by element.
        """
        given = self._account.optimized if parameters is None else parameters
        chosen = self._some("clip_grad_adaptive_", [given] if isinstance(given, Tensor) else list(given))
        call = ClipCall(list(chosen), "adaptive", factor)
        note = self.before_clip(call)
        scales, effect = clipping.adaptive_scales(call.parameters, factor, eps)
        pairs = [(p.grad, scale) for p, scale in zip(call.parameters, scales, strict=True) if scale is not None]
        gradients, factors = [gradient for gradient, _ in pairs], [scale for _, scale in pairs]
        carry_out = functools.partial(torch._foreach_mul_, gradients, factors) if pairs else _nothing
        return carry_out, lambda: self.within("clipping", self._after_adaptive, call, note, effect)

    def _after_adaptive(self, call: ClipCall, note: ClipNote | None, effect: tuple[float, float, float, float]) -> None:
        if note is not None:
            self._clips.note_adaptive(note, effect)
            self._clips.after(call, note, None)

    def _some(self, name: str, parameters: Any) -> Any:
        """Return the parameters; say once where there are none (a generator that was used up before)."""
        if not isinstance(parameters, Tensor):
            parameters = list(parameters)
            if not parameters:
                self.say(f"no parameters {name}", f"recorder.{name} was given no parameters: nothing was clipped")
        return parameters

    def _is_closed(self, name: str) -> bool:
        if self._closed:
            self.say(f"closed {name}", f"recorder.{name}() after close(): the run is sealed, nothing is recorded")
        return self._closed

    # -- steps -----------------------------------------------------------------------------------------------

    @property
    def written_to(self) -> Path:
        """Directory of this recorder's attempt and rank."""
        return self._writer.path

    @property
    def recording(self) -> bool:
        """Whether the current step is being recorded."""
        return self._watcher.running

    def _begin_step(self) -> None:
        if self._pace.records(self.step_number) and not self._disowned:
            self._watcher.start()
        else:
            self._watcher.rest()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the steps of one more optimizer, for instance of one made later for the same model."""
        self._account.follow(optimizer)
        if not self._account.seen_passes:
            self._uses.clear()  # a model that was tried before its training began

    def entering(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Take a forward call that was under way when its step began to be recorded; as a forward pre-hook."""
        return self.within("a forward call", self._watcher.before_forward, module, args) if self.recording else None

    def pass_ended(self, note: PassNote) -> None:
        self._ledger.touched = True
        if not note.reached and note.kind == "grad":
            return  # what the parameters hold is what it was
        wanted = self._changed_unseen or self._account.perhaps_by_hand
        measured = self.recording and wanted and note.reached
        trained = self._account.optimized if measured else None
        self._ledger.pass_ended(trained, self._account.scales.left_in(trained) if trained else 1.0)

    def measure(self, parameters: list[Tensor], again: bool) -> None:
        if self.recording and "gradient norms" not in self._faults:
            self.within("gradient norms", self._measure, parameters, again)

    def _measure(self, parameters: list[Tensor], again: bool) -> None:
        if self._account.placed_anew(parameters):
            self._ledger.forget_passes()
        self._ledger.measure(parameters, self._account.scales.left_in(parameters), again)
        self._clips.applied(parameters)

    def updated_by_hand(self) -> None:
        if self.recording:
            self._ledger.updated_by_hand()
            self._clips.applied_by_hand()

    def iteration_ends(self) -> None:
        self._ledger.end_iteration()

    def iterations_were_steps(self, count: int) -> Iterator[None]:
        return self._ledger.iterations(count)

    def step_ends(self, skipped: bool, late: bool) -> None:
        """End the step: whatever of it fails, the rest is done and the next one has its own number."""
        was_recording = self._watcher.running
        try:
            self.within("clipping", self._clips.end_step, self.step_number, was_recording)
            self.within("the end of a step", self._write_step, skipped, was_recording)
            self.within("the end of a step", self._forget_step, late)
            self.within("the scalars of a step", self._end_scalars, was_recording)
        finally:
            self.step_number += 1
            self.within("the beginning of a step", self._next_step, was_recording)
            self._late = late and not was_recording and self._watcher.running

    def _write_step(self, skipped: bool, was_recording: bool) -> None:
        self._write_rows(ended_only=True, wait=was_recording)
        if was_recording:
            self._end_recorded(skipped)

    def _forget_step(self, late: bool) -> None:
        if not late:
            self._uses.clear()
            self._watcher.forget()

    def _end_scalars(self, was_recording: bool) -> None:
        self._ledger.end_step(self.step_number, was_recording, self._rate())

    def _next_step(self, was_recording: bool) -> None:
        try:
            if was_recording:
                self._faults.step_over()
            if self._pace.ended():
                self._store(lambda: self._writer.set_settings(self.settings.to_json(self._pace.every)))
        finally:
            self._begin_step()

    def _rate(self) -> float | None:
        """Return the learning rate, where the optimizer has one that is a number."""
        optimizers = self._account.optimizers
        try:
            return float(optimizers[0].param_groups[0]["lr"]) if optimizers else None
        except (KeyError, IndexError, TypeError, ValueError):
            return None

    def _end_recorded(self, skipped: bool) -> None:
        if skipped:
            self._ledger.skipped()
        parts = list(self._parts())
        seen = self._write_records(parts, skipped)
        for site in self._account.differentiated_again():
            self._coverage.missed(self._infos[site].module, SECOND_ORDER, unless_known=True)
        self._changed_unseen = self._ledger.changed_unseen()
        if self._changed_unseen:
            self._coverage.remark("clipping", _UNSEEN_EDIT)
        if self._account.forgot:
            self._coverage.remark("passes", FORGOTTEN)
        # Sites that only passes reached which fed no update.
        for _, role, sites in parts:
            why = ZEROED if role == DROPPED else OTHER_LOSS
            for site in [site for site in sites if site not in seen and role != UPDATE]:
                self._coverage.missed(self._infos[site].module, why, unless_known=True)
        if self._late:
            for target in self.targets:
                self._coverage.missed(target.path, _LATE)
        self._coverage.end_step(seen)
        if self._coverage.version != self._coverage_written:
            self._coverage_written = self._coverage.version
            self._store(lambda: self._writer.set_coverage(self._coverage.lines()))

    def _write_records(self, parts: list[tuple[PassNote, int, dict[str, SiteRecord]]], skipped: bool) -> set[str]:
        """Write a record for each pass of the step, and for each role that its sites had in it; return sites used."""
        now, apart, seen = time.time(), -1, set[str]()
        fed: list[tuple[int, set[int], set[str]]] = []
        last = max((i for i, (_, role, _) in enumerate(parts) if role == UPDATE), default=-1)
        for index, (note, role, sites) in enumerate(parts):
            parameters = self._ledger.parameter_norms if index == last else {}
            number = _accumulated(note.reached, set(sites), fed) if role == UPDATE else apart
            record = Record(self.step_number, number, now, sites, parameters, note.scale, skipped, role)
            self._store(lambda record=record: self._writer.add_record(record))  # type: ignore[misc]
            self.records_written += 1
            if role == UPDATE:
                fed.append((number, note.reached, set(sites)))
                seen |= sites.keys()
            else:
                apart -= 1
        return seen

    def _parts(self) -> Iterator[tuple[PassNote, int, dict[str, SiteRecord]]]:
        for note in self._account.passes:
            by_role: dict[int, dict[str, SiteRecord]] = {}
            for site, role in self._account.roles(note, note.sites, self._parameters_of_site):
                by_role.setdefault(role, {})[site] = note.sites[site]
            for role, sites in sorted(by_role.items()):
                yield note, role, sites

    def _parameters_of_site(self, site: str) -> frozenset[int]:
        if site not in self._parameters_at:
            path, found = self._infos[site].module, frozenset[int]()
            with contextlib.suppress(AttributeError):
                module = self.model if path == "model" and not hasattr(self.model, path) else None
                module = module or self.model.get_submodule(path)
                found = frozenset(id(p) for p in module.parameters())
            self._parameters_at[site] = found
        return self._parameters_at[site]

    # -- what the watcher reports ----------------------------------------------------------------------------

    def began(self) -> None:
        self._ledger.touched = True

    def opened(self, target: Target) -> Opened:
        if not self._account.in_pass and self._account.seen_passes != self._uses_of:
            self._uses_of = self._account.seen_passes
            self._uses.clear()  # forward after backward: the next micro-batch
        if self._account.in_pass and (latest := self._uses.latest(target.path)) is not None:
            return latest  # a checkpoint running the layer once more, not another use
        self._coverage.opened(target.path)
        return self._uses.opened(target.path, target.module.training)

    def measured(
        self, target: Target, use: Any, site: str, adjoints: Adjoints, rows: Tensor, carried: int, after: int = 0
    ) -> None:
        if not self.recording:
            return
        if self._account.crowded:
            self._coverage.remark("passes", CROWDED)
            return
        number = self._uses.number(use)
        info = next(info for info in target.sites if info.site == site)
        if self._infos.get(site, info).how != info.how or site not in self._infos:
            self._infos[site] = info
            self._store(lambda: self._writer.set_sites(self._infos))
        name = site if number == 1 else f"{site}#{number}"
        if name not in self._infos:
            self._infos[name] = replace(info, site=name, call=number)
            self._store(lambda: self._writer.set_sites(self._infos))
        record = site_record(
            adjoints, self.settings.quantities, info.gates, rows, self.settings.tensors, carried, after
        )
        self._account.sites_of_pass(name)[name] = record
        self._coverage.found(name, info.how)
        for quantity in self.settings.asked:
            if not QUANTITIES[quantity].datasets.keys() & record.arrays.keys():
                reason = info.lacks(quantity) or f"the site has none: {info.how or info.module_class}"
                self._coverage.missing(target.path, quantity, reason, unless_known=True)

    def missed(self, target: Target, reason: str) -> None:
        self._coverage.missed(target.path, reason)

    def failed(self, target: Target, error: Exception) -> None:
        self._coverage.missed(target.path, FAILED)
        self.harmed(f"{TARGET}{target.path}", error)
        if f"{TARGET}{target.path}" in self._faults:
            self._watcher.leave_out(target)

    def missing(self, target: Target, quantity: str, reason: str) -> None:
        if quantity in self.settings.quantities:
            self._coverage.missing(target.path, quantity, reason)

    def nothing(self, reason: str) -> None:
        self._coverage.missed("model", reason)
        self.nothing_recurs = reason
        if not self.keeps_quiet:
            self.say("nothing", reason)

    def loss_scale(self) -> float:
        return self._account.note.scale if self._account.note is not None else 1.0

    # -- what clipping and scaling report --------------------------------------------------------------------

    def before_clip(self, call: ClipCall) -> ClipNote | None:
        if "clipping" in self._faults:
            return None
        return self.within("clipping", self._clips.before, call, self.step_number, self.recording)

    def after_clip(self, call: ClipCall, before: ClipNote | None, total_norm: Tensor | None) -> None:
        if before is not None:
            self.within("clipping", self._take_clip, call, before, total_norm)

    def _take_clip(self, call: ClipCall, before: ClipNote, total_norm: Tensor | None) -> None:
        self._clips.after(call, before, total_norm)
        if self._clips.many:
            self._write_rows(ended_only=True, wait=self.recording)

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        if "loss scale" not in self._faults:
            self.within("loss scale", self._account.scaled, scaler, outputs)

    def unscaled(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        if "loss scale" not in self._faults:
            self.within("loss scale", self._account.unscaled, scaler, optimizer)

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        self.within("step", self._account.scaler_stepped, optimizer)


def _accumulated(reached: set[int], sites: set[str], before: list[tuple[int, set[int], set[str]]]) -> int:
    """Return how many passes a pass was added to: those that share a parameter or a site with it."""
    return max((n + 1 for n, held, known in before if held & reached or known & sites), default=0)


def _nothing() -> None:
    """Nothing was to be clipped."""
