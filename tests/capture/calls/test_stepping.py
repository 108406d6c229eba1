"""Layers and cells that are called a timestep at a time, in the float32 that their kernels run in."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.calls import kept_gates

T, B, X, H, ROWS = 40, 6, 3, 5, 2
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
CELLS: dict[str, Callable[..., nn.RNNCellBase]] = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}


def _layer(kind: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return LAYERS[kind](X, H, **options)


class Stepper(nn.Module):
    """Calls ``layer`` with windows of these lengths, or a cell; ``between`` may do something to the states."""

    def __init__(self, layer: nn.Module, lengths: tuple[int, ...] = (1,) * T) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths
        self.between: Callable[[int, Any], None] = lambda t, state: None

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for t, window in enumerate(x.split(self.lengths)):
            if isinstance(self.layer, nn.RNNCellBase):
                state = self.layer(window[0], state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            else:
                first = self.layer.batch_first
                output, state = self.layer(window.transpose(0, 1) if first else window, state)
                outputs.extend(output.transpose(0, 1) if first else output)
            self.between(t, state)
        return _loss(torch.stack(outputs), state)


def _loss(outputs: Tensor, state: Any) -> Tensor:
    ends = state if isinstance(state, tuple) else (state,)
    return outputs[::3].pow(3).sum() + sum((s.sin().sum() for s in ends), outputs.new_zeros(()))


def _truth(
    model: Stepper, x: Tensor, between: Callable[[int, Any], Any] = lambda t, s: s
) -> Iterator[tuple[str, np.ndarray]]:
    """Norms (sequence, lag) in float64, of the same written with one of torch's cells, whose states are kept."""
    layer = model.layer
    kind = "LSTM" if isinstance(layer, nn.LSTM | nn.LSTMCell) else "GRU" if "GRU" in type(layer).__name__ else "RNN"
    cell = CELLS[kind](X, H, bias=layer.bias).double()
    for name, parameter in cell.named_parameters():
        parameter.data.copy_(getattr(layer, name if isinstance(layer, nn.RNNCellBase) else f"{name}_l0"))
    state: Any = None
    outputs, inputs, states = [], [], []
    for t, x_t in enumerate(x.double()):
        inputs.append(x_t.requires_grad_())
        state = cell(x_t, state)
        pair = state if isinstance(state, tuple) else (state,)
        states.append(pair)
        outputs.append(pair[0] * 1.0)  # what is used above, apart from what goes on
        state = between(t, state)
    stacked = torch.stack(outputs)
    wanted: dict[str, list[Tensor]] = {"hidden": [s[0] for s in states], "input": inputs, "direct": outputs}
    if kind == "LSTM":
        wanted["cell"] = [s[1] for s in states]
    loss = _loss(stacked, state)
    for name, tensors in wanted.items():
        found = torch.autograd.grad(loss, tensors, retain_graph=True)
        norms = torch.stack(found)
        if name == "direct":
            last = state[0] if isinstance(state, tuple) else state
            norms[-1] += torch.cos(last).detach()
        yield name, norms.norm(dim=2).flip(0).T.numpy()


def _recorded(model: Stepper, x: Tensor, path: Path, samples: int | None = ROWS, passes: int = 1) -> gradscope.Run:
    alone = copy.deepcopy(model)
    alone(x).backward()
    with gradscope.record(model, path, every=1, samples=samples) as recorder:
        for _ in range(passes):
            model.zero_grad()
            model(x).backward()
            recorder.step()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    run = gradscope.open_run(path)
    assert run.lost == {}
    return run


def _agrees(run: gradscope.Run, site: str, truth: Iterator[tuple[str, np.ndarray]], *without: str) -> None:
    assert run.sites == (site,)
    rows = run.rows(site)[0]
    for name, expected in truth:
        if name not in without:
            np.testing.assert_allclose(run.array(site, name)[0], expected[rows], rtol=2e-4, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("samples", [ROWS, None], ids=["rows", "whole batch"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_stepped_layer_has_the_adjoints_of_the_loop(
    kind: str, options: dict[str, Any], samples: int | None, tmp_path: Path
) -> None:
    model, x = Stepper(_layer(kind, **options)), torch.randn(T, B, X)
    _agrees(_recorded(model, x, tmp_path / "run", samples), "layer/l0", _truth(model, x))


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_has_the_adjoints_of_the_loop(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Stepper(CELLS[kind](X, H)), torch.randn(T, B, X)
    _agrees(_recorded(model, x, tmp_path / "run"), "layer", _truth(model, x), "direct")


@pytest.mark.parametrize("lengths", [(25, *(1,) * 15), (*(1,) * 15, 25), (1, 5, *(1,) * 9, 25)], ids=len)
@pytest.mark.parametrize("kind", LAYERS)
def test_windows_and_single_steps_are_one_sequence(kind: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    model, x = Stepper(_layer(kind), lengths), torch.randn(T, B, X)
    _agrees(_recorded(model, x, tmp_path / "run"), "layer/l0", _truth(model, x))


def test_a_state_that_is_edited_without_a_graph_is_taken_as_it_goes_on(tmp_path: Path) -> None:
    """As where an episode ends: the values change, and the gradient goes through as if they had not."""
    model, x = Stepper(_layer("LSTM")), torch.randn(T, B, X)

    def edit(t: int, state: Any) -> None:
        if t == 20:
            with torch.no_grad():
                state[1][:, 1] = 0.25

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, c: Tensor) -> Tensor:
            c = c.clone()
            c[1] = 0.25
            return c

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    model.between = edit
    run = _recorded(model, x, tmp_path / "run", samples=None)
    _agrees(run, "layer/l0", _truth(model, x, lambda t, s: (s[0], Through.apply(s[1])) if t == 20 else s), "direct")


def test_gates_that_are_none_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = _layer("LSTM"), torch.randn(T, B, X)
    model = Stepper(layer)
    if layer(x[:1])[0].grad_fn.name() != kept_gates.NODE:
        pytest.skip("this torch does not run an LSTM by oneDNN")
    monkeypatch.setattr(kept_gates, "_layouts", OrderedDict())
    read = kept_gates.gates_in
    monkeypatch.setattr(
        "gradscope.capture.calls.stepping.gates_in", lambda workspace, width: read(workspace, width) * 0.5
    )
    truth = _truth(model, x)
    run = _recorded(model, x, tmp_path / "run", passes=2)
    assert any("what its kernel keeps" in line.reason for line in run.coverage)
    assert run.records("layer/l0").step.tolist() == [1]
    _agrees(run, "layer/l0", truth)


def test_weights_that_are_dropped_anew_at_every_call_are_refused(tmp_path: Path) -> None:
    layer, x = _layer("LSTM"), torch.randn(T, B, X)
    model, own = Stepper(layer), dict(layer.named_parameters())["weight_hh_l0"]

    def drop(t: int, state: Any) -> None:
        layer._flat_weights[1] = nn.functional.dropout(own, 0.5)

    model.between = drop
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model(x).backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert "layer/l0" not in run.sites
    assert any("weights are other ones" in line.reason for line in run.coverage)


def test_where_a_pass_goes_past_the_gates_of_a_cell_it_says_so(tmp_path: Path) -> None:
    """For the first cell state alone the pass goes along the cell states, and through no gate."""
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(X, H), torch.randn(T, B, X)
    c0 = torch.zeros(B, H, requires_grad=True)
    with gradscope.record(cell, tmp_path / "run", every=1) as recorder:
        _, c = cell(x[0], (torch.zeros(B, H), c0))
        for x_t in x[1:]:
            _, c = cell(x_t, (torch.zeros(B, H), c))
        c.sum().backward(inputs=[c0])
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert c0.grad is not None
    assert "input" not in run.apart.quantities("model")
    assert any(line.reason.startswith("input: the pass was asked") for line in run.coverage), run.coverage
