"""Elman recurrence, h_t = φ(W_ih x_t + W_hh h_{t−1} + b) with φ = tanh or ReLU.

Reverse time: δ_t = a_t ⊙ φ'(·), a_{t−1} = direct_{t−1} + δ_t W_hh. φ' follows from h_t alone, so neither the
input nor the gates are recomputed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.order import Order
from gradscope.adjoint.types import Adjoints, GateClip, Trajectory, Weights


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
    ) -> Adjoints:
        slope = self._slope(trajectory.hidden)
        hidden = direct.clone()
        gates = torch.empty_like(hidden)
        a, delta, slopes = hidden.unbind(), gates.unbind(), slope.unbind()
        for t in range(len(a) - 1, -1, -1):
            torch.mul(a[t], slopes[t], out=delta[t])
            if clip is not None:
                clip(delta[t])
            if t:
                a[t - 1].addmm_(delta[t], weights.w_hh)
        return Adjoints(order, hidden, direct, trajectory, weights, gates, gates)
