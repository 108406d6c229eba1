"""What follows from total adjoints that are known already, all timesteps at once: nothing recurs in it."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.cells import CELLS
from gradscope.adjoint.order import Order
from gradscope.adjoint.types import KEEP_GATES, Adjoints, Keep, Trajectory, Weights


def from_totals(
    mode: str,
    trajectory: Trajectory,
    weights: Weights,
    order: Order,
    hidden: Tensor,
    cell: Tensor | None = None,
    carry_only: bool = False,
    keep: Keep = KEEP_GATES,
) -> Adjoints:
    """Complete the adjoints of a layer from the total derivatives of its states.

    Parameters
    ----------
    mode : str
        As in :class:`~gradscope.adjoint.stack.StackCall`.
    trajectory : Trajectory
        With all gates, in the type of the arithmetic.
    weights : Weights
    order : Order
    hidden : Tensor, shape (T, B, H)
        ∂L/∂h_t, total.
    cell : Tensor of shape (T, B, H) or None
        ∂L/∂c_t: total, or with h_t held fixed where it is the ``carry_only``.
    carry_only : bool
    keep : Keep
    """
    equations = CELLS[mode]
    local = equations.local(trajectory, hidden, cell, carry_only)
    found = Adjoints(order, hidden, None, None, weights, cell=local.cell)
    if keep.input:
        found.input_gradient = torch.matmul(local.gates, weights.w_ih)
    if keep.gates:
        found.gates, found.gates_hh = local.gates, local.gates_hh
        found.cell_carry, found.trajectory = local.carry, trajectory
    if keep.begins != 0:
        first = equations.initial(trajectory.first(), weights, hidden, local.carry)
        found.initial_hidden, found.initial_cell = (None if state is None else state.double() for state in first)
    return found
