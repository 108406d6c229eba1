"""Long short-term memory as PyTorch computes it, gates in order i, f, g, o, with or without a projection.

With m_t the adjoint of o ⊙ tanh(c_t) (a_t itself, or a_t W_hr with ``proj_size``), reverse time reads
carry_t = C_{t+1} ⊙ f_{t+1},  C_t = carry_t + m_t ⊙ o ⊙ (1 − tanh² c_t),
δ_t = [C g i(1−i), C c_{t−1} f(1−f), C i(1−g²), m tanh(c) o(1−o)],  a_{t−1} = direct_{t−1} + δ_t W_hh.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.order import Order
from gradscope.adjoint.rnn import shifted
from gradscope.adjoint.types import Adjoints, GateClip, Trajectory, Weights
from gradscope.adjoint.walk import BLOCK, Walk


class LSTMCell:
    """``nn.LSTM``."""

    gate_names: tuple[str, ...] = ("i", "f", "g", "o")

    def trajectory(self, x: Tensor, hidden: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights) -> Trajectory:
        assert c0 is not None
        previous = shifted(hidden, h0)
        gates = self._gates(x, previous, weights, c0.shape[1])
        cell = gates[:, :, 0] * gates[:, :, 2]
        forget, c, before = gates[:, :, 1].unbind(), cell.unbind(), c0
        for t in range(len(c)):
            c[t].addcmul_(forget[t], before)
            before = c[t]
        return Trajectory(hidden, previous, gates, cell, shifted(cell, c0))

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        assert cell_prev is not None
        gates = self._gates(x, hidden_prev, weights, cell_prev.shape[2])
        i, f, g, _ = gates.unbind(2)
        return Trajectory(hidden, hidden_prev, gates, f * cell_prev + i * g, cell_prev)

    @staticmethod
    def _gates(x: Tensor, hidden_prev: Tensor, weights: Weights, size: int) -> Tensor:
        """Return the gate activations, (T, B, 4, H)."""
        bias = None if weights.b_ih is None or weights.b_hh is None else weights.b_ih + weights.b_hh
        gates = torch.nn.functional.linear(x, weights.w_ih, bias)
        gates.flatten(0, 1).addmm_(hidden_prev.flatten(0, 1), weights.w_hh.t())
        gates = gates.unflatten(2, (4, size))
        gates[:, :, :2].sigmoid_()
        gates[:, :, 2].tanh_()
        gates[:, :, 3].sigmoid_()
        return gates

    @staticmethod
    def _coefficients(trajectory: Trajectory, block: slice) -> tuple[Tensor, Tensor]:
        """Return δ / (C, C, C, m), (t, B, 4, H), and o ⊙ (1 − tanh² c), (t, B, H), of a block of timesteps."""
        assert trajectory.activations is not None
        assert trajectory.cell is not None
        assert trajectory.cell_prev is not None
        activations = trajectory.activations[block]
        i, f, g, o = activations.unbind(2)
        tanh_c = trajectory.cell[block].tanh()
        coefficient = torch.empty_like(activations)
        torch.mul((1 - i).mul_(i), g, out=coefficient[:, :, 0])
        torch.mul((1 - f).mul_(f), trajectory.cell_prev[block], out=coefficient[:, :, 1])
        torch.addcmul(i, (i * g), g, value=-1, out=coefficient[:, :, 2])
        torch.mul((1 - o).mul_(o), tanh_c, out=coefficient[:, :, 3])
        return coefficient, torch.addcmul(o, o * tanh_c, tanh_c, value=-1)

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        assert cell is not None
        coefficient, _ = self._coefficients(trajectory, slice(None))
        coefficient[:, :, :3] *= cell[:, :, None]
        coefficient[:, :, 3] *= hidden
        return coefficient.flatten(2), coefficient.flatten(2)

    def through_output(self, trajectory: Trajectory, hidden: Tensor) -> Tensor:
        """Return the part of ∂L/∂c_t that comes through h_t: total minus carry, (T, B, H)."""
        return hidden * self._coefficients(trajectory, slice(None))[1]

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
        gates, c = trajectory.activations, trajectory.cell
        assert gates is not None
        assert c is not None
        walk = Walk(direct, c.dtype, direct_cell, cell_size=c.shape[2])
        assert walk.carry is not None
        cell, delta = torch.zeros_like(c), torch.zeros_like(gates[: None if keep_gates else BLOCK])
        for low, high in walk.blocks():
            block = slice(low, high)
            coefficient, to_cell = self._coefficients(trajectory, block)
            here = delta[block] if keep_gates else delta[: high - low]
            forget = gates[block, :, 1]
            _reverse(
                walk.hidden[block], walk.carry[block], cell[block], here, to_cell, forget, coefficient, weights, clip
            )
            walk.leave(here[0].flatten(1) @ weights.w_hh, cell[low] * forget[0])
        flat = delta.flatten(2) if keep_gates else None
        states = {"cell": cell, "cell_carry": walk.carry, "direct_cell": direct_cell}
        return Adjoints(
            order, walk.hidden, direct, trajectory, weights, flat, flat, **states, scale=walk.scale, faded=walk.faded
        )


def _reverse(
    hidden: Tensor,
    carry: Tensor,
    cell: Tensor,
    delta: Tensor,
    to_cell: Tensor,
    forget: Tensor,
    coefficient: Tensor,
    weights: Weights,
    clip: GateClip | None,
) -> None:
    a, back, total, out, keep = hidden.unbind(), carry.unbind(), cell.unbind(), to_cell.unbind(), forget.unbind()
    total_gate = cell[:, :, None].unbind()
    delta_flat, delta_ifg, delta_o = delta.flatten(2).unbind(), delta[:, :, :3].unbind(), delta[:, :, 3].unbind()
    c_ifg, c_o = coefficient[:, :, :3].unbind(), coefficient[:, :, 3].unbind()
    for t in range(len(a) - 1, -1, -1):
        m = a[t] if weights.w_hr is None else a[t] @ weights.w_hr
        torch.addcmul(back[t], m, out[t], out=total[t])
        torch.mul(total_gate[t], c_ifg[t], out=delta_ifg[t])
        torch.mul(m, c_o[t], out=delta_o[t])
        if clip is not None:
            clip(delta_flat[t])
        if t:
            back[t - 1].addcmul_(total[t], keep[t])
            a[t - 1].addmm_(delta_flat[t], weights.w_hh)
