"""``gradscope.record``: keep the adjoints of every k-th optimizer step of an ordinary training loop."""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.adjoint import Adjoints
from gradscope.capture.calls.marks import state
from gradscope.capture.calls.reduction import needed, site_record
from gradscope.capture.calls.watcher import Watcher
from gradscope.capture.layers.discovery import Target, names_in, unwrapped
from gradscope.capture.training import clipping, scaling
from gradscope.capture.training.coverage import FAILED, CoverageLedger
from gradscope.capture.training.describe import describe_model, run_meta
from gradscope.capture.training.ledger import StepLedger
from gradscope.capture.training.rounds import Rounds
from gradscope.capture.training.settings import Settings
from gradscope.schema import Record, SiteInfo, SiteRecord
from gradscope.store import RunWriter


class GradscopeWarning(UserWarning):
    """Something could not be recorded; training goes on untouched."""


class Recorder:
    """Records a training; made by :func:`record`.

    Attributes
    ----------
    run_dir : Path
    step_number : int
        Optimizer steps so far.
    records_written : int
        Records handed to the run so far.
    """

    precise = False

    def __init__(self, model: nn.Module, settings: Settings, targets: list[Target]) -> None:
        self.model, self.settings, self.targets = unwrapped(model), settings, targets
        self.samples = settings.samples
        self.step_number = 0
        self._sites: dict[str, SiteRecord] = {}
        self._finished: list[dict[str, SiteRecord]] = []
        self._uses: dict[str, int] = {}
        self._infos: dict[str, SiteInfo] = {info.site: info for target in targets for info in target.sites}
        self._scale = 1.0
        self._warned: set[str] = set()
        self._closed = False
        self._stepped: set[int] = set()
        self._coverage = CoverageLedger(targets)
        self._coverage_written = 0
        self.keep = needed(settings.quantities)
        self._ledger = StepLedger(self.model, settings.optimizers, self._lost)
        self.wanted = settings.sites
        self._watcher = Watcher(targets, self, names_in(self.model))
        self._writer = RunWriter(
            settings.run_dir,
            run_meta(describe_model(self.model), settings),
            durability=settings.durability,
            restart=settings.restart,
            rank=settings.rank,
            world_size=settings.world_size,
        )
        self.run_dir = Path(settings.run_dir)
        self._handles: list[Any] = []
        self._rounds = Rounds(self._end_step, self.entering)
        self.records_written = 0
        self._attach()
        self._store(lambda: self._writer.set_sites(self._infos))
        self._begin_step()

    # -- life ------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        for optimizer in self.settings.optimizers:
            self.follow(optimizer)
        clipping.observe_clipping(self)
        scaling.observe_scaling(self)
        # A script that never closes its recorder still leaves a sealed run.
        held = weakref.ref(self)

        def close_at_exit() -> None:
            if (recorder := held()) is not None:
                recorder.close()

        self._at_exit = close_at_exit
        atexit.register(self._at_exit)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flush(self) -> None:
        """Make everything recorded so far durable."""
        with self._unharmed("flush"):
            self._write_rows(ended_only=True)
            self._writer.set_coverage(self._coverage.lines())
            self._writer.flush()

    def close(self) -> None:
        """Detach from the model and seal the run; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        with self._unharmed("close"):
            self._rounds.finish()
        with self._unharmed("close"):
            self._watcher.close()
            for handle in self._handles:
                handle.remove()
            clipping.ignore_clipping(self)
            scaling.ignore_scaling(self)
        with self._unharmed("close"):
            self._close_micro()
            if self._finished:  # backward ran, but no optimizer step followed
                self._write_records(skipped=False)
            self._write_rows(ended_only=False)
            self._writer.set_coverage(self._coverage.lines())
        with self._unharmed("close"):
            self._writer.close()

    # -- what the user calls ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Mark the end of an optimizer step; only needed without ``optimizer=``."""
        with self._unharmed("step"):
            self._end_step()

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
        return state(name, value)

    def log(self, **scalars: Any) -> None:
        """Log scalars with the current step, or after ``optimizer.step()`` with the step that just ended.

        Parameters
        ----------
        **scalars : float or tensor with one element
        """
        with self._unharmed("log"):
            self._ledger.log(scalars)

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, *, parameters: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Clip as ``torch.nn.utils.clip_grad_norm_`` does, over all optimized parameters, and measure it.

        Returns
        -------
        Tensor
            Total norm before clipping.
        """
        chosen = list(self._ledger.optimized if parameters is None else parameters)
        self._ledger.asked_norm_type = float(norm_type)
        try:
            return torch.nn.utils.clip_grad_norm_(chosen, max_norm, norm_type)
        finally:
            self._ledger.asked_norm_type = None

    def clip_grad_value_(self, clip_value: float, *, parameters: Sequence[Tensor] | None = None) -> None:
        """Clip as ``torch.nn.utils.clip_grad_value_`` does, over all optimized parameters, and measure it."""
        chosen = list(self._ledger.optimized if parameters is None else parameters)
        torch.nn.utils.clip_grad_value_(chosen, clip_value)

    def clip_grad_adaptive_(
        self, factor: float = 0.01, eps: float = 1e-3, *, parameters: Sequence[Tensor] | None = None
    ) -> None:
        """Clip every row of every gradient to ``factor`` times the norm of its weights, and measure it.

        Adaptive gradient clipping (Brock et al. 2021): a row g_i is scaled to ``factor`` · max(‖w_i‖, ``eps``) where
        its norm is larger. Rows are the first axis; a vector is taken element by element.
        """
        chosen = list(self._ledger.optimized if parameters is None else parameters)
        effect = clipping.clip_grad_adaptive_(chosen, factor, eps)
        with self._unharmed("clipping"):
            self._ledger.note_adaptive(factor, effect, len(chosen), self.step_number)

    # -- steps -----------------------------------------------------------------------------------------------

    @property
    def recording(self) -> bool:
        """Whether the current step is being recorded."""
        return self._watcher.running

    def _begin_step(self) -> None:
        if self.step_number % self.settings.every == 0:
            self._watcher.start()
        else:
            self._watcher.rest()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the steps of one more optimizer, for instance of one made later for the same model."""
        self._handles.append(optimizer.register_step_pre_hook(self._before_optimizer))
        self._handles.append(optimizer.register_step_post_hook(self._after_optimizer))
        self._rounds.add(optimizer)
        self._ledger.follow(optimizer)

    def entering(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Take a forward call that was under way when its step began to be recorded; as a forward pre-hook."""
        return self._watcher.before_forward(module, args) if self.recording else None

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.recording:
            with self._unharmed("gradient norms"):
                self._ledger.measure(optimizer)

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._stepped.add(id(optimizer))
        with self._unharmed("step"):
            found = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers
            self._rounds.stepped(optimizer, skipped=found is not None and bool(found))

    def _end_step(self, skipped: bool = False) -> None:
        self._write_rows(ended_only=True)
        if self.recording:
            self._close_micro()
            self._write_records(skipped)
            self._coverage.end_step({site for sites in self._finished for site in sites})
            if self._coverage.version != self._coverage_written:
                self._coverage_written = self._coverage.version
                self._store(lambda: self._writer.set_coverage(self._coverage.lines()))
        self._finished.clear()
        self._uses.clear()
        self._scale = 1.0
        self._watcher.forget()
        self._ledger.end_step(self.step_number, self.recording)
        self.step_number += 1
        self._begin_step()

    def _write_records(self, skipped: bool) -> None:
        now = time.time()
        for micro, sites in enumerate(self._finished):
            last = micro == len(self._finished) - 1
            parameters = self._ledger.parameter_norms if last else {}
            record = Record(self.step_number, micro, now, sites, parameters, self._scale, skipped)
            self._store(lambda record=record: self._writer.add_record(record))  # type: ignore[misc]
            self.records_written += 1

    def _write_rows(self, ended_only: bool) -> None:
        for event in self._ledger.take_clips():
            self._store(lambda event=event: self._writer.add_clip(event))  # type: ignore[misc]
        for row in self._ledger.take_rows(ended_only, self.step_number):
            self._store(lambda row=row: self._writer.add_step(row))  # type: ignore[misc]

    def _close_micro(self) -> None:
        if self._sites:
            self._finished.append(self._sites)
            self._sites = {}
            self._uses.clear()

    # -- what the watcher reports ----------------------------------------------------------------------------

    def began(self) -> None:
        self._ledger.touched = True

    def opened(self, target: Target) -> int:
        inside_backward = torch._C._current_graph_task_id() != -1
        if self._sites and not inside_backward:
            self._close_micro()  # forward after backward: the next micro-batch
        if inside_backward and target.path in self._uses:
            return self._uses[target.path]  # a checkpoint running the layer once more, not another use
        self._coverage.opened(target.path)
        self._uses[target.path] = self._uses.get(target.path, 0) + 1
        return self._uses[target.path]

    def measured(
        self, target: Target, use: int, site: str, adjoints: Adjoints, rows: Tensor, carried: int, after: int = 0
    ) -> None:
        info = next(info for info in target.sites if info.site == site)
        if self._infos.get(site, info).how != info.how or site not in self._infos:
            self._infos[site] = info
            self._store(lambda: self._writer.set_sites(self._infos))
        name = site if use == 1 else f"{site}#{use}"
        if name in self._sites:
            self._close_micro()  # a second backward pass through the same call
        if name not in self._infos:
            self._infos[name] = replace(info, site=name, call=use)
            self._store(lambda: self._writer.set_sites(self._infos))
        self._sites[name] = site_record(
            adjoints, self.settings.quantities, info.gates, rows, self.settings.tensors, carried, after
        )
        self._coverage.found(name, info.how)

    def missed(self, target: Target, reason: str) -> None:
        self._coverage.missed(target.path, reason)

    def failed(self, target: Target, error: Exception) -> None:
        self._coverage.missed(target.path, FAILED)
        self._lost(f"recording {target.path}", error)

    def missing(self, target: Target, quantity: str, reason: str) -> None:
        if quantity in self.settings.quantities:
            self._coverage.missing(target.path, quantity, reason)

    def nothing(self, reason: str) -> None:
        self._coverage.missed("model", reason)
        self._warn("nothing", f"gradscope: {reason}")

    def loss_scale(self) -> float:
        return self._scale

    # -- what clipping and scaling report --------------------------------------------------------------------

    def before_clip(self, parameters: list[Tensor], kind: str, threshold: float) -> Any:
        with self._unharmed("clipping"):
            return self._ledger.before_clip(parameters, kind, threshold, self.recording)
        return None

    def after_clip(
        self, parameters: list[Tensor], kind: str, threshold: float, before: Any, total_norm: Tensor | None
    ) -> None:
        with self._unharmed("clipping"):
            self._ledger.after_clip(parameters, kind, threshold, before, total_norm, self.step_number)

    def scaled(self, scaler: torch.amp.GradScaler) -> None:
        with self._unharmed("loss scale"):
            self._stepped.clear()
            if self.recording:
                self._scale = float(scaler.get_scale())

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        with self._unharmed("step"):
            if optimizer in self._rounds and id(optimizer) not in self._stepped:
                self._rounds.stepped(optimizer, skipped=True)

    # -- never in the way ------------------------------------------------------------------------------------

    def _store(self, write: Callable[[], object]) -> None:
        with self._unharmed("writing the run"):
            write()

    @contextlib.contextmanager
    def _unharmed(self, doing: str) -> Iterator[None]:
        """Keep any error of gradscope out of the user's training: warn once, count it."""
        try:
            yield
        except Exception as error:
            self._lost(doing, error)

    def _lost(self, doing: str, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._writer.add_lost(f"{doing}: {type(error).__name__}: {error}", 1)
        self._warn(
            doing,
            f"gradscope: {doing} failed ({type(error).__name__}: {error}); training goes on, the report will say so",
        )

    def _warn(self, about: str, message: str) -> None:
        """Warn once about each thing."""
        if about in self._warned:
            return
        self._warned.add(about)
        try:
            warnings.warn(message, GradscopeWarning, stacklevel=3)
        except GradscopeWarning:  # warnings turned into errors must not stop the training either
            print(message, file=sys.stderr)


def record(
    model: nn.Module,
    run_dir: str | Path,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    every: int = 10,
    samples: int | None = 8,
    quantities: Sequence[str] | str | None = None,
    sites: Sequence[str] | str | None = None,
    tensors: bool = False,
    durability: str = "default",
    restart: bool = False,
) -> Recorder:
    """Record the adjoints of an unmodified model while it trains.

    Steps 0, ``every``, 2·``every`` ... are recorded. Training with recording is bit-identical to training without.

    Parameters
    ----------
    model : nn.Module
        Any model with recurrent layers. Nothing is attached to it; it can be copied and saved meanwhile.
    run_dir : path
        Directory of the run; it must not exist (see ``restart``).
    optimizer : torch.optim.Optimizer or sequence of them, optional
        Its steps are counted. Several make one step together: it ends when each has stepped, or with the next forward
        pass where they take turns. Without one, call ``recorder.step()`` after each update.
    every : int
        Record one step in ``every``.
    samples : int or None
        Sequences of the batch to record, evenly spaced; sequences do not mix, so a subset is exact. None for all.
    quantities : str or sequence of str, optional
        Of ``gradscope.schema.QUANTITIES``; ``hidden``, ``cell``, ``input`` and ``direct`` by default, or ``"all"``.
    sites : str or sequence of str, optional
        Sites, module paths or patterns; every recurrent layer by default. The path of any other module records the
        gradient of its input.
    tensors : bool
        Keep the full tensors (float32) beside the norms.
    durability : {"default", "full"}
        ``default`` survives a crash of the process, ``full`` also a power cut at any moment.
    restart : bool
        Add a new attempt to an existing run directory.

    Returns
    -------
    Recorder
        A context manager; leaving it seals the run.

    Raises
    ------
    SettingError, UnknownNameError, NothingToRecordError, RunExistsError
        At once, before anything is written.
    """
    settings, targets = Settings.checked(
        model,
        run_dir=run_dir,
        optimizer=optimizer,
        every=every,
        samples=samples,
        quantities=quantities,
        sites=sites,
        tensors=tensors,
        durability=durability,
        restart=restart,
    )
    return Recorder(model, settings, targets)
