"""Training loops as people write them, each with what it did, computed in the loop by hand.

A loop gets a :class:`Table`: a model, batches, and a recorder or, for the twin that is not recorded, nothing in its
place. It notes every step: the gradient at the last state of each pass that fed the update and of each that did not,
norms before clipping and as applied, clipping calls with where they stood.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_ as imported_by_name
from torch.nn.utils import clip_grad_value_ as values_imported_by_name

import gradscope

T, B, FEATURES, H = 5, 3, 2, 4


class Net(nn.Module):
    """Reads the last output: its gradient there is the adjoint at lag 0."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(FEATURES, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.states = self.rnn(x)[0]
        if self.states.requires_grad:
            self.states.retain_grad()
        return self.out(self.states[-1])


@dataclass
class Step:
    """One step: gradients at the last state per pass, norms, what was apart by role."""

    passes: list[float]
    raw: float = math.nan
    applied: float = math.nan
    skipped: bool = False
    apart: list[tuple[str, float]] = field(default_factory=list)


class Quiet:
    """Stands for the recorder in the twin that is not recorded."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def step(self) -> None: ...

    def log(self, **_: Any) -> None: ...

    def clip_grad_norm_(self, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], float):
            args = (list(self._table.model.parameters()), *args)
        return torch.nn.utils.clip_grad_norm_(*args, **kwargs)


class Table:
    """What a loop works with, and where it notes what it did."""

    def __init__(self, run_dir: Path | None) -> None:
        torch.manual_seed(0)
        self.run_dir, self.site, self.every = run_dir, "rnn/l0", 1
        self.model: Any = Net().double()
        self.steps: list[Step] = []
        self.clips: list[tuple[int, str, float]] = []
        self.parts: list[str] = []
        self.recorder: Any = Quiet(self)

    @contextlib.contextmanager
    def recorded(self, *optimizers: Any, **settings: Any) -> Iterator[Any]:
        """Record, or not."""
        if self.run_dir is None:
            yield self.recorder
            return
        given: dict[str, Any] = {"optimizer": list(optimizers)} if optimizers else {}
        with gradscope.record(
            self.model, self.run_dir, every=self.every, samples=None, **given, **settings
        ) as recorder:
            self.recorder = recorder
            yield recorder

    def sgd(self, *models: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
        return torch.optim.SGD([p for m in (models or (self.model,)) for p in m.parameters()], lr=lr)

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """Return the loss on a new batch."""
        x = torch.randn(T, B, FEATURES, dtype=torch.float64)
        return ((model or self.model)(x) - x.sum((0, 2))[:, None]).pow(2).mean()

    def at_last(self, model: Any = None) -> float:
        """Return the norm of the gradient at the last state of the first sequence, of the pass just made."""
        return float((model or self.model).states.grad[-1, 0].double().norm())

    def backward(self, loss: Tensor | None = None) -> float:
        """Make a pass; return :meth:`at_last`."""
        (self.loss() if loss is None else loss).backward()
        return self.at_last()

    def backward_once_more(self, loss: Tensor, **options: Any) -> float:
        """Make a pass over a graph that others may have been through: what is retained there adds up."""
        before = self.model.states.grad
        before = 0 if before is None else before.clone()
        loss.backward(**options)
        return float((self.model.states.grad - before)[-1, 0].norm())

    def norm(self, parameters: Any = None, kind: float = 2.0) -> float:
        grads = [p.grad for p in (parameters or self.model.parameters()) if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]), kind)) if grads else 0.0

    def note(self, passes: list[float], raw: float = math.nan, applied: float | None = None, **more: Any) -> None:
        self.steps.append(Step(passes, raw, raw if applied is None else applied, **more))

    def clip(self, place: str, before: float, step: int | None = None, part: str = "") -> None:
        self.parts.append(part)
        self.clips.append((len(self.steps) if step is None else step, place, before))


LOOPS: dict[str, Callable[[Table], None]] = {}


def loop(function: Callable[[Table], None]) -> Callable[[Table], None]:
    LOOPS[function.__name__] = function
    return function


# --- how gradients are zeroed ----------------------------------------------------------------------------------------


def _plain(t: Table, zero: Callable[[torch.optim.Optimizer], None], when: str = "after") -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            if when == "before":
                zero(optimizer)
            loss = t.loss()
            if when == "between":
                zero(optimizer)
            passed = t.backward(loss)
            t.note([passed], t.norm())
            optimizer.step()
            if when == "after":
                zero(optimizer)


@loop
def zero_grad_after_the_update(t: Table) -> None:
    _plain(t, lambda o: o.zero_grad())


@loop
def zero_grad_before_the_forward_pass(t: Table) -> None:
    _plain(t, lambda o: o.zero_grad(), "before")


@loop
def zero_grad_between_forward_and_backward(t: Table) -> None:
    _plain(t, lambda o: o.zero_grad(), "between")


@loop
def zero_grad_that_keeps_the_tensors(t: Table) -> None:
    _plain(t, lambda o: o.zero_grad(set_to_none=False), "between")


@loop
def model_zero_grad(t: Table) -> None:
    _plain(t, lambda o: t.model.zero_grad(), "before")


@loop
def gradients_set_to_none_by_hand(t: Table) -> None:
    def zero(_: Any) -> None:
        for p in t.model.parameters():
            p.grad = None

    _plain(t, zero)


@loop
def gradients_zeroed_by_hand(t: Table) -> None:
    def zero(_: Any) -> None:
        for p in t.model.parameters():
            if p.grad is not None:
                p.grad.zero_()

    _plain(t, zero, "before")


# --- clipping --------------------------------------------------------------------------------------------------------


def _clipped(t: Table, clip: Callable[[Any], float], steps: int = 3, part: str = "") -> None:
    """A plain loop with one clipping call between pass and update; ``clip`` returns the norm it saw."""
    optimizer = t.sgd()
    with t.recorded(optimizer) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            t.clip("update", clip(recorder), part=part)
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_grad_norm(t: Table) -> None:
    _clipped(t, lambda r: float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))


@loop
def clip_grad_norm_imported_by_name(t: Table) -> None:
    _clipped(t, lambda r: float(imported_by_name(t.model.parameters(), 0.2)))


@loop
def clip_through_the_recorder_in_short(t: Table) -> None:
    _clipped(t, lambda r: float(r.clip_grad_norm_(0.2)))


@loop
def clip_through_the_recorder_in_torchs_form(t: Table) -> None:
    _clipped(t, lambda r: float(r.clip_grad_norm_(t.model.parameters(), 0.2, 2, error_if_nonfinite=True)))


@loop
def clip_one_tensor_through_the_recorder(t: Table) -> None:
    _clipped(t, lambda r: float(r.clip_grad_norm_(t.model.rnn.weight_hh_l0, 0.01)), part="rnn.weight_hh_l0")


@loop
def clip_by_the_largest_element(t: Table) -> None:
    _clipped(t, lambda r: float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.2, math.inf)))


@loop
def clip_by_the_one_norm_without_foreach(t: Table) -> None:
    _clipped(t, lambda r: float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.2, 1.0, foreach=False)))


@loop
def clip_in_two_functional_calls(t: Table) -> None:
    def clip(_: Any) -> float:
        parameters = list(t.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.nn.utils.clip_grads_with_norm_(parameters, 0.2, norm)
        return float(norm)

    _clipped(t, clip)


@loop
def clip_values(t: Table) -> None:
    def clip(_: Any) -> float:
        norm = t.norm()
        torch.nn.utils.clip_grad_value_(t.model.parameters(), 0.05)
        return norm

    _clipped(t, clip)


@loop
def clip_values_imported_by_name(t: Table) -> None:
    def clip(_: Any) -> float:
        norm = t.norm()
        values_imported_by_name(t.model.parameters(), 0.05)
        return norm

    _clipped(t, clip)


@loop
def clip_after_the_update(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(4):
            optimizer.zero_grad()
            t.note([t.backward()], t.norm())
            optimizer.step()
            t.clip("after", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)), step=k)


@loop
def clip_before_the_pass(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(4):
            t.clip("before", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
            optimizer.zero_grad()
            t.note([t.backward()], t.norm())
            optimizer.step()


@loop
def clip_of_gradients_just_zeroed(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            loss = t.loss()
            t.clip("before", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
            t.note([t.backward(loss)], t.norm())
            optimizer.step()


@loop
def clip_two_parts(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.rnn.parameters(), 0.1)), part="rnn")
            t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.out.parameters(), 0.02)), part="out")
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_twice(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            for threshold in (0.5, 0.1):
                t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), threshold)))
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_each_parameter(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            for name, p in t.model.named_parameters():
                t.clip("update", float(torch.nn.utils.clip_grad_norm_(p, 0.05)), part=name)
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_with_code_of_the_scripts_own(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            for p in t.model.parameters():
                p.grad.mul_(0.1 / raw)
            t.note([passed], raw, t.norm())
            optimizer.step()


# --- accumulation ----------------------------------------------------------------------------------------------------


@loop
def accumulation(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            passes = [t.backward(t.loss() / 3) for _ in range(3)]
            t.note(passes, t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def accumulation_with_a_clip_of_every_partial_sum(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            passes = []
            for k in range(3):
                passes.append(t.backward(t.loss() / 3))
                raw = t.norm()
                t.clip("update" if k == 2 else "partial", raw)
                torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)
            t.note(passes, raw, t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def accumulation_clipped_once(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            passes = [t.backward(t.loss() / 3) for _ in range(3)]
            raw = t.norm()
            t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
            t.note(passes, raw, t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def two_losses_of_one_forward_pass(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            loss = t.loss()
            first = t.backward_once_more(loss, retain_graph=True)
            second = t.backward_once_more(0.1 * loss)
            t.note([first, second], t.norm())
            optimizer.step()


# --- closures --------------------------------------------------------------------------------------------------------


@loop
def closure(t: Table) -> None:
    optimizer = torch.optim.Adam(t.model.parameters(), 1e-2)
    with t.recorded(optimizer):
        for _ in range(3):

            def evaluate() -> Tensor:
                optimizer.zero_grad()
                loss = t.loss()
                t.note([t.backward(loss)], t.norm())
                return loss

            optimizer.step(evaluate)


@loop
def closure_that_clips(t: Table) -> None:
    optimizer = torch.optim.Adam(t.model.parameters(), 1e-2)
    with t.recorded(optimizer):
        for _ in range(3):

            def evaluate() -> Tensor:
                optimizer.zero_grad()
                loss = t.loss()
                passed, raw = t.backward(loss), t.norm()
                t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
                t.note([passed], raw, t.norm())
                return loss

            optimizer.step(closure=evaluate)


@loop
def closure_of_accumulated_passes(t: Table) -> None:
    optimizer = torch.optim.SGD(t.model.parameters(), 1e-2)
    with t.recorded(optimizer):
        for _ in range(2):

            def evaluate() -> Tensor:
                optimizer.zero_grad()
                passes = [t.backward(t.loss() / 2) for _ in range(2)]
                t.note(passes, t.norm())
                return torch.zeros(())

            optimizer.step(evaluate)


def _steps_of_lbfgs(t: Table, **options: Any) -> None:
    optimizer = torch.optim.LBFGS(t.model.parameters(), **options)
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    with t.recorded(optimizer):
        for _ in range(2):
            evaluations: list[tuple[float, float]] = []

            def evaluate(evaluations: list[tuple[float, float]] = evaluations) -> Tensor:
                optimizer.zero_grad()
                loss = (t.model(x) - x.sum((0, 2))[:, None]).pow(2).mean()
                evaluations.append((t.backward(loss), t.norm()))
                return loss

            optimizer.step(evaluate)
            first, *others = evaluations
            t.note([first[0]], first[1], apart=[("evaluation", passed) for passed, _ in others])


@loop
def lbfgs(t: Table) -> None:
    _steps_of_lbfgs(t, max_iter=3, lr=0.1)


@loop
def lbfgs_with_a_line_search(t: Table) -> None:
    _steps_of_lbfgs(t, max_iter=4, line_search_fn="strong_wolfe")


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is usually written: an optimizer around another."""

    def __init__(self, parameters: Any, base: Any, rho: float = 0.05, **settings: Any) -> None:
        super().__init__(parameters, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)

    @torch.no_grad()
    def first_step(self) -> None:
        grads = [p.grad for g in self.param_groups for p in g["params"]]
        scale = 0.05 / (torch.cat([g.flatten() for g in grads]).norm() + 1e-12)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad * scale)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


@loop
def sam_in_two_steps(t: Table) -> None:
    optimizer = SAM(t.model.parameters(), torch.optim.SGD, lr=0.1)
    with t.recorded(optimizer):
        for _ in range(3):
            ascent = t.backward()
            optimizer.first_step()
            descent = t.backward()
            t.note([descent], t.norm(), apart=[("dropped", ascent)])
            optimizer.second_step()


@loop
def sam_with_a_closure(t: Table) -> None:
    optimizer = SAM(t.model.parameters(), torch.optim.SGD, lr=0.1)
    with t.recorded(optimizer):
        for _ in range(3):
            ascent = t.backward()

            def evaluate(ascent: float = ascent) -> None:
                descent = t.backward()
                t.note([descent], t.norm(), apart=[("dropped", ascent)])

            optimizer.step(evaluate)


# --- skipped updates -------------------------------------------------------------------------------------------------


def _skipping(t: Table, clip: bool, zero: str) -> None:
    optimizer = t.sgd(lr=1e-4)
    with t.recorded(optimizer) as recorder:
        for k in range(6):
            if zero == "before":
                optimizer.zero_grad()
            loss = t.loss() * (1000 if k in (2, 3) else 1)
            if zero == "between":
                optimizer.zero_grad()
            passed, raw = t.backward(loss), t.norm()
            skipped = k in (2, 3)
            if clip:
                t.clip("skipped" if skipped else "update", float(recorder.clip_grad_norm_(10.0)))
            t.note(
                [passed], raw if clip or not skipped else math.nan, math.nan if skipped else t.norm(), skipped=skipped
            )
            if not skipped:
                optimizer.step()


@loop
def an_update_skipped_for_a_large_norm(t: Table) -> None:
    _skipping(t, clip=True, zero="before")


@loop
def an_update_skipped_for_a_norm_of_the_scripts_own(t: Table) -> None:
    _skipping(t, clip=False, zero="before")


@loop
def an_update_skipped_with_zero_grad_after_the_forward_pass(t: Table) -> None:
    _skipping(t, clip=True, zero="between")


@loop
def updates_skipped_from_the_first_step_on(t: Table) -> None:
    """Nothing has shown yet what a step of this loop is; the batches' losses are logged after all."""
    optimizer = t.sgd(lr=1e-4)
    with t.recorded(optimizer) as recorder:
        for k in range(5):
            optimizer.zero_grad()
            passed = t.backward(t.loss() * (1000 if k < 2 else 1))
            skipped = k < 2
            t.clip("skipped" if skipped else "update", raw := float(recorder.clip_grad_norm_(10.0)))
            t.note([passed], raw, math.nan if skipped else t.norm(), skipped=skipped)
            if not skipped:
                optimizer.step()
            recorder.log(batch=k)


@loop
def an_accumulation_given_up_at_the_end_of_an_epoch(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer) as recorder:
        given_up: list[tuple[str, float]] = []
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(2):
                passes = []
                for k in range(3):
                    passes.append(t.backward(t.loss() / 3))
                    t.clip("update" if k == 2 else "partial", float(recorder.clip_grad_norm_(100.0)))
                t.note(passes, t.norm(), apart=given_up)
                given_up = []
                optimizer.step()
                optimizer.zero_grad()
            given_up = [("dropped", t.backward(t.loss() / 3))]
            t.clip("dropped", float(recorder.clip_grad_norm_(100.0)))
        optimizer.zero_grad()
        t.note([t.backward()], t.norm(), apart=given_up)
        optimizer.step()


# --- loss scales -----------------------------------------------------------------------------------------------------


def _scaled(t: Table, unscale: bool, clip: bool, parts: int = 1, spoil: int = -1, fused: bool = False) -> None:
    optimizer, scaler = t.sgd(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    if fused:
        optimizer = torch.optim.SGD(t.model.parameters(), 0.1, fused=True)
    with t.recorded(optimizer):
        for k in range(4):
            optimizer.zero_grad()
            passes, scale = [], scaler.get_scale()
            for _ in range(parts):
                loss = scaler.scale(t.loss()) / parts
                passes.append(t.backward(loss) / scale)
            if k == spoil:
                t.model.out.bias.grad.fill_(math.inf)
            raw = t.norm() / scale
            if unscale:
                scaler.unscale_(optimizer)
            if clip:
                t.clip("update", t.norm() / (1 if unscale else scale))
                torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)
            applied = t.norm() / (1 if unscale else scale)
            skipped = k == spoil
            # A fused optimizer is called all the same, and skips inside: its gradient was measured.
            known = raw if fused or not skipped else math.nan
            t.note(passes, known, math.nan if skipped else applied, skipped=skipped)
            scaler.step(optimizer)
            scaler.update()


@loop
def a_loss_scale(t: Table) -> None:
    _scaled(t, unscale=False, clip=False)


@loop
def a_loss_scale_divided_out_before_clipping(t: Table) -> None:
    _scaled(t, unscale=True, clip=True)


@loop
def a_loss_scale_left_in_while_clipping(t: Table) -> None:
    _scaled(t, unscale=False, clip=True)


@loop
def a_loss_scale_with_accumulation(t: Table) -> None:
    _scaled(t, unscale=True, clip=True, parts=3)


@loop
def a_loss_scale_that_skips_an_update(t: Table) -> None:
    _scaled(t, unscale=False, clip=False, spoil=2)


@loop
def a_loss_scale_that_a_fused_optimizer_divides_out_itself(t: Table) -> None:
    _scaled(t, unscale=False, clip=False, fused=True)


@loop
def a_loss_scale_for_which_a_fused_optimizer_skips(t: Table) -> None:
    _scaled(t, unscale=False, clip=False, spoil=2, fused=True)


# --- whose optimizer it is -------------------------------------------------------------------------------------------


@loop
def an_optimizer_that_was_not_given(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded():
        for _ in range(3):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def an_optimizer_of_another_model_given(t: Table) -> None:
    optimizer, other = t.sgd(), t.sgd(nn.Linear(2, 2))
    with t.recorded(other):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()


class Schedule:
    """An object that is no optimizer and holds one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] *= 0.9
        self.optimizer.step()


@loop
def a_schedule_around_an_optimizer(t: Table) -> None:
    optimizer = Schedule(t.sgd())
    with t.recorded(optimizer):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.optimizer.zero_grad()


class Lookahead(torch.optim.Optimizer):
    """An optimizer of torch that steps another inside of its own step."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure: Any = None) -> None:
        self.inner.step()


@loop
def an_optimizer_inside_an_optimizer(t: Table) -> None:
    optimizer = Lookahead(t.sgd())
    with t.recorded(optimizer):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def gradients_assigned_by_hand_to_an_optimizer(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            loss, parameters = t.loss(), list(t.model.parameters())
            *grads, at_states = torch.autograd.grad(loss, [*parameters, t.model.states])
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g
            t.note([float(at_states[-1, 0].norm())], t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def gradients_that_are_never_zeroed(t: Table) -> None:
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            optimizer.step()


@loop
def a_new_optimizer_takes_over(t: Table) -> None:
    optimizer: torch.optim.Optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(4):
            if k == 2:
                optimizer = torch.optim.Adam(t.model.parameters(), 1e-2)
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def two_optimizers_of_one_loss(t: Table) -> None:
    first, second = t.sgd(t.model.rnn), t.sgd(t.model.out)
    with t.recorded(first, second):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()


@loop
def two_optimizers_that_were_not_given(t: Table) -> None:
    first, second = t.sgd(t.model.rnn), t.sgd(t.model.out)
    with t.recorded():
        for _ in range(3):
            t.note([t.backward()], t.norm())
            for optimizer in (first, second):
                optimizer.step()
                optimizer.zero_grad()


@loop
def optimizers_that_step_inside_the_backward_pass(t: Table) -> None:
    """The layer's weights change before it can be replayed: coverage says so, steps and norms are right."""
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in t.model.parameters()}
    seen: list[Tensor] = []

    def update(p: Tensor) -> None:
        seen.append(p.grad.clone())  # type: ignore[union-attr]
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in t.model.parameters():
        p.register_post_accumulate_grad_hook(update)
    with t.recorded(*optimizers.values()):
        for _ in range(3):
            seen.clear()
            t.backward()
            t.note([], float(torch.cat([g.flatten() for g in seen]).norm()))


# --- updates by hand -------------------------------------------------------------------------------------------------


def _by_hand(t: Table, update: Callable[[], None], parts: int = 1, zero_first: bool = False) -> None:
    with t.recorded():
        for _ in range(4):
            if zero_first:
                t.model.zero_grad()
            passes = [t.backward(t.loss() / parts) for _ in range(parts)]
            t.note(passes, t.norm())
            update()
            if not zero_first:
                t.model.zero_grad()


@loop
def an_update_by_hand_under_no_grad(t: Table) -> None:
    @torch.no_grad()
    def update() -> None:
        for p in t.model.parameters():
            p -= 0.1 * p.grad

    _by_hand_zeroed_first(t, update)


@loop
def an_update_by_hand_through_data(t: Table) -> None:
    def update() -> None:
        for p in t.model.parameters():
            p.data.add_(p.grad, alpha=-0.1)

    _by_hand_zeroed_first(t, update)


@loop
def an_update_by_hand_of_clipped_gradients(t: Table) -> None:
    with t.recorded():
        for _ in range(4):
            t.model.zero_grad()
            passed, raw = t.backward(), t.norm()
            t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.25)))
            t.note([passed], raw, t.norm())
            for p in t.model.parameters():
                p.data.add_(p.grad, alpha=-0.1)


@loop
def an_update_by_hand_of_accumulated_gradients(t: Table) -> None:
    def update() -> None:
        for p in t.model.parameters():
            p.data.add_(p.grad, alpha=-0.1)

    _by_hand(t, update, parts=3, zero_first=True)


def _by_hand_zeroed_first(t: Table, update: Callable[[], None]) -> None:
    _by_hand(t, update, zero_first=True)


@loop
def an_update_by_hand_from_returned_gradients(t: Table) -> None:
    with t.recorded():
        for _ in range(3):
            loss = t.loss()
            parameters = list(t.model.parameters())
            states = t.model.states
            *grads, at_states = torch.autograd.grad(loss, [*parameters, states])
            with torch.no_grad():
                for p, g in zip(parameters, grads, strict=True):
                    p -= 0.1 * g
            t.note([float(at_states[-1, 0].norm())])


@loop
def an_update_by_hand_with_marks(t: Table) -> None:
    with t.recorded() as recorder:
        for _ in range(3):
            t.model.zero_grad()
            t.note([t.backward()], t.norm())
            for p in t.model.parameters():
                p.data.add_(p.grad, alpha=-0.1)
            recorder.step()


@loop
def marks_beside_an_optimizer_that_was_not_given(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded() as recorder:
        for _ in range(4):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()


@loop
def marks_beside_an_optimizer_that_was_given(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer) as recorder:
        for _ in range(4):
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad()
            recorder.step()


# --- several losses --------------------------------------------------------------------------------------------------


@loop
def the_critic_of_a_gan(t: Table) -> None:
    """The generator's loss goes through the recorded critic; its gradient there is zeroed before the critic's own."""
    generator = nn.Linear(FEATURES, FEATURES).double()
    of_critic, of_generator = t.sgd(), t.sgd(generator)
    with t.recorded(of_critic):
        through: list[tuple[str, float]] = []
        for _ in range(3):
            real, noise = torch.randn(2, T, B, FEATURES, dtype=torch.float64)
            of_critic.zero_grad()
            loss = t.model(generator(noise).detach()).mean()
            fake_states = t.model.states
            loss = loss - t.model(real).mean()
            loss.backward()
            t.note([float(fake_states.grad[-1, 0].norm())], t.norm(), apart=through)
            of_critic.step()
            of_generator.zero_grad()
            (-t.model(generator(noise)).mean()).backward()
            through = [("other", t.at_last())]
            of_generator.step()
    t.steps.append(Step([], apart=through))


@loop
def a_critic_under_the_loss_of_its_actor(t: Table) -> None:
    """DDPG with target networks: the two take turns, and the actor's loss leaves its gradient in the critic too."""
    critic, actor = Net().double(), nn.Linear(FEATURES, FEATURES).double()
    target = Net().double().requires_grad_(False)
    t.model, t.site = nn.ModuleDict({"critic": critic, "actor": actor}), "critic.rnn/l0"
    of_critic, of_actor = t.sgd(critic), t.sgd(actor)
    with t.recorded(of_critic, of_actor):
        for _ in range(3):
            x = torch.randn(T, B, FEATURES, dtype=torch.float64)
            of_critic.zero_grad()
            (critic(x) - target(x) - 1).pow(2).mean().backward()
            t.note([t.at_last(critic)], t.norm(list(critic.parameters())))
            of_critic.step()
            of_actor.zero_grad()
            (-critic(actor(x)).mean()).backward()
            t.note([], t.norm(list(actor.parameters())), apart=[("other", t.at_last(critic))])
            of_actor.step()


@loop
def a_critic_frozen_while_its_generator_learns(t: Table) -> None:
    """Both have optimizers and take turns; in the generator's pass the critic's parameters ask for no gradient."""
    critic, generator = Net().double(), nn.Linear(FEATURES, FEATURES).double()
    t.model, t.site = nn.ModuleDict({"critic": critic, "generator": generator}), "critic.rnn/l0"
    of_critic, of_generator = t.sgd(critic), t.sgd(generator)
    with t.recorded(of_critic, of_generator):
        for _ in range(3):
            noise = torch.randn(T, B, FEATURES, dtype=torch.float64)
            of_critic.zero_grad()
            critic(generator(noise).detach()).mean().backward()
            t.note([t.at_last(critic)], t.norm(list(critic.parameters())))
            of_critic.step()
            critic.requires_grad_(False)
            of_generator.zero_grad()
            (-critic(generator(noise)).mean()).backward()
            t.note([], t.norm(list(generator.parameters())), apart=[("other", t.at_last(critic))])
            of_generator.step()
            critic.requires_grad_(True)


@loop
def a_frozen_part_that_the_optimizer_holds(t: Table) -> None:
    """The whole model was given to the optimizer and the recurrence frozen: its record is that of the update."""
    t.model.rnn.requires_grad_(False)
    before = nn.Linear(FEATURES, FEATURES).double()
    t.model, t.site = nn.Sequential(before, t.model), "1.rnn/l0"
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            t.loss().backward()
            t.note([t.at_last(t.model[1])], t.norm())
            optimizer.step()


@loop
def a_gradient_penalty(t: Table) -> None:
    """WGAN-GP: what the penalty sends back through the mixed samples cannot be recorded, the loss itself can."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            fake, real, mixed = torch.randn(3, T, B, FEATURES, dtype=torch.float64)
            mixed.requires_grad_()
            score = t.model(mixed).sum()
            states = t.model.states
            gradient, at_states = torch.autograd.grad(score, [mixed, states], create_graph=True)
            loss = t.model(fake).mean()
            fake_states = t.model.states
            loss = loss - t.model(real).mean() + 10 * (gradient.norm(dim=2) - 1).pow(2).mean()
            loss.backward()
            passed = float(fake_states.grad[-1, 0].norm())
            t.note([passed], t.norm(), apart=[("other", float(at_states[-1, 0].detach().norm()))])
            optimizer.step()


@loop
def attribution_between_the_steps(t: Table) -> None:
    optimizer = t.sgd()
    earlier: list[tuple[str, float]] = []
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            t.note([t.backward()], t.norm(), apart=earlier)
            optimizer.step()
            x = torch.randn(T, B, FEATURES, dtype=torch.float64, requires_grad=True)
            _, at_states = torch.autograd.grad(t.model(x).sum(), [x, t.model.states])
            earlier = [("other", float(at_states[-1, 0].norm()))]
    t.steps.append(Step([], apart=earlier))


@loop
def a_gradient_looked_at_and_dropped(t: Table) -> None:
    """Each part of the loss is differentiated alone for its norm, then the sum for the update."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            x = torch.randn(T, B, FEATURES, dtype=torch.float64)
            dropped = []
            for power in (1, 2):
                t.model(x).abs().pow(power).mean().backward()
                dropped.append(("dropped", t.at_last()))
                optimizer.zero_grad()
            y = t.model(x)
            passed = t.backward((y.abs() + y.pow(2)).mean())
            t.note([passed], t.norm(), apart=dropped)
            optimizer.step()
            optimizer.zero_grad()


@loop
def a_frozen_recurrence(t: Table) -> None:
    t.model.rnn.requires_grad_(False)
    before = nn.Linear(FEATURES, FEATURES).double()
    t.model = nn.Sequential(before, t.model)
    t.site = "1.rnn/l0"
    optimizer = torch.optim.SGD([p for p in t.model.parameters() if p.requires_grad], 0.1)
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            t.loss().backward()
            t.note([t.at_last(t.model[1])], t.norm())
            optimizer.step()


@loop
def a_part_unfrozen_later(t: Table) -> None:
    t.model.rnn.requires_grad_(False)
    before = nn.Linear(FEATURES, FEATURES).double()
    t.model = nn.Sequential(before, t.model)
    t.site = "1.rnn/l0"
    optimizer = torch.optim.SGD([p for p in t.model.parameters() if p.requires_grad], 0.1)
    with t.recorded(optimizer):
        for k in range(4):
            if k == 2:
                t.model[1].rnn.requires_grad_(True)
                optimizer.add_param_group({"params": list(t.model[1].rnn.parameters())})
            optimizer.zero_grad()
            t.loss().backward()
            t.note([t.at_last(t.model[1])], t.norm())
            optimizer.step()


# --- numbers that are not finite -------------------------------------------------------------------------------------


@loop
def a_norm_that_overflows(t: Table) -> None:
    t.model = t.model.float()
    optimizer = t.sgd(lr=1e-3)
    with t.recorded(optimizer):
        for k in range(4):
            optimizer.zero_grad()
            x = torch.randn(T, B, FEATURES)
            (t.model(x).sum() * (1e22 if k == 2 else 1.0)).backward()
            passed = t.at_last()
            raw = math.hypot(*(float(p.grad.double().norm()) for p in t.model.parameters()))
            t.clip("update", float(torch.nn.utils.clip_grad_norm_(t.model.parameters(), 1.0)))
            t.note([passed], raw, t.norm())
            optimizer.step()
