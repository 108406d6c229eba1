"""A cell added as docs/adding.md says, in one class and one registry line: the minimal gated unit.

h_t = (1 − u) h_{t−1} + u n,  u = σ(W_iu x + b_iu + W_hu h + b_hu),  n = tanh(W_in x + b_in + u q),  q = W_hn h + b_hn:
a GRU whose two gates are one (Zhou et al. 2016), the gate applied after the product as torch does. Reverse time:
δ_n = a u (1 − n²), δ_u = (a (n − h_{t−1}) + δ_n q) u (1 − u), a_{t−1} = direct + a (1 − u) + [δ_u, δ_n u] W_hh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.adjoint import CELLS, Adjoints, Cell, GateClip, Keep, Linearization, Local, Order, Trajectory, Weights
from gradscope.adjoint.types import KEEP_GATES
from gradscope.adjoint.walk import Walk

DOUBLE = torch.float64
T, B, X, H = 70, 3, 2, 4  # more timesteps than two blocks of a walk


class MinimalGatedUnit(nn.Module):
    """The user's own cell, called step by step."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(2 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.randn(2 * hidden_size, hidden_size) / hidden_size**0.5)
        self.bias_ih, self.bias_hh = (nn.Parameter(0.1 * torch.randn(2 * hidden_size)) for _ in range(2))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xu, xn = nn.functional.linear(x, self.weight_ih, self.bias_ih).chunk(2, -1)
        hu, q = nn.functional.linear(h, self.weight_hh, self.bias_hh).chunk(2, -1)
        u = torch.sigmoid(xu + hu)
        return (1 - u) * h + u * torch.tanh(xn + u * q)


# -- what docs/adding.md asks for -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MGULinearization(Linearization):
    """``coefficient`` (T, B, 2, H) is [δ_u, δ_n u] / a, ``candidate`` (T, B, H) δ_n / a, ``keep`` (T, B, H) 1 − u."""

    coefficient: Tensor
    candidate: Tensor
    keep: Tensor

    def push(self, t: int, tangents: Tensor) -> Tensor:
        product = (tangents @ self.weights.w_hh.t()).unflatten(-1, (2, -1)) * self.coefficient[t][:, None]
        return product.sum(-2) + self.keep[t][:, None] * tangents

    def gates(self, t: int, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        through = cotangents[..., None, :] * self.coefficient[t][:, None]
        gates = torch.cat((through[..., 0, :], cotangents * self.candidate[t][:, None]), -1)
        return gates, through.flatten(-2)

    def pull(self, t: int, cotangents: Tensor) -> Tensor:
        return self.gates(t, cotangents)[1] @ self.weights.w_hh + self.keep[t][:, None] * cotangents


class MGUCell(Cell):
    gate_names = ("u", "n")  # not f, which says what is kept: here that is 1 - u

    def computes(self, module: nn.Module) -> bool:
        return isinstance(module, MinimalGatedUnit)

    def at(
        self, x: Tensor, hidden: Tensor, hidden_prev: Tensor, cell_prev: Tensor | None, weights: Weights
    ) -> Trajectory:
        xu, xn = nn.functional.linear(x, weights.w_ih, weights.b_ih).chunk(2, -1)
        hu, q = nn.functional.linear(hidden_prev, weights.w_hh, weights.b_hh).chunk(2, -1)
        u = torch.sigmoid(xu + hu)
        return Trajectory(hidden, hidden_prev, torch.stack((u, torch.tanh(xn + u * q)), 2), candidate_hh=q)

    @staticmethod
    def _coefficients(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """δ_u / a and δ_n / a."""
        assert trajectory.activations is not None
        assert trajectory.candidate_hh is not None
        assert trajectory.hidden_prev is not None
        u, n = trajectory.activations.unbind(2)
        candidate = u * (1 - n * n)
        return (n - trajectory.hidden_prev + candidate * trajectory.candidate_hh) * u * (1 - u), candidate

    def local(self, trajectory: Trajectory, hidden: Tensor, cell: Tensor | None, carry_only: bool = False) -> Local:
        assert trajectory.activations is not None
        to_u, candidate = (part * hidden for part in self._coefficients(trajectory))
        u = trajectory.activations[:, :, 0]
        return Local(torch.cat((to_u, candidate), 2), torch.cat((to_u, candidate * u), 2))

    def linearise(self, trajectory: Trajectory, weights: Weights) -> MGULinearization:
        assert trajectory.activations is not None
        to_u, candidate = self._coefficients(trajectory)
        u = trajectory.activations[:, :, 0]
        return MGULinearization(weights, torch.stack((to_u, candidate * u), 2), candidate, 1 - u)

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
        maps, walk = self.linearise(trajectory, weights), Walk(direct, trajectory.hidden.dtype, last=last)
        gates, gates_hh = (walk.result(weights.w_hh.shape[0]) if keep.gates else None for _ in range(2))
        entering = walk.result(weights.w_ih.shape[1]) if keep.input else None
        for block in walk.blocks(gates, gates_hh, entering):
            for t in range(block.stop - 1, block.start - 1, -1):
                a = walk.a[t - block.start]
                delta, delta_hh = (part[:, 0] for part in maps.gates(t, a[:, None]))
                for kept, values in ((gates, delta), (gates_hh, delta_hh)):
                    if kept is not None:
                        kept[t] = values
                if entering is not None:
                    entering[t] = delta @ weights.w_ih
                before = delta_hh @ weights.w_hh + maps.keep[t] * a
                if t > block.start:
                    walk.a[t - 1 - block.start] += before
            walk.leave(before)
        found = walk.adjoints(order, trajectory, weights)
        found.gates, found.gates_hh, found.input_gradient = gates, gates_hh, entering
        return found


# -- and what it gives ------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """The cell in a loop, every state kept."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = MinimalGatedUnit(X, H)
        self.states: list[Tensor] = []

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = x.new_zeros(x.shape[1], H) if h is None else h
        self.states = []
        for x_t in x:
            h = self.cell(x_t, h)
            self.states.append(h)
        return h


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CELLS, "MGU", MGUCell())


def _model() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model().double(), torch.randn(T, B, X, dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize("arithmetic", [DOUBLE, torch.float32], ids=["float64", "float32"])
def test_its_reverse_time_equals_autograd(arithmetic: torch.dtype) -> None:
    model, x = _model()
    h0 = torch.randn(B, H, dtype=DOUBLE, requires_grad=True)
    out = model(x, h0).pow(2).sum()
    *hidden, entering, initial = torch.autograd.grad(out, [*model.states, x, h0])
    states = torch.stack(model.states).detach()
    weights = Weights(*(p.detach().to(arithmetic) for p in model.cell.parameters()))
    direct = torch.zeros(T, B, H, dtype=DOUBLE)
    direct[-1] = 2 * states[-1]
    cell = CELLS["MGU"]
    trajectory = cell.trajectory(
        x.detach().to(arithmetic), states.to(arithmetic), h0.detach().to(arithmetic), None, weights
    )
    found = cell.reverse(
        trajectory, weights, direct.to(arithmetic), None, Order(T, B, None, False), keep=Keep(input=True)
    )
    assert found.hidden is not None
    assert found.input is not None
    expected = torch.stack(hidden)
    relative = 1e-10 if arithmetic == DOUBLE else 1e-3
    for values, truth in ((found.true(found.hidden), expected), (found.true(found.input), entering)):
        error = torch.linalg.vector_norm(values - truth, dim=2) / torch.linalg.vector_norm(truth, dim=2)
        assert float(error.max()) < relative
    torch.testing.assert_close(found.initial_hidden, initial, rtol=relative, atol=0)


def test_a_snapshot_has_every_quantity_of_it() -> None:
    model, x = _model()
    hidden = torch.autograd.grad(model(x).pow(2).sum(), model.states)
    entering = torch.autograd.grad(model(x).pow(2).sum(), x)[0]
    by_step = [MinimalGatedUnit(X, H).double() for _ in range(T)]
    h = torch.zeros(B, H, dtype=DOUBLE)
    for cell, x_t in zip(by_step, x.detach(), strict=True):
        cell.load_state_dict(model.cell.state_dict())
        h = cell(x_t, h)
    h.pow(2).sum().backward()
    site = gradscope.snapshot(model, lambda: model(x.detach()).pow(2).sum())["cell"]
    assert site.info.gates == ("u", "n")
    torch.testing.assert_close(site.hidden, torch.stack(hidden), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(site.input, entering, rtol=1e-10, atol=1e-14)
    weight = torch.stack([cell.weight_hh.grad.norm() for cell in by_step])  # type: ignore[union-attr]
    torch.testing.assert_close(site.weight, weight, rtol=1e-10, atol=1e-14)
    bias = torch.stack([cell.bias_ih.grad for cell in by_step])  # type: ignore[misc]
    torch.testing.assert_close(site.gates.sum(1), bias, rtol=1e-10, atol=1e-14)


def test_a_recording_of_it_has_the_default_quantities(tmp_path: Path) -> None:
    model, x = _model()
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        model(x.detach()).pow(2).sum().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    expected = torch.stack(torch.autograd.grad(model(x).pow(2).sum(), model.states)).norm(dim=2).T.flip(1)
    np.testing.assert_allclose(run.array("cell", "hidden")[0], expected.numpy(), rtol=1e-10)
    assert set(run.quantities("cell")) == {"hidden", "input"}


def test_its_jacobian_is_reached_by_the_spectrum() -> None:
    model, x = _model()
    x = x.detach()[:12]
    lags = [0, 1, 5, 11]
    found = gradscope.spectrum(model, x, lags=lags, warmup=0)
    for place, lag in enumerate(lags):
        for b in range(B):

            def rest(h: Tensor, since: int = 12 - lag, b: int = b) -> Tensor:
                for x_t in x[since:, b]:
                    h = model.cell(x_t, h)
                return h

            model(x)
            start = model.states[11 - lag][b].detach()
            dense = torch.autograd.functional.jacobian(rest, start)
            values = torch.linalg.svdvals(dense).numpy()
            np.testing.assert_allclose(found.singular_values[place, b], values, rtol=1e-7)
    model(x)
    starts = [torch.zeros(H, dtype=DOUBLE), *(h[0].detach() for h in model.states[:-1])]
    steps = [torch.autograd.functional.jacobian(lambda h, t=t: model.cell(x[t, 0], h), h) for t, h in enumerate(starts)]
    # The sum of all exponents is the mean logarithm of what a step does to the volume.
    volume = float(torch.linalg.slogdet(torch.stack(steps)).logabsdet.mean())
    np.testing.assert_allclose(found.exponents_per_sequence[0].sum(), volume, rtol=1e-8)
