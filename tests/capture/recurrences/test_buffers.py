"""States that are written into a larger tensor on their way out of the loop, and handed on beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gradscope
from tests.capture.recurrences.agreement import error
from tests.capture.recurrences.cases import FEATURES, B, H, T


class StackedStates(nn.Module):
    """An LSTM whose states are one tensor, (2, B, H), kept for all timesteps and read without the first, as xLSTM's."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.head = nn.Linear(FEATURES, 4 * H), nn.Linear(H, 2)
        self.recurrent = nn.Parameter(torch.randn(1, H, 4 * H) / H**0.5)
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        states = x.new_zeros(2, len(x), H)
        every = x.new_zeros(2, T + 1, len(x), H)
        for t in range(T):
            h, c = states.unbind(0)
            i, f, g, o = (self.x(x[:, t]) + h.view(len(x), 1, 1, H).matmul(self.recurrent)[:, 0, 0]).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states = torch.stack((h, c))
            if kept is not None:
                h.retain_grad()
                kept.append(h)
            every[:, t + 1] = states
        return self.head(self.norm(every[0, 1:].transpose(0, 1)))[:, 1:]


def test_the_states_are_found_beside_the_buffer() -> None:
    torch.manual_seed(2)
    model, x = StackedStates().double(), torch.randn(B, T, FEATURES, dtype=torch.float64)
    kept: list[Tensor] = []
    model(x, kept).pow(2).mean().backward()
    (site,) = gradscope.snapshot(model, lambda: model(x).pow(2).mean()).values()
    assert site.hidden.shape == (T, B, H)
    assert error(site.hidden, torch.stack([h.grad for h in kept])) < 1e-10
