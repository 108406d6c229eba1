"""Recurrent layers written as Python loops that take the module's place in a model; autograd keeps every state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LoopLayer(nn.Module):
    """Compute what a one-layer, one-direction ``nn.RNN``, ``nn.LSTM`` or ``nn.GRU`` does, step by step.

    ``states`` collects one list of (h_t, c_t or None) per forward call; gradients of these tensors are the adjoints.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module
        self.states: list[list[tuple[Tensor, Tensor | None]]] = []

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        m = self.module
        if m.batch_first:
            x = x.transpose(0, 1)
        lstm = m.mode == "LSTM"
        h, c = (hx if lstm else (hx, None)) if hx is not None else (None, None)
        h = x.new_zeros(x.shape[1], m.hidden_size) if h is None else h[0]
        c = (x.new_zeros(x.shape[1], m.hidden_size) if c is None else c[0]) if lstm else None
        states: list[tuple[Tensor, Tensor | None]] = []
        for x_t in x:
            h, c = self.step(x_t, h, c)
            states.append((h, c))
        self.states.append(states)
        output = torch.stack([h for h, _ in states])
        final = (h[None], c[None]) if lstm else h[None]
        return (output.transpose(0, 1) if m.batch_first else output), final

    def step(self, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        m = self.module
        w_ih, w_hh, *biases = (p for p in m._flat_weights)
        b_ih, b_hh = biases if biases else (x.new_zeros(len(w_ih)), x.new_zeros(len(w_ih)))
        a, b = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        if m.mode == "RNN_TANH":
            return torch.tanh(a + b), None
        if m.mode == "RNN_RELU":
            return torch.relu(a + b), None
        if m.mode == "GRU":
            (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
            r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
            return (1 - z) * torch.tanh(an + r * bn) + z * h, None
        i, f, g, o = (a + b).chunk(4, 1)
        assert c is not None
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


def adjoints(loss: Tensor, states: list[tuple[Tensor, Tensor | None]], which: int = 0) -> Tensor:
    """Return ∂loss/∂s_t for every step, (T, B, H); zeros where the loss does not depend on it."""
    tensors = [state[which] for state in states]
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return torch.stack([torch.zeros_like(s) if g is None else g for s, g in zip(tensors, found, strict=True)])


def against_lag(adjoint: Tensor) -> Tensor:
    """Return the norms (B, L) of adjoints (T, B, H) of full-length forward sequences."""
    return torch.linalg.vector_norm(adjoint.double(), dim=2).flip(0).T
