"""Many small vanilla networks trained at once on one task, in closed form, as Pascanu et al. 2013 trained them singly.

A network of 50 units leaves a processor idle; fifteen of them in one batch of matrices cost about as much as five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from gradscope.lab.zoo.tasks import Task

#: Adjoints whose square is below this are left out of the regulariser, as in the paper's own code.
_BOUND = 1e-20


@dataclass(frozen=True, eq=False)
class Networks:
    """``R`` networks h_t = φ(x_t U + h_{t−1} W + b), read out at the end by V and c; each parameter has R in front."""

    u: Tensor
    w: Tensor
    b: Tensor
    v: Tensor
    c: Tensor
    sigmoid: bool = False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """u (R, I, H), w (R, H, H), b (R, H), v (R, H, O), c (R, O)."""
        return self.u, self.w, self.b, self.v, self.c

    def having(self, parameters: Sequence[Tensor]) -> Networks:
        """The same with other parameters."""
        u, w, b, v, c = parameters
        return replace(self, u=u, w=w, b=b, v=v, c=c)

    def only(self, kept: Tensor) -> Networks:
        """Some of the networks: a mask, or their numbers."""
        return self.having([p[kept] for p in self.parameters])

    def states(self, x: Tensor) -> Tensor:
        """States (T + 1, R, B, H) from inputs (R, T, B, I), the zero before the first included."""
        r, steps, batch, _ = x.shape
        driven = (x.flatten(1, 2) @ self.u + self.b[:, None]).view(r, steps, batch, -1)
        found = x.new_zeros(steps + 1, r, batch, self.w.shape[-1])
        for t in range(steps):
            z = torch.baddbmm(driven[:, t], found[t], self.w)
            torch.sigmoid(z, out=found[t + 1]) if self.sigmoid else torch.tanh(z, out=found[t + 1])
        return found

    def outputs(self, last: Tensor) -> Tensor:
        """Logits (R, B, O) from the last state."""
        return torch.baddbmm(self.c[:, None].expand(-1, last.shape[1], -1), last, self.v)


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of the mean cross-entropy: by parameter, and what the regulariser adds to that of W (R, H, H)."""

    loss: tuple[Tensor, ...]
    regulariser: Tensor


def gradients(networks: Networks, x: Tensor, targets: Tensor, *, regularised: bool = True) -> Gradients:
    """Back-propagate through time.

    Parameters
    ----------
    networks : Networks
    x : Tensor, shape (R, T, B, I)
    targets : Tensor of int, shape (R, B)
    regularised : bool
        Whether to compute the gradient of Ω (else zeros).

    Notes
    -----
    Ω is the mean over timesteps and sequences of (‖∂L/∂h_{t−1}‖² / ‖∂L/∂h_t‖² − 1)², and of its gradient only the part
    that is immediate in W is taken, adjoints and states held fixed (Pascanu et al. 2013, eq. 10).
    """
    r, steps, batch, _ = x.shape
    h = networks.states(x)
    chances = torch.softmax(networks.outputs(h[-1]), -1)
    error = (chances - functional.one_hot(targets, chances.shape[-1])) / batch
    slope = h[1:] * (1 - h[1:]) if networks.sigmoid else 1 - h[1:] ** 2
    adjoint, delta = torch.empty_like(h), torch.empty_like(slope)
    adjoint[-1] = error @ networks.v.mT
    for t in range(steps - 1, -1, -1):
        torch.mul(adjoint[t + 1], slope[t], out=delta[t])
        torch.bmm(delta[t], networks.w.mT, out=adjoint[t])
    deltas = delta.transpose(0, 1).reshape(r, steps * batch, -1)
    before = h[:-1].transpose(0, 1).reshape(r, steps * batch, -1)
    of_loss = (
        x.reshape(r, steps * batch, -1).mT @ deltas, before.mT @ deltas, deltas.sum(1), h[-1].mT @ error, error.sum(1),
    )  # fmt: skip
    if not regularised:
        return Gradients(of_loss, torch.zeros_like(networks.w))
    squares = adjoint.pow(2).sum(-1)
    known = squares[1:] >= _BOUND
    off = torch.where(known, squares[:-1] / squares[1:], torch.ones_like(squares[1:])) - 1
    terms = known.sum((0, 2)).clamp(min=1)[:, None]
    weight = torch.where(known, 4 * off / squares[1:] / terms, torch.zeros_like(off))
    back = (adjoint[:-1] * weight[..., None]).transpose(0, 1).reshape(r, steps * batch, -1)
    return Gradients(of_loss, back.mT @ deltas)


def updated(
    networks: Networks, found: Gradients, rate: float, threshold: Tensor, weight: Tensor
) -> tuple[Networks, Tensor]:
    """A step of gradient descent, and the norms (R,) before clipping.

    ``threshold`` (R,) on the norm of all gradients, infinite for none; ``weight`` (R,) of the regulariser, whose
    gradient is clipped along.
    """
    each = list(found.loss)
    each[1] = each[1] + weight[:, None, None] * found.regulariser
    norm = torch.stack([g.flatten(1).square().sum(1) for g in each]).sum(0).sqrt()
    scale = rate * (threshold / norm).clamp(max=1.0)
    moved = [p - scale.view(-1, *[1] * (g.dim() - 1)) * g for p, g in zip(networks.parameters, each, strict=True)]
    return networks.having(moved), norm


def share_wrong(networks: Networks, inputs: Tensor, targets: Tensor) -> Tensor:
    """Share of wrong answers (R,); NaN for a network whose outputs are no numbers. Inputs (B, T, I), for all alike."""
    r = len(networks.w)
    h = inputs.new_zeros(r, len(inputs), networks.w.shape[-1])
    for x in inputs.unbind(1):
        z = torch.baddbmm(x @ networks.u + networks.b[:, None], h, networks.w)
        h = torch.sigmoid(z) if networks.sigmoid else torch.tanh(z)
    outputs = networks.outputs(h)
    wrong = (outputs.argmax(-1) != targets).double().mean(1)
    return torch.where(outputs.isfinite().all(-1).all(-1), wrong, torch.nan)


@dataclass(frozen=True)
class Schedule:
    """How to train: batch, learning rate, most updates, how often to look, and the share of errors that is success."""

    batch: int = 20
    rate: float = 0.01
    most: int = 8000
    every: int = 250
    looked_at: int = 500
    examined: int = 10_000
    success: float = 0.01


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a network came to: whether it learnt the task, in how many updates, its largest gradient, its weights."""

    solved: bool
    updates: int
    largest_norm: float
    network: Networks


def train(
    networks: Networks, streams: Sequence[int], threshold: Tensor, weight: Tensor, task: Task, how: Schedule, seed: int
) -> list[Outcome]:
    """Train every network until it makes fewer errors than asked among fresh sequences, or for ``how.most`` updates.

    Networks of one of the ``streams`` (R numbers from 0) see the same sequences. One whose weights are no numbers any
    more is given up.
    """
    generator = torch.Generator().manual_seed(seed)
    outcomes: list[Outcome | None] = [None] * len(streams)
    at, stream = torch.arange(len(streams)), torch.as_tensor(streams)
    largest = torch.zeros(len(streams))
    count = int(stream.max()) + 1
    for update in range(1, how.most + 1):
        x, targets = task.draw(generator, count * how.batch)
        x = x.view(count, how.batch, *x.shape[1:]).transpose(1, 2)[stream[at]]
        found = gradients(networks, x, targets.view(count, -1)[stream[at]], regularised=bool(weight[at].any()))
        networks, norm = updated(networks, found, how.rate, threshold[at], weight[at])
        largest[at] = torch.maximum(largest[at], norm)
        if update % how.every and update < how.most:
            continue
        wrong = share_wrong(networks, *task.draw(generator, how.looked_at))
        hopeful = torch.nonzero(wrong < how.success)[:, 0]
        if hopeful.numel():
            wrong[hopeful] = share_wrong(networks.only(hopeful), *task.draw(generator, how.examined))
        over = (wrong < how.success) | wrong.isnan() | (update >= how.most)
        for i in torch.nonzero(over)[:, 0].tolist():
            one = int(at[i])
            kept = networks.only(torch.tensor([i]))
            outcomes[one] = Outcome(bool(wrong[i] < how.success), update, float(largest[one]), kept)
        networks, at = networks.only(~over), at[~over]
        if not len(at):
            break
    return [outcome for outcome in outcomes if outcome is not None]
