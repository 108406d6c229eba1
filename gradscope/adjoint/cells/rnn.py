"""Elman recurrence, h_t = φ(W_ih x_t + W_hh h_{t−1} + b) with φ = tanh or ReLU.

Reverse time: δ_t = a_t ⊙ φ'(·), a_{t−1} = direct_{t−1} + δ_t W_hh. φ' follows from h_t alone, so neither the
input nor the gates are recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.adjoint.cells.cell import Cell, Local, shifted
from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.order import Order
from gradscope.adjoint.types import KEEP_GATES, Adjoints, GateClip, Keep, Trajectory, Weights
from gradscope.adjoint.walk import Walk


@dataclass(frozen=True)
class ElmanLinearization(Linearization):
    """``slope`` (T, B, H) is φ' at every pre-activation."""

    slope: Tensor

    def push(self, t: int, tangents: Tensor) -> Tensor:
        return (tangents @ self.weights.w_hh.t()) * self.slope[t][:, None]

    def gates(self, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        gates = cotangents * self.slope[t][:, None]
        return gates, gates

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self.gates(t, cotangents)[1] @ self.weights.w_hh


class ElmanCell(Cell):
    """``nn.RNN``; ``relu`` chooses the nonlinearity."""

    gate_names = ("h",)

    def __init__(self, relu: bool) -> None:
        self.relu = relu
        self.kernel = "rnn_relu" if relu else "rnn_tanh"

    def computes(self, module: nn.Module) -> bool:
        return isinstance(module, nn.RNNCell) and (module.nonlinearity == "relu") == self.relu

    def trajectory(
        self,
        x: Tensor,
        hidden: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weights: Weights,
        whole: bool = True,
    ) -> Trajectory:
        return Trajectory(hidden, shifted(hidden, h0) if whole else None, activations=hidden[:, :, None])

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        return Trajectory(hidden, hidden_prev, activations=hidden[:, :, None])

    def _slope(self, h: Tensor) -> Tensor:
        # As torch does, which lets a gradient through a NaN.
        return (h <= 0).logical_not_().to(h.dtype) if self.relu else 1 - h * h

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None, carry_only: bool = False) -> Local:
        gates = hidden * self._slope(trajectory.hidden)
        return Local(gates, gates)

    def reverse(
        self,
        trajectory: Trajectory,
        weights: Weights,
        direct: Tensor,
        direct_cell: Tensor | None,
        order: Order,
        clip: GateClip | None = None,
        keep: Keep = KEEP_GATES,
        last: Tensor | None = None,
    ) -> Adjoints:
        h = trajectory.hidden
        walk = Walk(direct, h.dtype, last=last)
        gates = torch.empty_like(h) if keep.gates else None
        entering = walk.result(weights.w_ih.shape[1]) if keep.input else None
        slope, delta = walk.buffer(h.shape[2]), walk.buffer(h.shape[2])
        a_t, slope_t, delta_t = walk.a.unbind(), slope.unbind(), delta.unbind()

        for block in walk.blocks(gates, entering):
            steps = block.stop - block.start
            slope[:steps] = self._slope(h[block])
            for t in range(steps - 1, -1, -1):
                torch.mul(a_t[t], slope_t[t], out=delta_t[t])
                if clip is not None:
                    clip(delta_t[t])
                if t:
                    a_t[t - 1].addmm_(delta_t[t], weights.w_hh)
            walk.leave(delta_t[0][keep.leaving(block)] @ weights.w_hh)
            if gates is not None:
                gates[block] = delta[:steps]
            if entering is not None:
                torch.matmul(delta[:steps], weights.w_ih, out=entering[block])
        found = walk.adjoints(order, trajectory, weights)
        found.gates = found.gates_hh = gates
        found.input_gradient = entering
        return found

    def linearise(self, trajectory: Trajectory, weights: Weights) -> ElmanLinearization:
        return ElmanLinearization(weights, self._slope(trajectory.hidden))
