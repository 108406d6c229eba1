"""What reaches a state from above, and that alone, is its direct gradient: nothing that comes by the next state."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import gradscope
from tests.capture.recurrences.cases import FEATURES, B, H, T

Update = Callable[["Gated", Tensor, Tensor], Tensor]


class Gated(nn.Module):
    """A loop whose state goes on past every weight, as well as through one."""

    def __init__(self, update: Update) -> None:
        super().__init__()
        self.update = update
        self.enter_gate, self.gate = nn.Linear(FEATURES, H), nn.Linear(H, H)
        self.enter, self.recur, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 2)

    def states(self, x: Tensor) -> list[Tensor]:
        h, states = torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            h = self.update(self, x_t, h)
            states.append(h)
        return states

    def z(self, x_t: Tensor, h: Tensor) -> Tensor:
        return torch.sigmoid(self.enter_gate(x_t) + self.gate(h))

    def new(self, x_t: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.enter(x_t) + self.recur(h))


def convex(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    z = m.z(x_t, h)
    return z * h + (1 - z) * m.new(x_t, h)


def towards(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    return h + m.z(x_t, h) * (m.new(x_t, h) - h)


def interpolated(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    return torch.lerp(h, m.new(x_t, h), m.z(x_t, h))


def reset(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    z = m.z(x_t, h)
    return (1 - z) * h + z * m.new(x_t, z * h)


def leaking(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    return 0.8 * h + 0.2 * m.new(x_t, h)


def residual(m: Gated, x_t: Tensor, h: Tensor) -> Tensor:
    return h + m.new(x_t, h)


READ: dict[str, Callable[[Gated, list[Tensor]], Tensor]] = {
    "the last state": lambda m, states: m.out(states[-1]),
    "the last two": lambda m, states: m.out(states[-1]) * m.out(states[-2]),
    "every state": lambda m, states: m.out(torch.stack(states)),
    "every second state": lambda m, states: m.out(torch.stack(states[::2])),
    "changes": lambda m, states: m.out(torch.stack([b - a for a, b in pairwise(states)])),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("update", [convex, towards, interpolated, reset, leaking, residual])
def test_what_reaches_a_state_from_above(update: Update, read: Callable[[Gated, list[Tensor]], Tensor]) -> None:
    torch.manual_seed(0)
    model = Gated(update).double()
    x = torch.randn(B, T, FEATURES, dtype=torch.float64)
    states = [h.detach().requires_grad_() for h in model.states(x)]
    loss = read(model, states).pow(2).mean()
    reaching = torch.autograd.grad(loss, states, allow_unused=True)
    true = torch.stack([torch.zeros_like(h) if g is None else g for h, g in zip(states, reaching, strict=True)])
    (site,) = gradscope.snapshot(model, lambda: read(model, model.states(x)).pow(2).mean()).values()
    assert site.direct.shape == true.shape
    torch.testing.assert_close(site.direct, true, rtol=1e-10, atol=1e-300)
