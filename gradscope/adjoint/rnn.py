"""Elman recurrence, h_t = φ(W_ih x_t + W_hh h_{t−1} + b) with φ = tanh or ReLU.

Reverse time: δ_t = a_t ⊙ φ'(·), a_{t−1} = direct_{t−1} + δ_t W_hh. φ' follows from h_t alone, so neither the
input nor the gates are recomputed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.order import Order
from gradscope.adjoint.types import Adjoints, GateClip, Trajectory, Weights
from gradscope.adjoint.walk import BLOCK, Walk


def shifted(states: Tensor, initial: Tensor) -> Tensor:
    """Return the state each step started from: ``initial`` (B, H), then ``states`` (T, B, H) without the last."""
    return torch.cat((initial[None], states[:-1]))


class ElmanCell:
    """``nn.RNN``; ``relu`` chooses the nonlinearity."""

    gate_names: tuple[str, ...] = ("h",)

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def trajectory(self, x: Tensor, hidden: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights) -> Trajectory:
        return self.at(x, hidden, shifted(hidden, h0), None, weights)

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        return Trajectory(hidden, hidden_prev, activations=hidden[:, :, None])

    def _slope(self, h: Tensor) -> Tensor:
        return (h > 0).to(h.dtype) if self.relu else 1 - h * h

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        gates = hidden * self._slope(trajectory.hidden)
        return gates, gates

    def reverse(
        self,
        trajectory: Trajectory,
        weights: Weights,
        direct: Tensor,
        direct_cell: Tensor | None,
        order: Order,
        clip: GateClip | None = None,
        keep_gates: bool = True,
    ) -> Adjoints:
        h = trajectory.hidden
        walk = Walk(direct, h.dtype)
        gates = torch.zeros_like(h[: None if keep_gates else BLOCK])
        for low, high in walk.blocks():
            slope = self._slope(h[low:high]).unbind()
            a = walk.hidden[low:high].unbind()
            delta = (gates[low:high] if keep_gates else gates[: high - low]).unbind()
            for t in range(high - low - 1, -1, -1):
                torch.mul(a[t], slope[t], out=delta[t])
                if clip is not None:
                    clip(delta[t])
                if t:
                    a[t - 1].addmm_(delta[t], weights.w_hh)
            walk.leave(delta[0] @ weights.w_hh)
        kept = gates if keep_gates else None
        return Adjoints(order, walk.hidden, direct, trajectory, weights, kept, kept, scale=walk.scale, faded=walk.faded)
