"""Record the trainings of a script that knows nothing of gradscope.

Optimizers announce themselves when they are made. At the first forward pass that builds a graph over parameters of
such an optimizer, the models that own these parameters are known, and recording begins: before that pass runs, so
that step 0 is recorded.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradscope.capture.calls.eager import eager, heed, quieten
from gradscope.capture.layers.discovery import unwrapped
from gradscope.capture.training import clipping
from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.recording import record
from gradscope.capture.training.updates import parameters_of
from gradscope.errors import GradscopeError, RunExistsError
from gradscope.words import counted

#: Runs of one script beside each other: a guard against a script that makes models without end.
MAX_RUNS = 1000


class Models(nn.Module):
    """Several models that are trained together, under the names they have in the script."""


class _Bystander:
    """Keeps torch's clipping functions observed, so that a function imported by name is an observed one."""

    def before_clip(self, call: clipping.ClipCall) -> None: ...

    def after_clip(self, call: clipping.ClipCall, before: Any, total_norm: Tensor | None) -> None: ...

    def harmed(self, doing: str, error: Exception) -> None: ...


@dataclass
class Training:
    """Models trained together, with their optimizers; a recorder once it has begun."""

    roots: list[nn.Module]
    optimizers: list[torch.optim.Optimizer]
    recorder: Recorder | None = None
    #: Begun before any optimizer was made: perhaps the script updates by hand, perhaps it only tries the model.
    provisional: bool = False

    def trained(self) -> set[int]:
        """Identities of the parameters."""
        return {id(parameter) for root in self.roots for parameter in root.parameters()}


@dataclass
class Outcome:
    """What became of one training."""

    name: str
    run_dir: Path
    records: int
    steps: int
    reasons: tuple[str, ...] = ()
    #: Steps that its optimizers took after a later training had ended the recording.
    later_steps: int = 0


class Launcher:
    """Find the trainings of this process and record each.

    Parameters
    ----------
    run_dir : Path
        Run of the first training; a second one is written to ``<run_dir>-2`` beside it.
    **settings
        As for :func:`gradscope.record`.
    """

    def __init__(self, run_dir: Path, **settings: Any) -> None:
        self._run_dir, self._settings = run_dir, settings
        self._started_in = Path.cwd()
        self._process = os.getpid()
        self._bystander = _Bystander()
        self._installed: tuple[Any, Any] | None = None
        self._unsettled: list[weakref.ref[torch.optim.Optimizer]] = []
        self._looked_at: set[int] = set()
        self._hook: Any = None
        self._silenced: Any = None
        self._open: list[Training] = []
        self._first: Any = None
        self._runs = 0
        self._optimizers = 0
        self._aside = False
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []
        #: Models in which nothing recurs, and what came nearest.
        self._without: list[str] = []

    def install(self) -> None:
        """Begin to look out for optimizers; nothing is done in worker processes that are forked later."""
        clipping.observe_clipping(self._bystander)
        # Called first thing by every new, copied or unpickled optimizer. A wrapper around __init__ would stand in the
        # traceback of a script that passes it something wrong.
        announce = torch.optim.Optimizer._patch_step_function

        def announced(optimizer: torch.optim.Optimizer) -> None:
            announce(optimizer)
            self._optimizer_made(optimizer)

        setattr(torch.optim.Optimizer, "_patch_step_function", announced)  # noqa: B010
        self._installed = (announce, announced)
        self._first = register_module_forward_pre_hook(eager(self._before_first))

    def finish(self) -> list[str]:
        """Close what is open; return what there is to say."""
        if os.getpid() != self._process:
            return []
        self._stop_looking()
        self._stop_waiting_for_hands()
        self._close_all()
        clipping.ignore_clipping(self._bystander)
        if self._installed is not None:
            announce, announced = self._installed
            if torch.optim.Optimizer._patch_step_function is announced:
                setattr(torch.optim.Optimizer, "_patch_step_function", announce)  # noqa: B010
            self._installed = None
        return list(self._said())

    # -- finding ---------------------------------------------------------------------------------------------

    def _optimizer_made(self, optimizer: torch.optim.Optimizer) -> None:
        if self._aside or os.getpid() != self._process:
            return
        self._optimizers += 1
        self._stop_waiting_for_hands()
        self._unsettled = [held for held in self._unsettled if held() is not None] + [weakref.ref(optimizer)]
        self._looked_at.clear()
        if self._hook is None:
            self._hook = register_module_forward_pre_hook(eager(self._before_forward))
            self._silenced = quieten()

    def _before_first(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Begin with a model that is called before any optimizer is made: its updates may be the script's own."""
        trains = torch.is_grad_enabled() and module.training and id(module) not in self._looked_at
        if not trains or os.getpid() != self._process:
            return None
        self._looked_at.add(id(module))
        try:
            held = {id(p) for p in module.parameters() if p.requires_grad}
            if not held or self._stepped_aside():
                return None
            self._stop_waiting_for_hands()
            roots = _Living().owners(held, module)
            for root in roots[:1]:
                training = Training([root], [], provisional=True)
                self._begin(training)
                self._open += [training] if training.recorder is not None else []
                return training.recorder.entering(module, args) if training.recorder is not None else None
        except Exception as error:
            self.problems.append(f"looking for models failed ({type(error).__name__}: {error})")
            self._stop_waiting_for_hands()
        return None

    def _stop_waiting_for_hands(self) -> None:
        if self._first is not None:
            self._first.remove()
            self._first = None

    def _stop_looking(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        heed(self._silenced)
        self._looked_at.clear()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled() or id(module) in self._looked_at or os.getpid() != self._process:
            return None
        begun: list[Training] = []
        try:
            self._looked_at.add(id(module))
            wanted = {id(p) for held in self._unsettled if (o := held()) is not None for p in parameters_of(o)}
            if any(id(p) in wanted for p in module.parameters()):
                begun = self._settle(module)
        except Exception as error:
            self.problems.append(f"looking for models failed ({type(error).__name__}: {error})")
            self._stop_looking()
        for training in begun:
            if training.recorder is not None and (changed := training.recorder.entering(module, args)) is not None:
                return changed
        return None

    def _settle(self, calling: nn.Module) -> list[Training]:
        optimizers = [optimizer for held in self._unsettled if (optimizer := held()) is not None]
        self._unsettled.clear()
        self._stop_looking()
        if self._stepped_aside():
            return []
        begun: list[Training] = []
        for optimizer, roots in _owners(optimizers, calling):
            self._place(Training(roots, [optimizer]), begun)
        if begun:
            self._close_all()
        for training in begun:
            self._begin(training)
        self._open += [training for training in begun if training.recorder is not None]
        return begun

    def _place(self, found: Training, begun: list[Training]) -> None:
        """Join an optimizer to a training, or begin a new one."""
        trained = found.trained()
        for training in self._open:
            if training.recorder is not None and trained and trained <= training.trained():
                training.recorder.follow(found.optimizers[0])  # the same model, trained on with a new optimizer
                training.provisional = False
                return
        for training in begun:
            shared = any(root is other for root in found.roots for other in training.roots)
            # Models of one class are repetitions (folds, seeds); models of different classes work together.
            kinds = {type(unwrapped(root)) for root in training.roots}
            if shared or not kinds & {type(unwrapped(root)) for root in found.roots}:
                training.optimizers += found.optimizers
                training.roots += [r for r in found.roots if not any(r is other for other in training.roots)]
                return
        begun.append(found)

    # -- recording -------------------------------------------------------------------------------------------

    def _begin(self, training: Training) -> None:
        model = training.roots[0] if len(training.roots) == 1 else _joined(training.roots)
        while self._runs < MAX_RUNS:
            self._runs += 1
            run_dir = self._run_dir if self._runs == 1 else Path(f"{self._run_dir}-{self._runs}")
            try:
                training.recorder = record(model, run_dir, optimizer=training.optimizers, **self._settings)
            except RunExistsError:
                continue
            except (GradscopeError, OSError) as error:
                self.problems.append(f"{_name(model)} was not recorded: {error}")
                self._runs -= 1
            else:
                training.optimizers = []  # the recorder's now
                training.recorder.keeps_quiet = True
            return

    def _stepped_aside(self) -> bool:
        """Whether the script records itself: then this is its own business."""
        mine = [training.recorder for training in self._open]
        if any(isinstance(o, Recorder) and o not in mine for o in clipping.observers()):
            self._aside = True
        return self._aside

    def _close_all(self) -> None:
        self._stepped_aside()
        for training in self._open:
            recorder = training.recorder
            assert recorder is not None
            recorder.close()
            idle = training.provisional or recorder.nothing_recurs
            if idle and not recorder.records_written:
                if recorder.nothing_recurs:
                    self._without.append(f"{_name(recorder.model)}: {recorder.nothing_recurs}")
                self._withdraw(recorder)
                continue
            reasons = tuple(f"{line.site}: {line.reason}" for line in recorder._coverage.lines() if line.reason)
            outcome = Outcome(
                _name(recorder.model), recorder.run_dir, recorder.records_written, recorder.step_number, reasons
            )
            self.outcomes.append(outcome)
            for optimizer in recorder._account.optimizers:
                _count_later_steps(optimizer, outcome)
        self._open.clear()

    def _withdraw(self, recorder: Recorder) -> None:
        """Leave nothing of a run that was begun for a model which the script did not train."""
        attempt = recorder.written_to.parent
        shutil.rmtree(recorder.written_to, ignore_errors=True)
        for folder in (attempt, recorder.run_dir):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._runs -= 1

    # -- saying ----------------------------------------------------------------------------------------------

    def _said(self) -> Iterator[str]:
        for outcome in self.outcomes:
            where = self._shown(outcome.run_dir)
            taken = f"{counted(outcome.records, 'record')} of {counted(outcome.steps, 'step')}"
            yield f"{taken} of {outcome.name} in {where}"
            if not outcome.records:
                yield from outcome.reasons[:3] or ("no optimizer step followed a forward pass",)
            if outcome.later_steps:
                later, were = ("later step", "was") if outcome.later_steps == 1 else ("later steps", "were")
                yield (
                    f"{outcome.later_steps} {later} of {outcome.name} {were} not recorded: another training had begun"
                )
        yield from self.problems
        if self._aside:
            yield "the script records itself with gradscope.record: left to it"
        elif not self.outcomes and not self.problems:
            yield f"nothing was recorded: {self._nothing()}"

    def _shown(self, path: Path) -> str:
        # As seen from the user's shell, wherever the script has gone since.
        return str(path.relative_to(self._started_in)) if path.is_relative_to(self._started_in) else str(path)

    def _nothing(self) -> str:
        if self._without:
            return "; ".join(self._without[:3])
        if not self._optimizers:
            return (
                "no update was seen: the script made no optimizer of torch.optim, and no parameter of a model changed "
                "after a backward pass. If it trains one, add gradscope.record(model, RUN) to the script, and "
                "recorder.step() after each update"
            )
        if self._unsettled:
            return "no forward pass with gradients reached a model that an optimizer of torch.optim trains"
        return "no forward pass with gradients reached a model that an optimizer of torch.optim trains, when it was due"


def _owners(
    optimizers: Iterable[torch.optim.Optimizer], calling: nn.Module
) -> Iterator[tuple[torch.optim.Optimizer, list[nn.Module]]]:
    """Yield each optimizer with the outermost models it trains."""
    living = _Living()
    for optimizer in optimizers:
        if chosen := living.owners({id(p) for p in parameters_of(optimizer)}, calling):
            yield optimizer, chosen


class _Living:
    """Every module there is now."""

    def __init__(self) -> None:
        # The collector's list rather than a register kept from the start: it also has copied and unpickled modules.
        self._modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and type(o) is not Models]
        self._parents: dict[int, list[nn.Module]] = {}
        for module in self._modules:
            for child in _children(module):
                self._parents.setdefault(id(child), []).append(module)

    def owners(self, held: set[int], calling: nn.Module) -> list[nn.Module]:
        """Return the outermost models that own the parameters of ``held``; what recurs in them is found as they run."""
        around = {id(module) for module in calling.modules()}
        owning = [m for m in self._modules if any(id(p) in held for p in _own_parameters(m))]
        roots = _roots(owning, self._parents)
        # The way the script calls it comes first, then the larger model; a second wrapper of the same adds nothing.
        roots.sort(key=lambda root: (not around & {id(m) for m in root.modules()}, -sum(1 for _ in root.modules())))
        chosen, covered = [], set[int]()
        for root in roots:
            inside = {id(parameter) for parameter in root.parameters()} & held
            if inside - covered:
                chosen.append(root)
                covered |= inside
        return chosen


def _own_parameters(module: nn.Module) -> Iterable[Any]:
    own = vars(module).get("_parameters")
    return list(own.values()) if isinstance(own, dict) else ()


def _children(module: nn.Module) -> Iterable[nn.Module]:
    children = vars(module).get("_modules")
    return [child for child in children.values() if child is not None] if isinstance(children, dict) else ()


def _roots(modules: list[nn.Module], parents: dict[int, list[nn.Module]]) -> list[nn.Module]:
    roots: dict[int, nn.Module] = {}
    seen: set[int] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        above = parents.get(id(module), [])
        pending += above
        if not above:
            roots[id(module)] = module
    return list(roots.values())


def _joined(roots: list[nn.Module]) -> Models:
    """Put models side by side under the name of their variable in the script, or of their class."""
    models = Models()
    variables = dict(vars(sys.modules["__main__"]))
    for root in roots:
        own = unwrapped(root)
        found = (name for name, value in variables.items() if value is root or value is own)
        name = next((name for name in found if not name.startswith("_")), type(own).__name__)
        taken, number = name, 1
        while hasattr(models, taken):
            number += 1
            taken = f"{name}_{number}"
        models.add_module(taken, own)
    return models


def _name(model: nn.Module) -> str:
    own = unwrapped(model)
    parts = [f"{name} ({type(child).__name__})" for name, child in own.named_children()]
    return " and ".join(parts) if isinstance(own, Models) else type(own).__name__


def _count_later_steps(optimizer: torch.optim.Optimizer, outcome: Outcome) -> None:
    # Must not hold the optimizer: the model of a training that is over should be free to go.
    def count(*_: Any) -> None:
        outcome.later_steps += 1

    optimizer.register_step_post_hook(count)
