"""What the engine asks of the equations of one kind of recurrence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gradscope.adjoint.linear import Linearization
from gradscope.adjoint.order import Order
from gradscope.adjoint.types import KEEP_GATES, Adjoints, GateClip, Keep, Trajectory, Weights


@dataclass(frozen=True)
class Local:
    """What follows at each step, without recurrence, from the adjoints of its states.

    Attributes
    ----------
    gates, gates_hh : Tensor, shape (T, B, G·H)
    cell, carry : Tensor of shape (T, B, H) or None
        ∂L/∂c_t, total and with h_t held fixed.
    """

    gates: Tensor
    gates_hh: Tensor
    cell: Tensor | None = None
    carry: Tensor | None = None


def shifted(states: Tensor, initial: Tensor) -> Tensor:
    """Return the state each step started from: ``initial`` (B, H), then ``states`` (T, B, H) without the last."""
    return torch.cat((initial[None], states[:-1]))


class Cell(ABC):
    """The equations of one kind of recurrence, forward, backward and linearised.

    Attributes
    ----------
    gate_names : tuple of str
        In the order of the rows of W_hh.
    has_cell : bool
        Whether there is a cell state c_t beside h_t.
    kernel : str
        Name of torch's function that runs a layer of it, where there is one.
    """

    gate_names: ClassVar[tuple[str, ...]]
    has_cell: ClassVar[bool] = False
    kernel: str = ""

    def computes(self, module: nn.Module) -> bool:
        """Whether a call of ``module`` is one step of this recurrence.

        It then has ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh``, the biases perhaps None.
        """
        return False

    def trajectory(
        self,
        x: Tensor,
        hidden: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weights: Weights,
        whole: bool = True,
    ) -> Trajectory:
        """Recompute gates (and cell states) from the layer's input and output.

        Unless it is wanted ``whole``, :meth:`reverse` may be left to recompute the gates of each block.
        """
        return self.at(x, hidden, shifted(hidden, h0), None, weights)

    @abstractmethod
    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        """Recompute gates at steps whose previous states are all known (a cell called step by step)."""

    @abstractmethod
    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None, carry_only: bool = False) -> Local:
        """Return what follows at each step from known adjoints of h_t and c_t: total, or carried past h_t only."""

    @abstractmethod
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
        """Run the recurrence backward in time from the direct gradients.

        The arithmetic is that of the trajectory; float32 is walked with a scale. The total adjoints of the states are
        found in any case, ``keep`` says what else. ``last`` (B, P) is the adjoint of h_t at the last step where it is
        known already.
        """

    @abstractmethod
    def linearise(self, trajectory: Trajectory, weights: Weights) -> Linearization:
        """Return the one-step Jacobians along ``trajectory``, whose gates are known."""

    def initial(
        self, trajectory: Trajectory, weights: Weights, hidden: Tensor, carry: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ∂L/∂h_0 and ∂L/∂c_0, (B, P) and (B, H), from known adjoints of h_t and (h_t held fixed) c_t."""
        known = hidden[0] if carry is None else torch.cat((hidden[0], carry[0]), 1)
        before = self.linearise(trajectory.first(), weights).pull(0, known[:, None])[:, 0]
        return before[:, : hidden.shape[2]], None if carry is None else before[:, hidden.shape[2] :]
