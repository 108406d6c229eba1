"""Gated recurrent unit (Cho et al. 2014) as PyTorch computes it: h_t = (1 − z) n + z h_{t−1}, gates in order r, z, n.

With q = W_hn h_{t−1} + b_hn and κ = (1 − z)(1 − n²), reverse time reads
δ^hh = [κ q r(1−r), (h_{t−1} − n) z(1−z), κ r] ⊙ a_t,  a_{t−1} = direct_{t−1} + z ⊙ a_t + δ^hh W_hh;
the n block of the pre-activation adjoint is κ ⊙ a_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.order import Order
from gradscope.adjoint.rnn import shifted
from gradscope.adjoint.types import Adjoints, GateClip, Trajectory, Weights


class GRUCell:
    """``nn.GRU``."""

    gate_names: tuple[str, ...] = ("r", "z", "n")

    def trajectory(self, x: Tensor, hidden: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights) -> Trajectory:
        return self.at(x, hidden, shifted(hidden, h0), None, weights)

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        steps, batch, size = hidden.shape
        from_input = torch.nn.functional.linear(x, weights.w_ih, weights.b_ih).view(steps, batch, 3, size)
        from_hidden = torch.nn.functional.linear(hidden_prev, weights.w_hh, weights.b_hh).view(steps, batch, 3, size)
        candidate_hh = from_hidden[:, :, 2]
        activations = from_input
        activations[:, :, :2].add_(from_hidden[:, :, :2]).sigmoid_()
        activations[:, :, 2].addcmul_(activations[:, :, 0], candidate_hh).tanh_()
        return Trajectory(hidden, hidden_prev, activations, candidate_hh=candidate_hh)

    @staticmethod
    def _coefficients(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Return δ^hh / a_t, (T, B, 3, H), and κ, (T, B, H)."""
        assert trajectory.activations is not None
        assert trajectory.candidate_hh is not None
        r, z, n = trajectory.activations.unbind(2)
        coefficient = torch.empty_like(trajectory.activations)
        kappa = (1 - z) * (1 - n * n)
        torch.mul(kappa, r, out=coefficient[:, :, 2])
        torch.mul(coefficient[:, :, 2] * trajectory.candidate_hh, 1 - r, out=coefficient[:, :, 0])
        torch.mul(trajectory.hidden_prev - n, z * (1 - z), out=coefficient[:, :, 1])
        return coefficient, kappa

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        coefficient, kappa = self._coefficients(trajectory)
        gates_hh = coefficient * hidden[:, :, None]
        gates = gates_hh.clone()
        torch.mul(kappa, hidden, out=gates[:, :, 2])
        return gates.flatten(2), gates_hh.flatten(2)

    def reverse(
        self,
        trajectory: Trajectory,
        weights: Weights,
        direct: Tensor,
        direct_cell: Tensor | None,
        order: Order,
        clip: GateClip | None = None,
    ) -> Adjoints:
        assert trajectory.activations is not None
        r, z, _ = trajectory.activations.unbind(2)
        coefficient, kappa = self._coefficients(trajectory)
        hidden = direct.clone()
        gates_hh = torch.empty_like(coefficient)
        if clip is not None:
            gates = self._reverse_clipped(hidden, gates_hh, coefficient, kappa, r, z, weights, clip)
        else:
            self._reverse(hidden, gates_hh, coefficient, z, weights)
            gates = gates_hh.clone()
            torch.mul(kappa, hidden, out=gates[:, :, 2])
        return Adjoints(order, hidden, direct, trajectory, weights, gates.flatten(2), gates_hh.flatten(2))

    @staticmethod
    def _reverse(hidden: Tensor, gates_hh: Tensor, coefficient: Tensor, z: Tensor, weights: Weights) -> None:
        a, a_gate, delta = hidden.unbind(), hidden[:, :, None].unbind(), gates_hh.unbind()
        delta_flat, c, keep = gates_hh.flatten(2).unbind(), coefficient.unbind(), z.unbind()
        for t in range(len(a) - 1, -1, -1):
            torch.mul(a_gate[t], c[t], out=delta[t])
            if t:
                a[t - 1].addcmul_(a[t], keep[t]).addmm_(delta_flat[t], weights.w_hh)

    @staticmethod
    def _reverse_clipped(
        hidden: Tensor,
        gates_hh: Tensor,
        coefficient: Tensor,
        kappa: Tensor,
        r: Tensor,
        z: Tensor,
        weights: Weights,
        clip: GateClip,
    ) -> Tensor:
        # The clip acts on the pre-activations, and the reset gate's adjoint passes through the candidate's.
        gates = torch.empty_like(gates_hh)
        ratio = torch.where(kappa != 0, coefficient[:, :, 0] / kappa, torch.zeros_like(kappa))
        for t in range(len(hidden) - 1, -1, -1):
            torch.mul(kappa[t], hidden[t], out=gates[t, :, 2])
            clip(gates[t, :, 2])
            torch.mul(gates[t, :, 2], ratio[t], out=gates[t, :, 0])
            torch.mul(coefficient[t, :, 1], hidden[t], out=gates[t, :, 1])
            clip(gates[t, :, :2])
            gates_hh[t] = gates[t]
            gates_hh[t, :, 2] *= r[t]
            if t:
                hidden[t - 1].addcmul_(hidden[t], z[t]).addmm_(gates_hh[t].flatten(1), weights.w_hh)
        return gates
