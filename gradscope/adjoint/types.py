"""What goes into and comes out of the reverse-time equations. All tensors time-major, in processing order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradscope.adjoint.magnitude import norms
from gradscope.adjoint.order import Order


@dataclass(frozen=True)
class Weights:
    """Parameters of one layer and direction, in PyTorch's own layout.

    Attributes
    ----------
    w_ih : Tensor, shape (G·H, I)
    w_hh : Tensor, shape (G·H, P)
    b_ih, b_hh : Tensor of shape (G·H,) or None
    w_hr : Tensor of shape (P, H) or None
        Projection of an LSTM with ``proj_size``; P = H without one.
    """

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Weights:
        """Return the same weights in ``dtype``."""
        return Weights(*(None if w is None else w.to(dtype) for w in self.flat()))  # type: ignore[arg-type]

    def flat(self) -> tuple[Tensor | None, ...]:
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr


@dataclass(frozen=True)
class Trajectory:
    """The forward pass of one layer and direction, as far as its adjoint needs it.

    Attributes
    ----------
    hidden : Tensor, shape (T, B, P)
    hidden_prev : Tensor of shape (T, B, P) or None
        The state h_t was computed from; None where nothing was to be done with it.
    activations : Tensor of shape (T, B, G, H) or None
        Gate activations in PyTorch's order; for an RNN h itself.
    cell, cell_prev : Tensor of shape (T, B, H) or None
    candidate_hh : Tensor of shape (T, B, H) or None
        GRU only: W_hn h + b_hn, which the reset gate multiplies.
    x : Tensor of shape (T, B, I) or None
        Input, where the gates are recomputed block by block and ``activations`` is None.
    """

    hidden: Tensor
    hidden_prev: Tensor | None
    activations: Tensor | None = None
    cell: Tensor | None = None
    cell_prev: Tensor | None = None
    candidate_hh: Tensor | None = None
    x: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Trajectory:
        """Return it in another precision."""
        return Trajectory(*(None if part is None else part.to(dtype) for part in vars(self).values()))  # type: ignore[arg-type]

    def first(self) -> Trajectory:
        """Return the first processed step alone."""
        return Trajectory(*(None if part is None else part[:1] for part in vars(self).values()))  # type: ignore[arg-type]


@dataclass
class Adjoints:
    """Adjoints of one layer and direction (one site). What a custom cell does not reveal is None.

    Attributes
    ----------
    order : Order
        Maps the tensors below to input time order.
    hidden : Tensor of shape (T, B, P) or None
    direct : Tensor of shape (T, B, P) or None
        What reached h_t from above, the gradient of h_n included at the last processed step.
    trajectory, weights : Trajectory, Weights or None
        What they were computed from.
    gates : Tensor of shape (T, B, G·H) or None
        ∂L/∂(pre-activation); GRU's n is the whole argument of tanh.
    gates_hh : Tensor of shape (T, B, G·H) or None
        The adjoint of W_hh h + b_hh; differs from ``gates`` in GRU's n only.
    cell, cell_carry : Tensor of shape (T, B, H) or None
        ∂L/∂c_t, total and with h_t held fixed.
    direct_cell : Tensor of shape (T, B, H) or None
        What reached c_t from above: the gradient of c_n at the last processed step; None when there was none.
    input_gradient : Tensor of shape (T, B, I) or None
        ∂L/∂x_t through this site where it was kept; computed from ``gates`` otherwise.
    initial_hidden, initial_cell : Tensor of float64, shape (B, P) and (B, H), or None
        ∂L/∂h and ∂L/∂c of the states the recurrence started from (in the reverse direction: after the last timestep);
        None where they are not known, ``initial_cell`` also where there is no cell. Never scaled.
    scale : Tensor of float64, shape (T, 1, 1), or None
        What ``hidden``, ``gates``, ``gates_hh``, ``cell``, ``cell_carry`` and ``input`` have been multiplied with;
        None when they are the adjoints themselves. ``direct`` is never scaled.
    faded : list of bool or None
        Processed steps whose adjoint is below 2^-1000 and held as 0.
    states : tuple of Tensor, each of shape (T, B, N)
        Adjoints of states that could not be told to be hidden or cell, in the order of the graph.
    roles : tuple of str
        Of a recurrence that was found: what its states are called.
    shapes : tuple of tuple of int
        Their shapes without time and batch; N is the product.
    """

    order: Order
    hidden: Tensor | None
    direct: Tensor | None = None
    trajectory: Trajectory | None = None
    weights: Weights | None = None
    gates: Tensor | None = None
    gates_hh: Tensor | None = None
    cell: Tensor | None = None
    cell_carry: Tensor | None = None
    direct_cell: Tensor | None = None
    input_gradient: Tensor | None = None
    initial_hidden: Tensor | None = None
    initial_cell: Tensor | None = None
    scale: Tensor | None = None
    faded: list[bool] | None = None
    states: tuple[Tensor, ...] = ()
    roles: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def hidden_norms(self) -> Tensor:
        """‖∂L/∂h_t‖ with the scale of ``hidden``, float64 (T, B)."""
        assert self.hidden is not None
        return norms(self.hidden)

    @cached_property
    def cell_norms(self) -> Tensor:
        """‖∂L/∂c_t‖ with the scale of ``cell``, float64 (T, B)."""
        assert self.cell is not None
        return norms(self.cell)

    @cached_property
    def input_norms(self) -> Tensor:
        """‖∂L/∂x_t‖ with the scale of ``input``, float64 (T, B)."""
        assert self.input is not None
        return norms(self.input)

    def true(self, x: Tensor) -> Tensor:
        """Divide the scale out of one of the scaled tensors, in float64."""
        return x if self.scale is None else x.double() / self.scale

    @cached_property
    def input(self) -> Tensor | None:
        """∂L/∂x_t through this site, (T, B, I): δ_t W_ih."""
        if self.input_gradient is not None or self.gates is None or self.weights is None:
            return self.input_gradient
        return self.gates @ self.weights.w_ih

    def recurrent(self) -> Tensor | None:
        """Return the part of the adjoint of h_t that came through the recurrence, (T, B, P), unscaled."""
        return None if self.hidden is None or self.direct is None else self.true(self.hidden) - self.direct


@dataclass(frozen=True)
class Keep:
    """What is kept of a walk beside the total adjoints of the states.

    Attributes
    ----------
    gates : bool
        The gate adjoints, and the carry of a cell state.
    input : bool
        ∂L/∂x_t, which costs one product and no gate adjoints.
    begins : int or None
        How many rows of ∂L/∂h and ∂L/∂c of the initial states, which cost a product; None for all.
    """

    gates: bool = True
    input: bool = False
    begins: int | None = None

    def leaving(self, block: slice) -> slice:
        """Return the rows for which it is wanted what leaves a block towards the step before."""
        return slice(None if block.start else self.begins)


KEEP_GATES = Keep()


#: Clips ∂L/∂(pre-activation) inside the recurrence, in place (Graves 2013); None leaves it alone.
GateClip = Callable[[Tensor], object]
