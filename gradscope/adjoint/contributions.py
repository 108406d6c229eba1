"""What follows from a site's adjoints: weight contributions, the cell path, agreement across the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.adjoint.types import Adjoints


def weight_contribution(adjoints: Adjoints) -> Tensor | None:
    """Return ‖Σ_b δ_t,b ⊗ h_{t−1,b}‖_F for every timestep, (T,), in input time order.

    The matrix is never formed: its squared norm is Σ_{b,b'} (δ_b·δ_b')(h_b·h_b'), O(B² H) (Pascanu et al. 2013, eq. 5).
    """
    if adjoints.gates_hh is None or adjoints.trajectory is None or adjoints.trajectory.hidden_prev is None:
        return None
    delta = adjoints.order.apply(adjoints.true(adjoints.gates_hh))
    state = adjoints.order.apply(adjoints.trajectory.hidden_prev.to(delta.dtype))
    if delta.shape[1] > delta.shape[2]:
        squared = (delta.transpose(1, 2) @ state).pow(2).sum((1, 2))
    else:
        squared = ((delta @ delta.transpose(1, 2)) * (state @ state.transpose(1, 2))).sum((1, 2))
    return squared.clamp_min(0).sqrt()


def cell_path(adjoints: Adjoints) -> Tensor | None:
    """Return ∂L/∂c_t along the cell path alone, (T, B, H), in processing order (h detached between steps).

    Starts from the same gradients at each step as the full adjoint does, but nothing returns through W_hh:
    C_t = C_{t+1} ⊙ f_{t+1} + direct part of c_t (h-detach: Arpit et al. 2019).
    """
    trajectory, weights = adjoints.trajectory, adjoints.weights
    if trajectory is None or trajectory.cell is None or trajectory.activations is None or adjoints.direct is None:
        return None
    _, forget, _, out = trajectory.activations.unbind(2)
    direct = adjoints.direct if weights is None or weights.w_hr is None else adjoints.direct @ weights.w_hr
    # In float64: the path may decay over more decades than float32 has.
    path = direct.double() * out * (1 - trajectory.cell.double().tanh().pow(2))
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
    norms = torch.linalg.vector_norm(delta, dim=2, keepdim=True)
    present = (norms > 0) & norms.isfinite()
    units = torch.where(present, delta / torch.where(present, norms, torch.ones_like(norms)), torch.zeros_like(delta))
    count = present.sum((1, 2)).to(delta.dtype)
    pairs = count * (count - 1)
    return torch.where(pairs > 0, (units.sum(1).pow(2).sum(1) - count) / pairs, torch.full_like(pairs, float("nan")))
