"""Loops in which several networks or several losses meet: adversaries, reinforcement, meta-learning, many tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.capture.training.loops import FEATURES, B, H, Net, T, Table, loop


def _batch() -> Tensor:
    return torch.randn(T, B, FEATURES, dtype=torch.float64)


def _part(t: Table, name: str, **parts: nn.Module) -> None:
    """Record several networks as one model; the table's site is that of one of them."""
    t.model, t.site = nn.ModuleDict(parts), f"{name}.rnn/l0"


# --- adversaries -----------------------------------------------------------------------------------------------------


@loop
def several_steps_of_the_critic_for_one_of_the_generator(t: Table) -> None:
    """n_critic = 3, weights clipped as in the first Wasserstein GAN; each has its optimizer."""
    critic, generator = Net().double(), nn.Linear(FEATURES, FEATURES).double()
    _part(t, "critic", critic=critic, generator=generator)
    of_critic, of_generator = t.sgd(critic), t.sgd(generator)
    with t.recorded(of_critic, of_generator):
        for _ in range(2):
            for _ in range(3):
                of_critic.zero_grad()
                noise = _batch()
                loss = critic(generator(noise).detach()).mean()
                fake_states = critic.states
                (loss - critic(_batch()).mean()).backward()
                t.note([float(fake_states.grad[-1, 0].norm())], t.norm(list(critic.parameters())))
                of_critic.step()
                for p in critic.parameters():
                    p.data.clamp_(-0.5, 0.5)
            of_generator.zero_grad()
            (-critic(generator(_batch())).mean()).backward()
            t.note([], t.norm(list(generator.parameters())), apart=[("other", t.at_last(critic))])
            of_generator.step()


@loop
def a_gan_with_two_passes_of_the_critic(t: Table) -> None:
    """As in the tutorial: real and fake in a pass each, then the generator's through the critic."""
    critic, generator = Net().double(), nn.Linear(FEATURES, FEATURES).double()
    _part(t, "critic", critic=critic, generator=generator)
    of_critic, of_generator = t.sgd(critic), t.sgd(generator)
    bce = nn.functional.binary_cross_entropy_with_logits
    with t.recorded(of_critic, of_generator):
        for _ in range(3):
            critic.zero_grad()
            y = critic(_batch())
            real = t_backward(t, critic, bce(y, torch.ones_like(y)))
            made = generator(_batch())
            y = critic(made.detach())
            fake = t_backward(t, critic, bce(y, torch.zeros_like(y)))
            t.note([real, fake], t.norm(list(critic.parameters())))
            of_critic.step()
            generator.zero_grad()
            y = critic(made)
            through = t_backward(t, critic, bce(y, torch.ones_like(y)))
            t.note([], t.norm(list(generator.parameters())), apart=[("other", through)])
            of_generator.step()


def t_backward(t: Table, model: nn.Module, loss: Tensor) -> float:
    loss.backward()
    return t.at_last(model)


@loop
def a_lazy_penalty_in_a_pass_of_its_own(t: Table) -> None:
    """R1 at every second step: its gradient is added to that of the loss, and went through a gradient."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for k in range(4):
            optimizer.zero_grad()
            passed, apart = t.backward(), []
            if k % 2 == 0:
                real = _batch().requires_grad_()
                score = t.model(real).sum()
                gradient, at_states = torch.autograd.grad(score, [real, t.model.states], create_graph=True)
                apart = [("other", float(at_states[-1, 0].detach().norm()))]
                gradient.pow(2).sum().mul(5).backward()
            t.note([passed], t.norm(), apart=apart)
            optimizer.step()


# --- reinforcement ---------------------------------------------------------------------------------------------------


@loop
def a_q_network_with_a_target(t: Table) -> None:
    """Elements clamped by hand, the target moved towards the network through its state_dict."""
    target = copy.deepcopy(t.model)
    optimizer = torch.optim.AdamW(t.model.parameters(), 1e-2, amsgrad=True)
    with t.recorded(optimizer):
        for _ in range(4):
            x, after = _batch(), _batch()
            q = t.model(x)
            with torch.no_grad():
                wanted = 0.9 * target(after) + 1
            loss = nn.functional.smooth_l1_loss(q, wanted)
            optimizer.zero_grad()
            passed, raw = t_backward(t, t.model, loss), t.norm()
            for p in t.model.parameters():
                p.grad.data.clamp_(-0.02, 0.02)
            t.note([passed], raw, t.norm())
            optimizer.step()
            mixed, own = target.state_dict(), t.model.state_dict()
            for name in own:
                mixed[name] = own[name] * 0.1 + mixed[name] * 0.9
            target.load_state_dict(mixed)


@loop
def a_target_inside_of_the_recorded_model(t: Table) -> None:
    """The target is part of the module and asks for a gradient nobody computes; it is copied every second step."""
    online, target = Net().double(), Net().double()
    _part(t, "online", online=online, target=target)
    optimizer = t.sgd(online)
    with t.recorded(optimizer):
        for k in range(4):
            loss = (online(_batch()) - target(_batch()).detach() - 1).pow(2).mean()
            optimizer.zero_grad()
            t.note([t_backward(t, online, loss)], t.norm(list(online.parameters())))
            optimizer.step()
            if k % 2:
                target.load_state_dict(online.state_dict())


@loop
def actor_critics_and_temperature(t: Table) -> None:
    """SAC: two critics under one optimizer, an actor, a temperature outside of the model; targets by Polyak."""
    actor, first, second = nn.Linear(FEATURES, FEATURES).double(), Net().double(), Net().double()
    targets = copy.deepcopy(nn.ModuleList([first, second])).requires_grad_(False)
    _part(t, "first", actor=actor, first=first, second=second)
    log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
    of_critics, of_actor = t.sgd(first, second), t.sgd(actor)
    of_alpha = torch.optim.Adam([log_alpha], 1e-2)
    with t.recorded(of_critics, of_actor):
        for _ in range(3):
            x = _batch()
            with torch.no_grad():
                wanted = torch.min(targets[0](x), targets[1](x)) - log_alpha.exp() + 1
            loss = (first(x) - wanted).pow(2).mean() + (second(x) - wanted).pow(2).mean()
            of_critics.zero_grad()
            both = [*first.parameters(), *second.parameters()]
            t.note([t_backward(t, first, loss)], t.norm(both))
            of_critics.step()
            action = actor(x)
            loss = (log_alpha.exp().detach() - torch.min(first(action), second(action))).mean()
            of_actor.zero_grad()
            through = t_backward(t, first, loss)
            t.note([], t.norm(list(actor.parameters())), apart=[("other", through)])
            of_actor.step()
            of_alpha.zero_grad()
            (-log_alpha * (action.detach().mean() + 0.5)).backward()
            of_alpha.step()
            with torch.no_grad():
                for mine, theirs in zip(both, targets.parameters(), strict=True):
                    theirs.mul_(0.9).add_(0.1 * mine)


@loop
def several_epochs_over_a_rollout(t: Table) -> None:
    """PPO: a rollout without gradients, policy and value loss in one pass, the rest of the epochs given up early."""
    value = nn.Linear(H, 1).double()
    t.model.value = value
    optimizer = torch.optim.Adam(t.model.parameters(), 1e-2, eps=1e-5)
    with t.recorded(optimizer):
        for _ in range(2):
            with torch.no_grad():
                x = _batch()
                old = t.model(x)
            for epoch in range(4):
                ratio = (t.model(x) - old).exp()
                advantage = x.sum((0, 2))[:, None]
                policy = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                loss = policy + 0.5 * (value(t.model.states[-1]) - advantage).pow(2).mean() - 0.01 * ratio.mean()
                if epoch == 2:
                    break  # too far from the old policy
                optimizer.zero_grad()
                passed = t_backward(t, t.model, loss)
                t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.5)))
                t.note([passed], raw, t.norm())
                optimizer.step()


class Agent(nn.Module):
    """A policy that keeps its state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.policy, self.value = nn.RNN(FEATURES, H), nn.Linear(H, 2), nn.Linear(H, 1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, h = self.rnn(x, h)
        self.states = y
        self.states.retain_grad()
        return self.policy(y), self.value(y), h


@loop
def rollouts_whose_state_goes_on_detached(t: Table) -> None:
    """A2C: five steps a call each, then one pass; the state goes on without its history."""
    t.model = Agent().double()
    optimizer = torch.optim.RMSprop(t.model.parameters(), 1e-3)
    h = torch.zeros(1, B, H, dtype=torch.float64)
    with t.recorded(optimizer):
        for _ in range(3):
            h = h.detach()
            losses = []
            for _ in range(5):
                policy, value, h = t.model(torch.randn(1, B, FEATURES, dtype=torch.float64), h)
                action = torch.distributions.Categorical(logits=policy).sample()
                surprise = nn.functional.cross_entropy(policy.flatten(0, 1), action.flatten())
                losses.append(surprise + value.pow(2).mean())
            optimizer.zero_grad()
            passed = t_backward(t, t.model, torch.stack(losses).sum())
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.5)))
            t.note([passed], raw, t.norm())
            optimizer.step()


@loop
def imitation_then_reinforcement_with_an_optimizer_each(t: Table) -> None:
    """One network under two optimizers, one after the other in every iteration."""
    first, second = t.sgd(), torch.optim.Adam(t.model.parameters(), 1e-3)
    with t.recorded(first, second):
        for _ in range(3):
            for optimizer in (first, second):
                optimizer.zero_grad()
                t.note([t.backward()], t.norm())
                optimizer.step()


# --- learning to learn -----------------------------------------------------------------------------------------------


def _functional(t: Table, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return (torch.func.functional_call(t.model, weights, x) - x.sum((0, 2))[:, None]).pow(2).mean()


@loop
def an_inner_loop_of_first_order(t: Table) -> None:
    """First-order MAML: fast weights by autograd.grad, the query's loss to the weights through them."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            fast: dict[str, Tensor] = dict(t.model.named_parameters())
            inner = []
            for _ in range(2):
                loss = _functional(t, fast, _batch())
                *grads, at_states = torch.autograd.grad(loss, [*fast.values(), t.model.states])
                inner.append(("other", float(at_states[-1, 0].norm())))
                fast = {name: p - 0.05 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
            optimizer.zero_grad()
            passed = t.backward(_functional(t, fast, _batch()))
            t.note([passed], t.norm(), apart=inner)
            optimizer.step()


@loop
def an_inner_loop_of_second_order(t: Table) -> None:
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            weights: dict[str, Tensor] = dict(t.model.named_parameters())
            loss = _functional(t, weights, _batch())
            *grads, at_states = torch.autograd.grad(loss, [*weights.values(), t.model.states], create_graph=True)
            inner = [("other", float(at_states[-1, 0].detach().norm()))]
            fast = {name: p - 0.05 * g for (name, p), g in zip(weights.items(), grads, strict=True)}
            optimizer.zero_grad()
            passed = t.backward(_functional(t, fast, _batch()))
            t.note([passed], t.norm(), apart=inner)
            optimizer.step()


@loop
def a_copy_that_learns_and_is_approached(t: Table) -> None:
    """Reptile: the copy trains, the model's gradient is the difference; no pass reaches the model itself."""
    optimizer = t.sgd(lr=1.0)
    with t.recorded(optimizer):
        for _ in range(3):
            fast = copy.deepcopy(t.model)
            inner = t.sgd(fast)
            for _ in range(2):
                inner.zero_grad()
                t.loss(fast).backward()
                inner.step()
            for p, q in zip(t.model.parameters(), fast.parameters(), strict=True):
                p.grad = p.data - q.data
            t.note([], t.norm())
            optimizer.step()
            optimizer.zero_grad()


# --- two networks ---------------------------------------------------------------------------------------------------


def _teacher_and_student(t: Table, site: str) -> None:
    """Each has its loss and its pass; one optimizer updates both."""
    teacher, student = Net().double(), Net().double()
    _part(t, site, teacher=teacher, student=student)
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            x = _batch()
            loss = (teacher(x) - x.sum((0, 2))[:, None]).pow(2).mean()
            passed = {"teacher": [t_backward(t, teacher, loss)], "student": []}
            for _ in range(2):
                loss = (student(x) - teacher(x).detach()).pow(2).mean() / 2
                passed["student"].append(t_backward(t, student, loss))
            t.note(passed[site], t.norm())
            optimizer.step()


@loop
def a_student_in_passes_of_its_own(t: Table) -> None:
    _teacher_and_student(t, "student")


@loop
def a_teacher_in_a_pass_of_its_own(t: Table) -> None:
    _teacher_and_student(t, "teacher")


@loop
def a_frozen_recurrence_under_two_heads(t: Table) -> None:
    """The passes share no parameter that learns; they do share the recurrence."""
    t.model.rnn.requires_grad_(False)
    before, other = nn.Linear(FEATURES, FEATURES).double(), nn.Linear(H, 1).double()
    t.model, t.site = nn.ModuleDict({"net": t.model, "before": before, "other": other}), "net.rnn/l0"
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            x = _batch()
            first = t_backward(t, t.model.net, t.model.net(before(x)).pow(2).mean())
            t.model.net(x.requires_grad_())
            second = t_backward(t, t.model.net, (other(t.model.net.states[-1]) - 1).pow(2).mean())
            t.note([first, second], t.norm())
            optimizer.step()


# --- many tasks ------------------------------------------------------------------------------------------------------


def _projected(gradients: list[Tensor]) -> Tensor:
    """Take out of each gradient what opposes another (Yu et al. 2020)."""
    found = []
    for i, one in enumerate(gradients):
        kept = one.clone()
        for j, other in enumerate(gradients):
            if i != j and (dot := kept @ other) < 0:
                kept -= dot / other.pow(2).sum() * other
        found.append(kept)
    return torch.stack(found).sum(0)


def _set(t: Table, flat: Tensor) -> None:
    offset = 0
    for p in t.model.parameters():
        p.grad = flat[offset : offset + p.numel()].view_as(p).clone()
        offset += p.numel()


def _tasks(t: Table) -> list[Tensor]:
    y = t.model(_batch())
    return [y.pow(2).mean(), (y - 1).abs().mean(), (2 * y + 1).pow(2).mean()]


def _flat(t: Table) -> Tensor:
    return torch.cat([p.grad.flatten() for p in t.model.parameters()]).clone()


@loop
def conflicting_gradients_projected(t: Table) -> None:
    """PCGrad as its packages have it: zeroed before each pass, kept as copies, put back for the update."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            passes, kept = [], []
            for loss in _tasks(t):
                optimizer.zero_grad()
                passes.append(t.backward_once_more(loss, retain_graph=True))
                kept.append(_flat(t))
            _set(t, _projected(kept))
            t.note(passes, t.norm(), t.norm())
            optimizer.step()


@loop
def conflicting_gradients_projected_and_zeroed_after_each(t: Table) -> None:
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            passes, kept = [], []
            for loss in _tasks(t):
                passes.append(t.backward_once_more(loss, retain_graph=True))
                kept.append(_flat(t))
                optimizer.zero_grad()
            _set(t, _projected(kept))
            t.note(passes, t.norm(), t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def conflicting_gradients_asked_for_one_by_one(t: Table) -> None:
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer):
        for _ in range(3):
            passes, kept = [], []
            parameters = list(t.model.parameters())
            for loss in _tasks(t):
                *grads, at_states = torch.autograd.grad(loss, [*parameters, t.model.states], retain_graph=True)
                passes.append(float(at_states[-1, 0].norm()))
                kept.append(torch.cat([g.flatten() for g in grads]))
            _set(t, _projected(kept))
            t.note(passes, t.norm(), t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def gradients_of_single_sequences_clipped_and_summed(t: Table) -> None:
    """Differentially private SGD in its simplest form: a pass a sequence, each clipped, the sum with noise applied."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            passes, total = [], torch.zeros(())
            for _ in range(3):
                optimizer.zero_grad()
                passes.append(t.backward())
                flat = _flat(t)
                total = total + flat * min(1.0, 0.1 / float(flat.norm()))
            _set(t, (total + 1e-3 * torch.randn_like(total)) / 3)
            t.note(passes, t.norm(), t.norm())
            optimizer.step()
            optimizer.zero_grad()


def _clipped_one_by_one(t: Table, clear: Callable[[torch.optim.Optimizer], None], first: bool) -> None:
    """A pass a sequence, each clipped by torch and zeroed; the sum with noise is put in place for the update."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            passes, total = [], [torch.zeros_like(p) for p in t.model.parameters()]
            for _ in range(3):
                if first:
                    clear(optimizer)
                passes.append(t.backward())
                t.clip("partial", float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
                for kept, p in zip(total, t.model.parameters(), strict=True):
                    kept.add_(p.grad)
                if not first:
                    clear(optimizer)
            for kept, p in zip(total, t.model.parameters(), strict=True):
                p.grad = (kept + 1e-3 * torch.randn_like(kept)) / 3
            t.note(passes, t.norm(), t.norm())
            optimizer.step()
            if not first:
                clear(optimizer)


@loop
def sequences_clipped_by_torch_one_by_one_and_summed(t: Table) -> None:
    _clipped_one_by_one(t, lambda optimizer: optimizer.zero_grad(), first=False)


@loop
def sequences_clipped_by_torch_one_by_one_zeroed_before_each(t: Table) -> None:
    _clipped_one_by_one(t, lambda optimizer: optimizer.zero_grad(), first=True)


@loop
def sequences_clipped_by_torch_one_by_one_in_tensors_that_are_kept(t: Table) -> None:
    _clipped_one_by_one(t, lambda optimizer: optimizer.zero_grad(set_to_none=False), first=True)


@loop
def gradients_of_workers_logged_averaged_and_clipped(t: Table) -> None:
    """Every worker's norm is logged and its gradient taken away; what is clipped is their mean."""
    optimizer = t.sgd()
    with t.recorded(optimizer) as recorder:
        for _ in range(2):
            passes, taken = [], []
            for _ in range(3):
                passes.append(t.backward())
                recorder.log(norm_of_worker=t.norm())
                taken.append([p.grad.clone() for p in t.model.parameters()])
                t.model.zero_grad()
            for p, *parts in zip(t.model.parameters(), *taken, strict=True):
                p.grad = torch.stack(parts).mean(0)
            t.clip("update", raw := float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)))
            t.note(passes, raw, t.norm())
            optimizer.step()
            optimizer.zero_grad()


@loop
def conflicting_gradients_clipped_each_and_added_into_zeros(t: Table) -> None:
    """Gradient surgery in place: tensors of zeros are kept, and what was projected is added to them."""
    optimizer = t.sgd(lr=1e-2)
    with t.recorded(optimizer) as recorder:
        for _ in range(3):
            passes, kept = [], []
            for loss in _tasks(t):
                passes.append(t.backward_once_more(loss, retain_graph=True))
                t.clip("partial", float(nn.utils.clip_grad_norm_(t.model.parameters(), 0.2)))
                kept.append(_flat(t))
                optimizer.zero_grad(set_to_none=False)
            recorder.log(conflicts=1.0)
            offset, projected = 0, _projected(kept)
            for p in t.model.parameters():
                p.grad.add_(projected[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
            t.note(passes, t.norm(), t.norm())
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


@loop
def losses_weighed_by_the_norms_of_their_gradients(t: Table) -> None:
    """GradNorm, loss balancing: autograd.grad of each loss for its norm only, then one pass of the weighted sum."""
    optimizer = t.sgd(lr=1e-2)
    shared = t.model.rnn.weight_hh_l0
    with t.recorded(optimizer):
        for _ in range(3):
            losses, looked = _tasks(t), []
            weights = []
            for loss in losses:
                g, at_states = torch.autograd.grad(loss, [shared, t.model.states], retain_graph=True)
                weights.append(1 / (float(g.norm()) + 1))
                looked.append(("other", float(at_states[-1, 0].norm())))
            optimizer.zero_grad()
            loss = torch.stack([w * one for w, one in zip(weights, losses, strict=True)]).sum()
            t.note([t.backward_once_more(loss)], t.norm(), apart=looked)
            optimizer.step()


@loop
def two_losses_backward_after_both_forward_passes(t: Table) -> None:
    """Two calls, then two passes: each call of the step is a sequence of its own."""
    optimizer = t.sgd()
    with t.recorded(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            first = t.loss()
            states = t.model.states
            second = t.loss()
            first.backward()
            passed = float(states.grad[-1, 0].norm())
            second.backward()
            t.note([passed], t.norm())
            optimizer.step()
