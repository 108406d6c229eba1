"""One-step Jacobians ∂s_t/∂s_{t−1} of the joint state: what every cell's linearisation has.

s = h for RNN and GRU, s = (h, c) for LSTM: taken with h alone, an LSTM's Jacobian misses what the cell carries. Nothing
is formed that need not be: a Jacobian acts on k vectors at once, in O(k · size of W_hh).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gradscope.adjoint.order import Order
from gradscope.adjoint.types import Weights


@dataclass(frozen=True)
class Linearization(ABC):
    """A site's recurrence linearised along its trajectory, in processing order.

    A cell's own adds tensors (T, B, ...) as fields, 0 where nothing is to pass.

    Attributes
    ----------
    weights : Weights
    """

    weights: Weights

    @abstractmethod
    def push(self, t: int, tangents: Tensor) -> Tensor:
        """Carry tangents of s_{t−1} forward to s_t; rows of (B, k, S)."""

    @abstractmethod
    def gates(self, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adjoints of W_ih x_t + b_ih and of W_hh h_{t−1} + b_hh for cotangents of s_t, (B, k, G·H) each."""

    @abstractmethod
    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        """Carry cotangents of s_t (c_t with h_t held fixed) back to s_{t−1}; rows of (B, k, S)."""

    def total_cell(self, t: int, cotangents: Tensor) -> Tensor | None:
        """Return the total adjoint of c_t, through h_t as well, for cotangents of s_t; None without a cell state."""
        return None

    def pull_input(self, t: int, cotangents: Tensor) -> Tensor:
        """Carry cotangents of s_t back to x_t; (B, k, I)."""
        return self.gates(t, cotangents)[0] @ self.weights.w_ih

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors of every timestep, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "weights"}

    @property
    def like(self) -> Tensor:
        """A tensor of the type of all, (T, B, ...)."""
        return next(iter(self.parts.values()))

    @property
    def steps(self) -> int:
        return self.like.shape[0]

    @property
    def batch(self) -> int:
        return self.like.shape[1]

    @property
    def hidden_size(self) -> int:
        """Size of h_t: P with a projection, else H."""
        return self.weights.w_hh.shape[1]

    @property
    def cell_size(self) -> int:
        """Size of c_t, 0 without one."""
        return 0

    @property
    def size(self) -> int:
        """Size S of the joint state."""
        return self.hidden_size + self.cell_size

    def in_lag_order(self, order: Order) -> Linearization:
        """Return the same maps with index 0 at each sequence's last processed step; 0 beyond its first."""
        lagged: dict[str, Any] = {
            name: order.to_lag(part).transpose(0, 1).nan_to_num(nan=0.0) if order.lengths is not None else part.flip(0)
            for name, part in self.parts.items()
        }
        return replace(self, **lagged)

    def jacobian(self, t: int) -> Tensor:
        """Return ∂s_t/∂s_{t−1} as matrices (B, S, S), row = output."""
        identity = torch.eye(self.size, dtype=self.like.dtype, device="cpu")
        return self.pull(t, identity.expand(self.batch, -1, -1))
