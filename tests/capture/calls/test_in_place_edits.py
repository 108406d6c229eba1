"""Outputs and states that the user's code edits in place, whatever view torch returned them as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope

DOUBLE = torch.float64
T, B = 6, 3
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "RNN": nn.RNN,
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
    "projection": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
}
# nn.RNNCell keeps its output for backward: torch itself refuses to have it edited.
CELLS: dict[str, Any] = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell}


def _doubled(value: Tensor, in_place: bool) -> Tensor:
    return value.mul_(2.0) if in_place else value * 2.0


def _loss(module: nn.Module, x: Tensor, edited: str, in_place: bool) -> Tensor:
    """A loss on one output or final state after it was doubled, and on the others as they are."""
    output, final = module(x)
    ends = {"output": output} | dict(zip(("h_n", "c_n"), final if isinstance(final, tuple) else (final,), strict=False))
    ends[edited] = _doubled(ends[edited], in_place)
    return sum((end.sin().sum() for end in ends.values()), start=torch.zeros((), dtype=x.dtype))


def _backward(module: nn.Module, closure: Callable[[], Tensor], path: Path) -> gradscope.Run:
    with gradscope.record(module, path, every=1, samples=None) as recorder:
        closure().backward()
        recorder.step()
    run = gradscope.open_run(path)
    assert run.lost == {}
    return run


@pytest.mark.parametrize("shape", ["unbatched", "batched"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize(
    ("kind", "dtype", "edited"),
    [
        ("RNN", DOUBLE, "output"),
        ("GRU", torch.float32, "output"),
        ("GRU", DOUBLE, "h_n"),
        ("LSTM", torch.float32, "h_n"),
        ("LSTM", DOUBLE, "output"),
        ("LSTM", DOUBLE, "c_n"),
        ("projection", torch.float32, "output"),
    ],
)
def test_an_edit_in_place_is_a_factor_like_any_other(
    kind: str, dtype: torch.dtype, options: dict[str, Any], shape: str, edited: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = LAYERS[kind](2, 4, **options).to(dtype)
    x = torch.randn(*((T, 2) if shape == "unbatched" else (T, B, 2)), dtype=dtype)
    run = _backward(module, lambda: _loss(module, x, edited, in_place=True), tmp_path / "run")
    plain = _backward(module, lambda: _loss(module, x, edited, in_place=False), tmp_path / "plain")
    taken = gradscope.snapshot(module, lambda: _loss(module, x, edited, in_place=True))
    expected = gradscope.snapshot(module, lambda: _loss(module, x, edited, in_place=False))
    assert run.sites == plain.sites == taken.sites == expected.sites
    for site in run.sites:
        torch.testing.assert_close(taken[site].hidden, expected[site].hidden, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(run.array(site, "hidden"), plain.array(site, "hidden"), rtol=1e-5)


@pytest.mark.parametrize("shape", ["unbatched", "batched"])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_edited_unbatched_output_has_the_gradient_of_the_loop(kind: str, shape: str, tmp_path: Path) -> None:
    """The same against autograd on x, the one gradient that torch gives of the layer's inside."""
    torch.manual_seed(0)
    module = LAYERS[kind](2, 4).double()
    x = torch.randn(*((T, 2) if shape == "unbatched" else (T, B, 2)), dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(_loss(module, x, "output", in_place=False), x)[0]
    found = gradscope.snapshot(module, lambda: _loss(module, x.detach(), "output", in_place=True))["model/l0"].input
    torch.testing.assert_close(found.squeeze(1) if shape == "unbatched" else found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_measurements_on_demand_see_through_an_edit_in_place(kind: str) -> None:
    torch.manual_seed(0)
    module, x = LAYERS[kind](2, 4).double(), torch.randn(T, 2, dtype=DOUBLE)

    def losses(in_place: bool) -> Tensor:
        return _doubled(module(x)[0], in_place).pow(2).sum(1)

    curves = [gradscope.clip_whatif(module, lambda e=e: losses(e).sum(), [0.1, 1.0]).curves for e in (True, False)]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-12)
    matrices = [gradscope.source_target(module, lambda e=e: losses(e)).hidden for e in (True, False)]
    assert matrices[1].any()
    np.testing.assert_allclose(matrices[0], matrices[1], rtol=1e-12)


@pytest.mark.parametrize("shape", ["unbatched", "batched"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cells_state_edited_between_its_calls(kind: str, shape: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cell = CELLS[kind](2, 4).double()
    x = torch.randn(*((T, 2) if shape == "unbatched" else (T, B, 2)), dtype=DOUBLE)

    def closure(in_place: bool, kept: list[Tensor] | None = None) -> Tensor:
        state: Any = None
        for x_t in x:
            state = cell(x_t, state)
            h = state[0] if kind == "LSTM" else state
            if kept is not None:
                h.retain_grad()
                kept.append(h)
            h = _doubled(h, in_place)
            state = (h, state[1]) if kind == "LSTM" else h
        return h.sin().sum()

    truth: list[Tensor] = []
    closure(False, truth).backward()
    expected = torch.stack([h.grad for h in truth]).reshape(T, -1, 4)  # type: ignore[misc]
    run = _backward(cell, lambda: closure(True), tmp_path / "run")
    assert run.sites == ("model",)
    norms = torch.linalg.vector_norm(expected, dim=2).T.flip(1)
    np.testing.assert_allclose(run.array("model", "hidden")[0], norms.numpy(), rtol=1e-10)


class _Looped(nn.Module):
    """A custom layer that returns views of one tensor: its output, transposed, and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 4)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[0], 4) if h is None else h
        states = []
        for x_t in x.unbind(1):
            h = self.step(x_t, h)
            states.append(h)
        gathered = torch.stack(states)
        return gathered.transpose(0, 1), gathered[-1]


@pytest.mark.parametrize("used", ["output", "both"])
def test_a_custom_layer_that_returns_views_of_one_tensor(used: str) -> None:
    torch.manual_seed(0)
    layer, x = _Looped().double(), torch.randn(B, T, 2, dtype=DOUBLE)
    gradscope.register_adapter(_Looped, initial_state=lambda module, x: x.new_zeros(x.shape[0], 4))

    def loss(output: Tensor, final: Tensor) -> Tensor:
        return output.sin().sum() + (3 * final.cos().sum() if used == "both" else 0.0)

    given = x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*layer(given)), given)[0]
    found = gradscope.snapshot(layer, lambda: loss(*layer(x)))["model"].input
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-10, atol=1e-14)


def test_an_edited_view_that_a_custom_layer_returned() -> None:
    torch.manual_seed(0)
    layer, x = _Looped().double(), torch.randn(B, T, 2, dtype=DOUBLE)
    gradscope.register_adapter(_Alone, initial_state=lambda module, x: x.new_zeros(x.shape[0], 4))
    alone = _Alone(layer)
    given = x.clone().requires_grad_()
    expected = torch.autograd.grad(_doubled(alone(given), in_place=False).sin().sum(), given)[0]
    found = gradscope.snapshot(alone, lambda: _doubled(alone(x), in_place=True).sin().sum())["model"].input
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-10, atol=1e-14)


class _Alone(nn.Module):
    """The same layer, of which only the output is returned: a view that nothing else shares."""

    def __init__(self, layer: _Looped) -> None:
        super().__init__()
        self.layer = layer

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return self.layer.step(x, h)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]
