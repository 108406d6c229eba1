"""What follows from a site's adjoints: weight contributions, the cell path, agreement across the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.magnitude import largest, norms
from gradscope.adjoint.types import Adjoints

# Sequences of which less than this share of the squares is left have cancelled: Gram products would lose digits.
_CANCELLED = 1e-4


def weight_contribution(adjoints: Adjoints) -> Tensor | None:
    """Return ‖Σ_b δ_t,b ⊗ h_{t−1,b}‖_F for every timestep, float64 (T,), in input time order.

    The matrix is formed only where sequences cancel: its squared norm is Σ_{b,b'} (δ_b·δ_b')(h_b·h_b'), O(B² H)
    (Pascanu et al. 2013, eq. 5).
    """
    if adjoints.gates_hh is None or adjoints.trajectory is None or adjoints.trajectory.hidden_prev is None:
        return None
    delta, delta_size = _units(adjoints.gates_hh)
    state, state_size = _units(adjoints.trajectory.hidden_prev)
    size = delta_size * state_size
    if adjoints.scale is not None:
        # First, for sequences that are at one timestep together were not when they were processed in reverse.
        size = size / adjoints.scale[:, :, 0]
    delta, state, size = (adjoints.order.apply(part) for part in (delta, state, size[:, :, None]))
    top = largest(size[:, :, 0])
    return top * _outer_norms(delta * (size / torch.where(top > 0, top, 1.0)[:, None, None]), state)


def _units(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (T, B, N) over a power of two near their largest element, and that (T, B), in float64.

    No product of two such vectors underflows, and nothing is rounded.
    """
    x = x.double()
    size = largest(x)
    power = torch.where((size > 0) & size.isfinite(), size / torch.frexp(size).mantissa, 1.0)
    return x / power[..., None], torch.where(size == 0, 0.0, power)


def _outer_norms(delta: Tensor, state: Tensor) -> Tensor:
    """Return ‖Σ_b δ_b ⊗ h_b‖_F of vectors (T, B, N) and (T, B, P)."""
    if delta.shape[1] > delta.shape[2]:
        squared, cancelled = delta.new_zeros(len(delta)), delta.new_ones(len(delta), dtype=torch.bool)
    else:
        squared = ((delta @ delta.transpose(1, 2)) * (state @ state.transpose(1, 2))).sum((1, 2))
        aligned = (norms(delta) * norms(state)).sum(1).pow(2)
        cancelled = squared < _CANCELLED * aligned
    found = squared.clamp_min(0).sqrt()
    for t in cancelled.nonzero().flatten().tolist():
        found[t] = torch.linalg.matrix_norm(delta[t].t() @ state[t])
    return found


def cell_path(adjoints: Adjoints) -> Tensor | None:
    """Return ∂L/∂c_t along the cell path alone, (T, B, H), in processing order (h detached between steps).

    Starts from the same gradients at each step as the full adjoint does, but nothing returns through W_hh:
    C_t = C_{t+1} ⊙ f_{t+1} + direct part of c_t (h-detach: Arpit et al. 2019).
    """
    trajectory, weights = adjoints.trajectory, adjoints.weights
    if trajectory is None or trajectory.cell is None or trajectory.activations is None or adjoints.direct is None:
        return None
    _, forget, _, out = trajectory.activations.unbind(2)
    # In float64: the path may decay over more decades than float32 has.
    direct = adjoints.direct.double()
    if weights is not None and weights.w_hr is not None:
        direct = direct @ weights.w_hr.double()
    path = direct * out * (1 - trajectory.cell.double().tanh().pow(2))
    if adjoints.direct_cell is not None:
        path += adjoints.direct_cell
    steps, keep = path.unbind(), forget.double().unbind()
    for t in range(len(steps) - 1, 0, -1):
        steps[t - 1].addcmul_(steps[t], keep[t])
    return path


def consistency(delta: Tensor) -> Tensor:
    """Return the mean pairwise cosine over the batch of ``delta`` (T, B, N), (T,); NaN with fewer than two vectors.

    With unit vectors u_b it is (‖Σ u_b‖² − n) / (n (n − 1)); sequences whose adjoint is zero or padding do not count.
    """
    size = largest(delta)
    present = (size > 0) & size.isfinite()
    # Over its largest element first: the squares of a vanished vector would underflow.
    delta = torch.where(present[..., None], delta.double() / torch.where(present, size, 1.0)[..., None], 0.0)
    units = delta / torch.linalg.vector_norm(delta, dim=2, keepdim=True).clamp_min(1.0)
    count = present.sum(1).double()
    pairs = count * (count - 1)
    return torch.where(pairs > 0, (units.sum(1).pow(2).sum(1) - count) / pairs, torch.full_like(pairs, float("nan")))
