"""Long short-term memory as PyTorch computes it, gates in order i, f, g, o, with or without a projection.

With m_t the adjoint of o ⊙ tanh(c_t) (a_t itself, or a_t W_hr with ``proj_size``), reverse time reads
carry_t = C_{t+1} ⊙ f_{t+1},  C_t = carry_t + m_t ⊙ o ⊙ (1 − tanh² c_t),
δ_t = [C g i(1−i), C c_{t−1} f(1−f), C i(1−g²), m tanh(c) o(1−o)],  a_{t−1} = direct_{t−1} + δ_t W_hh.
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
class LSTMLinearization(Linearization):
    """A step of the joint state (h, c), linearised.

    Attributes
    ----------
    coefficient : Tensor, shape (T, B, 4, H)
        What W_hh h_{t−1} + b_hh becomes in c_t and, for the output gate, in o ⊙ tanh(c_t).
    keep : Tensor, shape (T, B, H)
        f.
    to_cell : Tensor, shape (T, B, H)
        ∂(o ⊙ tanh c_t)/∂c_t.
    """

    coefficient: Tensor
    keep: Tensor
    to_cell: Tensor

    @property
    def cell_size(self) -> int:
        return self.keep.shape[2]

    def push(self, t: int, tangents: Tensor) -> Tensor:
        before, cell = tangents[..., : self.hidden_size], tangents[..., self.hidden_size :]
        gates = (before @ self.weights.w_hh.t()).unflatten(-1, (4, -1)) * self.coefficient[t][:, None]
        cell = gates[..., :3, :].sum(-2).addcmul_(self.keep[t][:, None], cell)
        hidden = torch.addcmul(gates[..., 3, :], self.to_cell[t][:, None], cell)
        if self.weights.w_hr is not None:
            hidden = hidden @ self.weights.w_hr.t()
        return torch.cat((hidden, cell), -1)

    def _through(self, cotangents: Tensor) -> Tensor:
        """Return the cotangents of o ⊙ tanh(c_t)."""
        hidden = cotangents[..., : self.hidden_size]
        return hidden if self.weights.w_hr is None else hidden @ self.weights.w_hr

    def total_cell(self, t: int, cotangents: Tensor) -> Tensor:
        return torch.addcmul(cotangents[..., self.hidden_size :], self._through(cotangents), self.to_cell[t][:, None])

    def _gates(self, t: int, through: Tensor, cell: Tensor) -> Tensor:
        coefficient = self.coefficient[t][:, None]
        of_cell = cell[..., None, :] * coefficient[..., :3, :]
        return torch.cat((of_cell.flatten(-2), through * coefficient[..., 3, :]), -1)

    def gates(self, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        gates = self._gates(t, self._through(cotangents), self.total_cell(t, cotangents))
        return gates, gates

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        cell = self.total_cell(t, cotangents)
        before = self._gates(t, self._through(cotangents), cell) @ self.weights.w_hh
        return torch.cat((before, cell * self.keep[t][:, None]), -1)


class LSTMCell(Cell):
    """``nn.LSTM``."""

    gate_names = ("i", "f", "g", "o")
    has_cell = True
    kernel = "lstm"

    def computes(self, module: nn.Module) -> bool:
        return isinstance(module, nn.LSTMCell)

    def trajectory(
        self,
        x: Tensor,
        hidden: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weights: Weights,
        whole: bool = True,
    ) -> Trajectory:
        assert c0 is not None
        previous = shifted(hidden, h0)
        return self.of_gates(self.gates(x, previous, weights, c0.shape[1]), hidden, previous, c0)

    @staticmethod
    def of_gates(
        gates: Tensor, hidden: Tensor, hidden_prev: Tensor | None, c0: Tensor, cell: Tensor | None = None
    ) -> Trajectory:
        """Return the trajectory with these gate activations (T, B, 4, H), and cell states (T, B, H) where known."""
        cells = c0.new_empty(len(gates) + 1, *c0.shape)
        cells[0] = c0
        if cell is not None:
            cells[1:] = cell
        else:
            torch.mul(gates[:, :, 0], gates[:, :, 2], out=cells[1:])
            forget, c = gates[:, :, 1].unbind(), cells.unbind()
            for t in range(len(gates)):
                c[t + 1].addcmul_(forget[t], c[t])
        return Trajectory(hidden, hidden_prev, gates, cells[1:], cells[:-1])

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        assert cell_prev is not None
        gates = self.gates(x, hidden_prev, weights, cell_prev.shape[2])
        i, f, g, _ = gates.unbind(2)
        return Trajectory(hidden, hidden_prev, gates, f * cell_prev + i * g, cell_prev)

    @staticmethod
    def gates(x: Tensor, hidden_prev: Tensor, weights: Weights, size: int) -> Tensor:
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
    def _coefficients(trajectory: Trajectory, block: slice, out: Tensor, to_cell: Tensor) -> None:
        """Fill ``out`` (t, B, 5, H) with f and δ / (C, C, C, m), ``to_cell`` (t, B, H) with o ⊙ (1 − tanh² c)."""
        assert trajectory.activations is not None
        assert trajectory.cell is not None
        assert trajectory.cell_prev is not None
        i, f, g, o = trajectory.activations[block].unbind(2)
        keep, to_i, to_f, to_g, to_o = out.unbind(2)
        tanh_c = torch.tanh(trajectory.cell[block], out=to_cell)
        keep.copy_(f)
        torch.mul(i, g, out=to_i)
        torch.addcmul(i, to_i, g, value=-1, out=to_g)
        torch.addcmul(to_i, to_i, i, value=-1, out=to_i)
        torch.mul(torch.addcmul(f, f, f, value=-1, out=to_f), trajectory.cell_prev[block], out=to_f)
        torch.mul(torch.addcmul(o, o, o, value=-1, out=to_o), tanh_c, out=to_o)
        torch.addcmul(o, o * tanh_c, tanh_c, value=-1, out=to_cell)

    def _all_coefficients(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        assert trajectory.cell is not None
        steps, batch, size = trajectory.cell.shape
        out, to_cell = trajectory.cell.new_empty(steps, batch, 5, size), torch.empty_like(trajectory.cell)
        self._coefficients(trajectory, slice(None), out, to_cell)
        return out[:, :, 1:], to_cell

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None, carry_only: bool = False) -> Local:
        assert cell is not None
        assert trajectory.activations is not None
        assert trajectory.cell is not None
        assert trajectory.cell_prev is not None
        i, f, g, o = trajectory.activations.unbind(2)
        tanh_c = trajectory.cell.tanh()
        out = o * tanh_c
        through = torch.addcmul(o, out, tanh_c, value=-1).mul_(hidden)
        carry, total = (cell, cell + through) if carry_only else (cell - through, cell)
        gates = torch.empty_like(trajectory.activations)
        to_i, to_f, to_g, to_o = gates.unbind(2)
        both = torch.mul(total, i, out=to_g) * g
        torch.addcmul(both, both, i, value=-1, out=to_i)
        to_g.addcmul_(both, g, value=-1)
        kept = total * f
        torch.addcmul(kept, kept, f, value=-1, out=to_f).mul_(trajectory.cell_prev)
        out *= hidden
        torch.addcmul(out, out, o, value=-1, out=to_o)
        flat = gates.flatten(2)
        return Local(flat, flat, total, carry)

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
        c = trajectory.cell
        assert c is not None
        walk = Walk(direct, c.dtype, direct_cell, cell_size=c.shape[2], last=last)
        assert walk.carry_in is not None
        lanes = _Lanes(walk, c.shape[2])
        cell, carry, gates = torch.empty_like(c), None, None
        if keep.gates:
            carry, gates = torch.empty_like(c), c.new_empty(*c.shape[:2], 4, c.shape[2])
        entering = walk.result(weights.w_ih.shape[1]) if keep.input else None
        for block in walk.blocks(cell, carry, gates, entering):
            steps = block.stop - block.start
            self._coefficients(trajectory, block, lanes.coefficient[:steps], lanes.to_cell[:steps])
            lanes.reverse(walk, steps, weights, clip)
            rows = keep.leaving(block)
            walk.leave(lanes.delta[0][rows] @ weights.w_hh, lanes.carried[0][rows])
            cell[block] = lanes.total[:steps]
            if carry is not None and gates is not None:
                carry[block.stop - 1] = walk.carry_in
                carry[block.start : block.stop - 1] = lanes.product[1:steps, :, 0]
                gates[block] = lanes.product[:steps, :, 1:]
            if entering is not None:
                torch.matmul(lanes.product[:steps, :, 1:].flatten(2), weights.w_ih, out=entering[block])
        flat = None if gates is None else gates.flatten(2)
        found = walk.adjoints(order, trajectory, weights)
        found.cell, found.cell_carry, found.direct_cell = cell, carry, direct_cell
        found.gates = found.gates_hh = flat
        found.input_gradient = entering
        return found

    def linearise(self, trajectory: Trajectory, weights: Weights) -> LSTMLinearization:
        assert trajectory.activations is not None
        coefficient, to_cell = self._all_coefficients(trajectory)
        return LSTMLinearization(weights, coefficient, trajectory.activations[:, :, 1], to_cell)


class _Lanes:
    """The buffers of a block, a view per timestep, and the walk through them."""

    def __init__(self, walk: Walk, size: int) -> None:
        # f stands beside the coefficients of i, f, g: one product with C gives the carry and their adjoints.
        self.coefficient, self.product = walk.buffer(5, size), walk.buffer(5, size)
        self.to_cell, self.total = walk.buffer(size), walk.buffer(size)
        self.a, self.total_t, self.to_cell_t = walk.a.unbind(), self.total.unbind(), self.to_cell.unbind()
        self.total_gate = self.total[:, :, None].unbind()
        self.by_cell, self.by_hidden = (self.coefficient[:, :, part].unbind() for part in (slice(4), 4))
        self.from_cell, self.from_hidden = (self.product[:, :, part].unbind() for part in (slice(4), 4))
        self.carried = self.product[:, :, 0].unbind()
        self.delta = self.product[:, :, 1:].flatten(2).unbind()

    def reverse(self, walk: Walk, steps: int, weights: Weights, clip: GateClip | None) -> None:
        carry = walk.carry_in
        assert carry is not None
        for t in range(steps - 1, -1, -1):
            m = self.a[t] if weights.w_hr is None else self.a[t] @ weights.w_hr
            torch.addcmul(carry, m, self.to_cell_t[t], out=self.total_t[t])
            torch.mul(self.total_gate[t], self.by_cell[t], out=self.from_cell[t])
            torch.mul(m, self.by_hidden[t], out=self.from_hidden[t])
            if clip is not None:
                clip(self.delta[t])
            carry = self.carried[t]
            if t:
                if (above := walk.cell_from_above(t - 1)) is not None:
                    carry += above
                self.a[t - 1].addmm_(self.delta[t], weights.w_hh)
