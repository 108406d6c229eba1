"""Gated recurrent unit (Cho et al. 2014) as PyTorch computes it: h_t = (1 − z) n + z h_{t−1}, gates in order r, z, n.

With q = W_hn h_{t−1} + b_hn and κ = (1 − z)(1 − n²), reverse time reads
δ^hh = [κ q r(1−r), (h_{t−1} − n) z(1−z), κ r] ⊙ a_t,  a_{t−1} = direct_{t−1} + z ⊙ a_t + δ^hh W_hh;
the n block of the pre-activation adjoint is κ ⊙ a_t.
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
class GRULinearization(Linearization):
    """A step of h_t = (1 − z) n + z h_{t−1}, linearised.

    Attributes
    ----------
    coefficient : Tensor, shape (T, B, 3, H)
        δ^hh / a_t: what W_hh h_{t−1} + b_hh becomes in h_t.
    candidate : Tensor, shape (T, B, H)
        κ, the same for the n block of W_ih x_t + b_ih; its other blocks are those of ``coefficient``.
    keep : Tensor, shape (T, B, H)
        z.
    """

    coefficient: Tensor
    candidate: Tensor
    keep: Tensor

    def push(self, t: int, tangents: Tensor) -> Tensor:
        product = (tangents @ self.weights.w_hh.t()).unflatten(-1, (3, -1)) * self.coefficient[t][:, None]
        return product.sum(-2).addcmul_(self.keep[t][:, None], tangents)

    def gates(self, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        through = cotangents[..., None, :] * self.coefficient[t][:, None]
        gates = torch.cat((through[..., :2, :].flatten(-2), cotangents * self.candidate[t][:, None]), -1)
        return gates, through.flatten(-2)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        through = (cotangents[..., None, :] * self.coefficient[t][:, None]).flatten(-2)
        return (through @ self.weights.w_hh).addcmul_(self.keep[t][:, None], cotangents)


class GRUCell(Cell):
    """``nn.GRU``."""

    gate_names = ("r", "z", "n")
    kernel = "gru"

    def computes(self, module: nn.Module) -> bool:
        return isinstance(module, nn.GRUCell)

    def trajectory(
        self,
        x: Tensor,
        hidden: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weights: Weights,
        whole: bool = True,
    ) -> Trajectory:
        previous = shifted(hidden, h0)
        return self.at(x, hidden, previous, None, weights) if whole else Trajectory(hidden, previous, x=x)

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

    def _part(self, trajectory: Trajectory, block: slice, weights: Weights) -> Trajectory:
        """Return a block of timesteps, the gates recomputed where the trajectory does not hold them."""
        x, activations, candidate_hh = trajectory.x, trajectory.activations, trajectory.candidate_hh
        assert trajectory.hidden_prev is not None
        hidden, previous = trajectory.hidden[block], trajectory.hidden_prev[block]
        if activations is None or candidate_hh is None:
            assert x is not None
            return self.at(x[block], hidden, previous, None, weights)
        return Trajectory(hidden, previous, activations[block], candidate_hh=candidate_hh[block])

    @staticmethod
    def _coefficients(part: Trajectory, out: Tensor) -> Tensor:
        """Fill ``out`` (t, B, 4, H) with z and δ^hh / a_t; return κ, (t, B, H)."""
        assert part.activations is not None
        assert part.candidate_hh is not None
        assert part.hidden_prev is not None
        r, z, n = part.activations.unbind(2)
        keep, to_r, to_z, to_n = out.unbind(2)
        keep.copy_(z)
        from_new = 1 - z
        kappa = torch.addcmul(from_new, n * from_new, n, value=-1)
        torch.mul(kappa, r, out=to_n)
        torch.mul(to_n * part.candidate_hh, 1 - r, out=to_r)
        torch.mul(part.hidden_prev - n, from_new.mul_(z), out=to_z)
        return kappa

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None, carry_only: bool = False) -> Local:
        coefficient = hidden.new_empty(*hidden.shape[:2], 4, hidden.shape[2])
        kappa = self._coefficients(trajectory, coefficient)
        gates_hh = coefficient[:, :, 1:] * hidden[:, :, None]
        gates = gates_hh.clone()
        torch.mul(kappa, hidden, out=gates[:, :, 2])
        return Local(gates.flatten(2), gates_hh.flatten(2))

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
        hidden = trajectory.hidden
        walk = Walk(direct, hidden.dtype, last=last)
        steps, batch, size = hidden.shape
        gates = gates_hh = None
        if keep.gates:
            gates, gates_hh = (hidden.new_empty(steps, batch, 3, size) for _ in range(2))
        # z stands beside the coefficients of the gates, so that one product gives all of z ⊙ a_t and δ^hh.
        coefficient, product = walk.buffer(4, size), walk.buffer(4, size)
        lanes = _Lanes(walk.a, coefficient, product)
        entering = walk.result(weights.w_ih.shape[1]) if keep.input else None
        for block in walk.blocks(gates, gates_hh, entering):
            n = block.stop - block.start
            part = self._part(trajectory, block, weights)
            kappa = self._coefficients(part, coefficient[:n])
            if clip is None:
                lanes.reverse(walk, n, weights.w_hh)
                candidate = kappa.mul_(walk.a[:n]) if keep.gates or keep.input else kappa
            else:
                candidate = lanes.reverse_clipped(n, kappa, part, weights.w_hh, clip)
            rows = keep.leaving(block)
            walk.leave(torch.addmm(lanes.kept[0][rows], lanes.delta[0][rows], weights.w_hh))
            if gates is not None and gates_hh is not None:
                gates_hh[block] = product[:n, :, 1:]
                gates[block, :, :2], gates[block, :, 2] = product[:n, :, 1:3], candidate
            if entering is not None:
                here = entering[block].flatten(0, 1)
                torch.mm(product[:n, :, 1:3].flatten(0, 1).flatten(1), weights.w_ih[: 2 * size], out=here)
                here.addmm_(candidate.flatten(0, 1), weights.w_ih[2 * size :])
        flat = None if gates is None else gates.flatten(2)
        flat_hh = None if gates_hh is None else gates_hh.flatten(2)
        found = walk.adjoints(order, trajectory, weights)
        found.gates, found.gates_hh, found.input_gradient = flat, flat_hh, entering
        return found

    def linearise(self, trajectory: Trajectory, weights: Weights) -> GRULinearization:
        coefficient = trajectory.hidden.new_empty(*trajectory.hidden.shape[:2], 4, trajectory.hidden.shape[2])
        kappa = self._coefficients(trajectory, coefficient)
        return GRULinearization(weights, coefficient[:, :, 1:], kappa, coefficient[:, :, 0])


class _Lanes:
    """The buffers of a block, a view per timestep, and the walk through them."""

    def __init__(self, a: Tensor, coefficient: Tensor, product: Tensor) -> None:
        self.a, self.a_gate, self.coefficient = a.unbind(), a[:, :, None].unbind(), coefficient.unbind()
        self.product = product.unbind()
        self.kept, self.delta = product[:, :, 0].unbind(), product[:, :, 1:].flatten(2).unbind()

    def reverse(self, walk: Walk, steps: int, w_hh: Tensor) -> None:
        for t in range(steps - 1, -1, -1):
            torch.mul(self.a_gate[t], self.coefficient[t], out=self.product[t])
            if not t:
                break
            if walk.quiet(t - 1):
                torch.addmm(self.kept[t], self.delta[t], w_hh, out=self.a[t - 1])
            else:
                self.a[t - 1].add_(self.kept[t]).addmm_(self.delta[t], w_hh)

    def reverse_clipped(self, steps: int, kappa: Tensor, part: Trajectory, w_hh: Tensor, clip: GateClip) -> Tensor:
        """Walk with the pre-activations clipped; return the candidate's, (t, B, H).

        The reset gate's adjoint passes through the candidate's.
        """
        assert part.activations is not None
        assert part.candidate_hh is not None
        r, candidate = part.activations[:, :, 0], torch.empty_like(kappa)
        to_r = part.candidate_hh * r * (1 - r)
        for t in range(steps - 1, -1, -1):
            keep, _, to_z, _ = self.coefficient[t].unbind(1)
            kept, delta_r, delta_z, delta_n = self.product[t].unbind(1)
            torch.mul(kappa[t], self.a[t], out=candidate[t])
            clip(candidate[t])
            torch.mul(candidate[t], to_r[t], out=delta_r)
            torch.mul(to_z, self.a[t], out=delta_z)
            clip(self.product[t][:, 1:3])
            torch.mul(candidate[t], r[t], out=delta_n)
            torch.mul(keep, self.a[t], out=kept)
            if t:
                self.a[t - 1].add_(kept).addmm_(self.delta[t], w_hh)
        return candidate
