"""Loops whose optimizer, gradient or order is the script's own: wrappers, edits, interruptions, ranks."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.clip_grad import clip_grad_norm_ as clip_under_another_name
from torch.utils.checkpoint import checkpoint

from tests.capture.training.loops import FEATURES, SAM, B, Net, T, Table, loop

#: Made before any recorder.
clip_made_ready = functools.partial(clip_under_another_name, max_norm=0.2, norm_type=2)


def _batch() -> Tensor:
    return torch.randn(T, B, FEATURES, dtype=torch.float64)


def _plainly(
    t: Table,
    optimizer: Any,
    edit: Callable[[], Any] = lambda: None,
    after: Callable[[int], Any] = lambda k: None,
    steps: int = 3,
) -> None:
    """A plain loop with something of the script's own before and after the update."""
    with t.recorded(optimizer):
        for k in range(steps):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            edit()
            t.note([passed], raw, t.norm())
            optimizer.step()
            after(k)


# --- optimizers ------------------------------------------------------------------------------------------------------


@loop
def a_fused_optimizer(t: Table) -> None:
    _plainly(t, torch.optim.AdamW(t.model.parameters(), 1e-2, fused=True))


@loop
def an_optimizer_over_lists_of_tensors(t: Table) -> None:
    _plainly(t, torch.optim.Adam(t.model.parameters(), 1e-2, foreach=True))


@loop
def adafactor(t: Table) -> None:
    _plainly(t, torch.optim.Adafactor(t.model.parameters(), 1e-2))


@loop
def groups_with_rates_of_their_own_and_a_schedule(t: Table) -> None:
    groups = [{"params": t.model.rnn.parameters()}, {"params": t.model.out.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01], total_steps=10)
    _plainly(t, optimizer, after=lambda k: schedule.step())


@loop
def an_optimizer_a_layer(t: Table) -> None:
    optimizers = [torch.optim.SGD([p], 0.1 / (k + 1)) for k, p in enumerate(t.model.parameters())]
    with t.recorded(*optimizers):
        for _ in range(3):
            t.note([t.backward()], t.norm())
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()


@loop
def an_optimizer_that_keeps_slow_weights(t: Table) -> None:
    """Lookahead by hand: every second step the weights go back half way."""
    slow = [p.detach().clone() for p in t.model.parameters()]

    @torch.no_grad()
    def look(k: int) -> None:
        if k % 2:
            for kept, p in zip(slow, t.model.parameters(), strict=True):
                kept += 0.5 * (p - kept)
                p.copy_(kept)

    _plainly(t, t.sgd(), after=look, steps=4)


@loop
def an_average_of_the_weights(t: Table) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(t.model)
    optimizer = t.sgd()
    schedule = torch.optim.swa_utils.SWALR(optimizer, 0.05)

    def average(k: int) -> None:
        averaged.update_parameters(t.model)
        schedule.step()

    _plainly(t, optimizer, after=average)


@loop
def averaged_weights_put_in_for_an_evaluation(t: Table) -> None:
    """EMA with store, copy_to and restore around a validation pass."""
    shadow = [p.detach().clone() for p in t.model.parameters()]

    def evaluate(k: int) -> None:
        for kept, p in zip(shadow, t.model.parameters(), strict=True):
            kept.mul_(0.9).add_(p.detach(), alpha=0.1)
        stored = [p.detach().clone() for p in t.model.parameters()]
        for kept, p in zip(shadow, t.model.parameters(), strict=True):
            p.data.copy_(kept)
        t.model.eval()
        with torch.no_grad():
            t.model(_batch())
        t.model.train()
        for kept, p in zip(stored, t.model.parameters(), strict=True):
            p.data.copy_(kept)

    _plainly(t, t.sgd(), after=evaluate)


@loop
def sam_that_clips_both_gradients(t: Table) -> None:
    optimizer = SAM(t.model.parameters(), torch.optim.SGD, lr=0.1)
    with t.recorded(optimizer):
        for _ in range(3):
            ascent = t.backward()
            t.clip("dropped", float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))
            optimizer.first_step()
            descent = t.backward()
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))
            t.note([descent], raw, t.norm(), apart=[("dropped", ascent)])
            optimizer.second_step()


@loop
def sam_by_hand_around_an_optimizer(t: Table) -> None:
    """Perturbed through ``.data`` in the loop, gradient zeroed, weights put back, then the plain optimizer."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            x = _batch()
            ascent = t.backward(t.model(x).pow(2).mean())
            moved = []
            for p in t.model.parameters():
                step = 0.05 * p.grad / (t.norm() + 1e-12)
                moved.append(step)
            for p, step in zip(t.model.parameters(), moved, strict=True):
                p.data.add_(step)
            t.model.zero_grad()
            descent = t.backward(t.model(x).pow(2).mean())
            for p, step in zip(t.model.parameters(), moved, strict=True):
                p.data.sub_(step)
            t.note([descent], t.norm(), apart=[("dropped", ascent)])
            optimizer.step()


@loop
def noise_added_to_weights_for_the_pass(t: Table) -> None:
    """Weight noise (Graves 2013): drawn before the forward pass, taken off before the update."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            noise = [0.01 * torch.randn_like(p) for p in t.model.parameters()]
            for p, n in zip(t.model.parameters(), noise, strict=True):
                p.data.add_(n)
            optimizer.zero_grad()
            t.note([t.backward()], t.norm())
            for p, n in zip(t.model.parameters(), noise, strict=True):
                p.data.sub_(n)
            optimizer.step()


@loop
def a_second_order_optimizer_with_curvature_by_hand(t: Table) -> None:
    """AdaHessian: the pass keeps its graph, a Hessian-vector product of its gradients scales them."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of a cycle that is broken below
                t.loss().backward(create_graph=True)
            passed = float(t.model.states.grad[-1, 0].detach().norm())
            raw = math.hypot(*(float(p.grad.detach().norm()) for p in t.model.parameters()))
            parameters = list(t.model.parameters())
            grads = [p.grad for p in parameters]
            signs = [torch.randint_like(p, 2) * 2 - 1 for p in parameters]
            products = torch.autograd.grad(grads, parameters, grad_outputs=signs)
            for p, g, h in zip(parameters, grads, products, strict=True):
                p.grad = g.detach() / (h.abs().detach() + 1)
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def evolution_beside_the_gradient(t: Table) -> None:
    """Weights tried out under no_grad between pass and update: a line search of the script's own."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            x = _batch()
            optimizer.zero_grad()
            loss = t.model(x).pow(2).mean()
            passed = t.backward(loss)
            rate = 1.0
            with torch.no_grad():
                kept = [p.clone() for p in t.model.parameters()]
                while rate > 1e-3:
                    for p, old in zip(t.model.parameters(), kept, strict=True):
                        p.copy_(old - rate * p.grad)
                    if t.model(x).pow(2).mean() < loss:
                        break
                    rate /= 2
                for p, old in zip(t.model.parameters(), kept, strict=True):
                    p.copy_(old)
            optimizer.param_groups[0]["lr"] = rate
            t.note([passed], t.norm())
            optimizer.step()


@loop
def a_line_search_by_hand_without_an_optimizer(t: Table) -> None:
    with t.recorded():
        for _ in range(3):
            x = _batch()
            t.model.zero_grad()
            loss = t.model(x).pow(2).mean()
            t.note([t.backward(loss)], t.norm())
            rate = 1.0
            with torch.no_grad():
                kept = [p.clone() for p in t.model.parameters()]
                while rate > 1e-3:
                    for p, old in zip(t.model.parameters(), kept, strict=True):
                        p.copy_(old - rate * p.grad)
                    if t.model(x).pow(2).mean() < loss:
                        break
                    rate /= 2


# --- edits of gradients ----------------------------------------------------------------------------------------------


@loop
def gradients_centred(t: Table) -> None:
    def centre() -> None:
        for p in t.model.parameters():
            if p.dim() > 1:
                p.grad.data.add_(-p.grad.data.mean(1, keepdim=True))

    _plainly(t, t.sgd(), centre)


@loop
def gradients_with_noise(t: Table) -> None:
    def noise() -> None:
        for p in t.model.parameters():
            p.grad = p.grad + 1e-3 * torch.randn_like(p)

    _plainly(t, t.sgd(), noise)


@loop
def gradients_averaged_over_what_was_accumulated(t: Table) -> None:
    """Divided by the number of tokens once it is known, after the last pass."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            passes = [t.backward(t.loss()) for _ in range(3)]
            raw = t.norm()
            for p in t.model.parameters():
                p.grad /= 3
            t.note(passes, raw, t.norm())
            optimizer.step()


@loop
def clip_under_an_alias_from_its_own_module(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed = t.backward()
            t.clip("update", raw := float(clip_under_another_name(t.model.parameters(), max_norm=0.2)))
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_through_a_partial_made_before(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed = t.backward()
            t.clip("update", raw := float(clip_made_ready(t.model.parameters())))
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_only_to_learn_the_norm(t: Table) -> None:
    """An infinite threshold: the usual way to log the norm."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed = t.backward()
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), math.inf)))
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_groups_of_the_optimizer(t: Table) -> None:
    optimizer = torch.optim.SGD([{"params": t.model.rnn.parameters()}, {"params": t.model.out.parameters()}], 0.1)
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            for name, group in zip(("rnn", "out"), optimizer.param_groups, strict=True):
                t.clip("update", float(nn.utils.clip_grad_norm_(group["params"], 0.1)), part=name)
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def clip_by_norm_then_by_value(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            passed = t.backward()
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))
            t.clip("update", t.norm())
            nn.utils.clip_grad_value_(t.model.parameters(), 0.05)
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def a_gradient_clipped_in_hooks_of_the_parameters(t: Table) -> None:
    """What the pass leaves is clipped already: there is no call, and no other norm."""
    for p in t.model.parameters():
        p.register_hook(lambda g: g.clamp(-0.05, 0.05))
    _plainly(t, t.sgd())


# --- loss scales -----------------------------------------------------------------------------------------------------


@loop
def a_loss_scale_over_two_optimizers(t: Table) -> None:
    first, second = t.sgd(t.model.rnn), t.sgd(t.model.out)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with t.recorded(first, second):
        for _ in range(3):
            first.zero_grad()
            second.zero_grad()
            scale = scaler.get_scale()
            passed = t.backward(scaler.scale(t.loss())) / scale
            for optimizer in (first, second):
                scaler.unscale_(optimizer)
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))
            t.note([passed], raw, t.norm())
            for optimizer in (first, second):
                scaler.step(optimizer)
            scaler.update()


@loop
def a_loss_scale_of_which_one_optimizer_skips(t: Table) -> None:
    """An infinite gradient in one part: its optimizer is not run, the other one is."""
    first, second = t.sgd(t.model.rnn), t.sgd(t.model.out)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    with t.recorded(first, second):
        for k in range(3):
            first.zero_grad()
            second.zero_grad()
            scale = scaler.get_scale()
            passed = t.backward(scaler.scale(t.loss())) / scale
            if k == 1:
                t.model.out.bias.grad.fill_(math.inf)
            for optimizer in (first, second):
                scaler.unscale_(optimizer)
            raw = t.norm(list(t.model.rnn.parameters())) if k == 1 else t.norm()
            t.note([passed], raw, raw)
            for optimizer in (first, second):
                scaler.step(optimizer)
            scaler.update()


@loop
def a_loss_scale_that_is_switched_off_under_autocast(t: Table) -> None:
    t.model = t.model.float()
    optimizer = t.sgd()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = t.model(torch.randn(T, B, FEATURES)).float().pow(2).mean()
            scaler.scale(loss).backward()
            passed = t.at_last()
            scaler.unscale_(optimizer)
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
            t.note([passed], raw, t.norm())
            scaler.step(optimizer)
            scaler.update()


# --- order and interruptions -----------------------------------------------------------------------------------------


@loop
def accumulation_whose_last_window_is_short(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        passes: list[float] = []
        for k in range(7):
            passes.append(t.backward(t.loss() / 3))
            if (k + 1) % 3 == 0 or k == 6:
                t.note(passes, t.norm())
                optimizer.step()
                optimizer.zero_grad()
                passes = []


@loop
def accumulation_under_two_epochs_with_validation(t: Table) -> None:
    """Validation with and without gradients switched off; the schedule steps between."""
    optimizer = t.sgd()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with t.recorded(optimizer):
        for _ in range(2):
            t.model.train()
            for _ in range(2):
                optimizer.zero_grad()
                t.note([t.backward()], t.norm())
                optimizer.step()
            t.model.eval()
            with torch.no_grad():
                t.loss()
            kept = t.loss()  # somebody forgot
            assert kept.requires_grad or t.run_dir is None
            schedule.step()


@loop
def retain_graph_over_windows(t: Table) -> None:
    """Three losses of one call, each in a pass of its own over the graph that is kept."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            y = t.model(_batch())
            first = t.backward_once_more(y.pow(2).mean(), retain_graph=True)
            second = t.backward_once_more(y.abs().mean(), retain_graph=True)
            third = t.backward_once_more((y - 1).pow(2).mean())
            t.note([first, second, third], t.norm())
            optimizer.step()


@loop
def a_pass_for_some_of_the_parameters(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            t.loss().backward(inputs=[*t.model.rnn.parameters(), t.model.states])
            t.note([t.at_last()], t.norm())
            optimizer.step()


@loop
def zeroed_twice_once_keeping_the_tensors(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(3):
            optimizer.zero_grad(set_to_none=False)
            t.note([t.backward()], t.norm())
            optimizer.step()
            optimizer.zero_grad(set_to_none=bool(k % 2))
            t.model.zero_grad(set_to_none=False)


@loop
def zeroed_before_the_update_of_another_part(t: Table) -> None:
    """A frozen encoder before the recurrence and an optimizer over the rest."""
    encoder = nn.Linear(FEATURES, FEATURES).double().requires_grad_(False)
    t.model, t.site = nn.Sequential(encoder, t.model), "1.rnn/l0"
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, t.model.parameters()), 1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            t.loss().backward()
            t.note([t.at_last(t.model[1])], t.norm())
            optimizer.step()
            t.model.zero_grad()


@loop
def batches_that_fail_are_left_out(t: Table) -> None:
    """Out of memory in the forward pass: caught, zeroed, the next batch."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(4):
            try:
                x = _batch()
                optimizer.zero_grad()
                loss = t.model(x if k != 1 else x[..., :1]).pow(2).mean()
                t.note([t.backward(loss)], t.norm())
                optimizer.step()
            except RuntimeError:
                optimizer.zero_grad(set_to_none=True)
                continue


class Fails(torch.autograd.Function):
    """Passes on what it gets, and fails in the pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("out of memory")


@loop
def passes_that_fail_are_left_out(t: Table) -> None:
    """Out of memory in the middle of the backward pass, before it has reached the recurrence."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(4):
            optimizer.zero_grad()
            y = t.model(_batch())
            try:
                t.note([t.backward((Fails.apply(y) if k == 1 else y).pow(2).mean())], t.norm())
            except RuntimeError:
                continue
            optimizer.step()


@loop
def a_loss_that_is_not_finite_is_left_out(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for k in range(4):
            loss = t.loss() * (math.nan if k == 2 else 1)
            if not torch.isfinite(loss):
                continue
            optimizer.zero_grad()
            t.note([t.backward(loss)], t.norm())
            optimizer.step()


@loop
def an_interrupt_between_pass_and_update(t: Table) -> None:
    """Ctrl-C: the last gradient is there and was never used."""
    optimizer = t.sgd()
    with contextlib.suppress(KeyboardInterrupt), t.recorded(optimizer):
        for k in range(3):
            optimizer.zero_grad()
            passed, raw = t.backward(), t.norm()
            if k == 2:
                t.note([passed], skipped=True)
                raise KeyboardInterrupt
            t.note([passed], raw)
            optimizer.step()


@loop
def a_search_for_the_rate_before_the_training(t: Table) -> None:
    """Steps at growing rates, then weights and optimizer are put back and the training begins."""
    optimizer = t.sgd(lr=1e-3)
    kept = copy.deepcopy(t.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with t.recorded(optimizer):
        for k in range(5):
            if k == 3:
                t.model.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
            optimizer.zero_grad()
            t.note([t.backward()], t.norm())
            optimizer.step()
            if k < 3:
                optimizer.param_groups[0]["lr"] *= 10


class Checkpointed(Net):
    """Runs the recurrence once more in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        states = checkpoint(lambda y: self.rnn(y)[0], x.requires_grad_(), use_reentrant=self.reentrant)
        self.states = states.clone()
        if self.states.requires_grad:
            self.states.retain_grad()
        return self.out(self.states[-1])


@loop
def a_checkpoint_that_runs_the_layer_once_more(t: Table) -> None:
    t.model = Checkpointed().double()
    _plainly(t, t.sgd())


@loop
def a_reentrant_checkpoint_with_accumulation(t: Table) -> None:
    t.model = Checkpointed().double()
    t.model.reentrant = True
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            t.note([t.backward(t.loss() / 2) for _ in range(2)], t.norm())
            optimizer.step()


# --- wrappers --------------------------------------------------------------------------------------------------------


@loop
def data_parallel_on_one_device(t: Table) -> None:
    around = nn.DataParallel(t.model)
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            t.note([t.backward(t.loss(around))], t.norm())
            optimizer.step()


@loop
def one_rank_of_many_that_accumulates_without_talking(t: Table) -> None:
    """DistributedDataParallel with no_sync for all passes but the last."""
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(str(Path(folder, "store")), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            around = nn.parallel.DistributedDataParallel(t.model)
            optimizer = torch.optim.SGD(around.parameters(), 0.1)
            with t.recorded(optimizer):
                for _ in range(2):
                    optimizer.zero_grad()
                    passes = []
                    for k in range(3):
                        with around.no_sync() if k < 2 else contextlib.nullcontext():
                            passes.append(t.backward(t.loss(around) / 3))
                    t.clip("update", raw := float(nn.utils.clip_grad_norm_(around.parameters(), 0.1)))
                    t.note(passes, raw, t.norm())
                    optimizer.step()
        finally:
            torch.distributed.destroy_process_group()


# --- no update -------------------------------------------------------------------------------------------------------


@loop
def an_optimizer_that_never_steps(t: Table) -> None:
    """Somebody forgot: the gradients add up, and no update uses them."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        passes = [t.backward() for _ in range(3)]
    t.note(passes, t.norm(), math.nan, skipped=True)


@loop
def an_optimizer_that_never_steps_with_gradients_zeroed(t: Table) -> None:
    optimizer = t.sgd()
    with t.recorded(optimizer):
        dropped = []
        for _ in range(2):
            optimizer.zero_grad()
            dropped.append(("dropped", t.backward()))
        optimizer.zero_grad()
        last = t.backward()
    t.note([last], t.norm(), math.nan, skipped=True, apart=dropped)
