"""Exact reverse-time equations per cell: pure functions of tensors, no hooks, no files."""

from gradscope.adjoint.cells import CELLS, Cell, Local
from gradscope.adjoint.contributions import cell_path, consistency, weight_contribution
from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.order import Order
from gradscope.adjoint.stack import Kept, StackCall, earlier_adjoints, stack_adjoints
from gradscope.adjoint.types import Adjoints, GateClip, Keep, Trajectory, Weights

__all__ = [
    "CELLS",
    "Adjoints",
    "Cell",
    "GateClip",
    "Keep",
    "Kept",
    "Linearization",
    "Local",
    "Order",
    "StackCall",
    "Trajectory",
    "Weights",
    "cell_path",
    "consistency",
    "earlier_adjoints",
    "stack_adjoints",
    "weight_contribution",
]
