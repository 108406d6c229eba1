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
from gradscope.adjoint.walk import BLOCK, Walk


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
    def _coefficients(trajectory: Trajectory, block: slice) -> tuple[Tensor, Tensor]:
        """Return δ^hh / a_t, (t, B, 3, H), and κ, (t, B, H), of a block of timesteps."""
        assert trajectory.activations is not None
        assert trajectory.candidate_hh is not None
        activations = trajectory.activations[block]
        r, z, n = activations.unbind(2)
        coefficient = torch.empty_like(activations)
        kappa = (1 - z).mul_(1 - n * n)
        torch.mul(kappa, r, out=coefficient[:, :, 2])
        torch.mul(coefficient[:, :, 2] * trajectory.candidate_hh[block], 1 - r, out=coefficient[:, :, 0])
        torch.mul(trajectory.hidden_prev[block] - n, (1 - z).mul_(z), out=coefficient[:, :, 1])
        return coefficient, kappa

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        coefficient, kappa = self._coefficients(trajectory, slice(None))
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
        keep_gates: bool = True,
    ) -> Adjoints:
        assert trajectory.activations is not None
        walk = Walk(direct, trajectory.hidden.dtype)
        gates_hh = torch.zeros_like(trajectory.activations[: None if keep_gates else BLOCK])
        gates = torch.zeros_like(gates_hh) if keep_gates else None
        for low, high in walk.blocks():
            block = slice(low, high)
            coefficient, kappa = self._coefficients(trajectory, block)
            delta = gates_hh[block] if keep_gates else gates_hh[: high - low]
            hidden, keep = walk.hidden[block], trajectory.activations[block, :, 1]
            if clip is not None:
                assert gates is not None
                reset = trajectory.activations[block, :, 0]
                _reverse_clipped(hidden, delta, gates[block], coefficient, kappa, reset, keep, weights, clip)
            else:
                _reverse(hidden, delta, coefficient, keep, weights)
                if gates is not None:
                    gates[block, :, :2] = delta[:, :, :2]
                    torch.mul(kappa, hidden, out=gates[block, :, 2])
            walk.leave(torch.addmm(hidden[0] * keep[0], delta[0].flatten(1), weights.w_hh))
        if gates is None:
            return Adjoints(order, walk.hidden, direct, trajectory, weights, scale=walk.scale, faded=walk.faded)
        flat, flat_hh = gates.flatten(2), gates_hh.flatten(2)
        return Adjoints(
            order, walk.hidden, direct, trajectory, weights, flat, flat_hh, scale=walk.scale, faded=walk.faded
        )


def _reverse(hidden: Tensor, delta: Tensor, coefficient: Tensor, z: Tensor, weights: Weights) -> None:
    a, a_gate, d, flat = hidden.unbind(), hidden[:, :, None].unbind(), delta.unbind(), delta.flatten(2).unbind()
    c, keep = coefficient.unbind(), z.unbind()
    for t in range(len(a) - 1, -1, -1):
        torch.mul(a_gate[t], c[t], out=d[t])
        if t:
            a[t - 1].addcmul_(a[t], keep[t]).addmm_(flat[t], weights.w_hh)


def _reverse_clipped(
    hidden: Tensor,
    gates_hh: Tensor,
    gates: Tensor,
    coefficient: Tensor,
    kappa: Tensor,
    r: Tensor,
    z: Tensor,
    weights: Weights,
    clip: GateClip,
) -> None:
    # The clip acts on the pre-activations, and the reset gate's adjoint passes through the candidate's.
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
