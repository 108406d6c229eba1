"""Custom layers join through ``step``; any other sequence model has the input gradient."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.layers import adapters
from gradscope.errors import AdapterError, NothingToRecordError
from gradscope.lab.zoo.cells import LRU, CoupledLSTM, LoopedCell, MinGRU, PeepholeLSTM
from tests.loops import against_lag

ZOO = [PeepholeLSTM, CoupledLSTM, MinGRU, LRU]


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_REGISTRY", dict(adapters._REGISTRY))


def _x(batch: int = 5, steps: int = 9) -> Tensor:
    return torch.randn(batch, steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Reader(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.readout = layer, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x)[0][:, -1])


def _states(layer: LoopedCell, x: Tensor) -> list[tuple[Tensor, ...]]:
    state: Any = layer.initial_state(x)
    states = []
    for x_t in x.unbind(1):
        state = layer.step(x_t, state)
        states.append(state if isinstance(state, tuple) else (state,))
    return states


def _norms_by_autograd(model: Reader, x: Tensor, which: int) -> np.ndarray:
    states = _states(model.layer, x)
    loss = model.readout(states[-1][0]).pow(2).sum()
    found = torch.autograd.grad(loss, [state[which] for state in states], allow_unused=True)
    zero = torch.zeros_like(states[0][which])
    return against_lag(torch.stack([zero if g is None else g for g in found])).numpy()


@pytest.mark.parametrize("kind", ZOO)
def test_the_zoo_is_recorded_exactly(kind: type[LoopedCell], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Reader(kind(3, 6)).double()
    with gradscope.record(model, tmp_path / "run", every=1, samples=3) as recorder:
        model(_x()).pow(2).sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    rows = run.rows("layer")[0]
    states = ["hidden", "cell"] if kind.has_cell_state else ["hidden"]
    assert list(run.quantities("layer")) == [*states, "input"]
    given = _x().requires_grad_()
    entering = torch.autograd.grad(model(given).pow(2).sum(), given)[0]
    found = run.array("layer", "input")[0]
    np.testing.assert_allclose(found, entering[rows].flip(1).norm(dim=2).numpy(), rtol=1e-10, atol=1e-14)
    for which, quantity in enumerate(states):
        expected = _norms_by_autograd(model, _x(), which)[rows]
        np.testing.assert_allclose(run.array("layer", quantity)[0], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ZOO)
def test_the_zoo_passes_the_self_test(kind: type[LoopedCell]) -> None:
    torch.manual_seed(0)
    gradscope.check_adapter(kind(3, 6), _x().float())


class FusedLeaky(nn.Module):
    """A user's fused layer: h_t = tanh(a h_{t-1} + W x_t), time first, with a kernel we know nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.mix = nn.Parameter(torch.full((6,), 0.9)), nn.Linear(3, 6)
        self.batch_first = False

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[1], 6) if h is None else h
        out = []
        for drive in self.mix(x):
            h = torch.tanh(self.decay * h + drive)
            out.append(h)
        return torch.stack(out), h


def _step(layer: Any, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(layer.decay * h + layer.mix(x))


def _zeros(layer: Any, x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[1], 6)


def test_a_registered_layer_with_gradient_through_outputs_and_state() -> None:
    torch.manual_seed(0)
    gradscope.register_adapter(FusedLeaky, step=_step, initial_state=_zeros)
    layer = FusedLeaky().double()
    x = _x().transpose(0, 1)
    gradscope.check_adapter(layer, x)

    def loss() -> Tensor:
        out, final = layer(x)
        return out.pow(2).mean() + final.pow(3).sum()

    snapshot = gradscope.snapshot(layer, loss)["model"]
    h, states = x.new_zeros(5, 6), []
    for x_t in x:
        h = torch.tanh(layer.decay * h + layer.mix(x_t))
        states.append(h)
    reference = torch.stack(states).pow(2).mean() + states[-1].pow(3).sum()
    expected = torch.stack(torch.autograd.grad(reference, states))
    torch.testing.assert_close(snapshot.hidden, expected, rtol=1e-10, atol=1e-14)
    leaf = x.clone().requires_grad_()
    out, final = layer(leaf)
    (grad,) = torch.autograd.grad(out.pow(2).mean() + final.pow(3).sum(), leaf)
    torch.testing.assert_close(snapshot.input, grad, rtol=1e-10, atol=1e-14)


def test_a_wrong_adapter_fails_its_self_test_and_is_not_recorded(tmp_path: Path) -> None:
    gradscope.register_adapter(FusedLeaky, step=lambda m, x, h: torch.tanh(0.5 * h + m.mix(x)), initial_state=_zeros)
    layer = FusedLeaky()
    x = torch.randn(7, 2, 3)
    with pytest.raises(AdapterError, match=r"outputs of the adapter differ.*first at timestep 1"):
        gradscope.check_adapter(layer, x)
    with gradscope.record(layer, tmp_path / "run", every=1) as recorder:
        layer(x)[0].sum().backward()
        recorder.step()
    coverage = gradscope.open_run(recorder.run_dir).coverage
    assert [line.status for line in coverage] == ["missing"]
    assert "does not reproduce the layer's output" in coverage[0].reason


def test_registration_says_what_is_wrong() -> None:
    with pytest.raises(AdapterError, match="pass the class, not an instance"):
        gradscope.register_adapter(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=r"Linear has no method step\(x_t, state\)"):
        gradscope.register_adapter(nn.Linear)
    with pytest.raises(AdapterError, match="no adapter is registered for Linear"):
        gradscope.check_adapter(nn.Linear(2, 2), torch.zeros(1, 2))


# -- black boxes -----------------------------------------------------------------------------------------------


class Window(nn.Module):
    """A fully connected baseline over the window."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
        self.embed, self.encoder = nn.Linear(3, 6), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.embed(x))[:, -1].sum(1)


def test_any_model_has_the_gradient_of_its_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Window().double()
    with pytest.raises(NothingToRecordError, match="sites="):
        gradscope.snapshot(model, lambda: model(_x()).pow(2).sum())
    with gradscope.record(model, tmp_path / "run", every=1, samples=None, sites=["body"]) as recorder:
        model(_x()).pow(2).sum().backward()
        recorder.step()
    x = _x().requires_grad_()
    (expected,) = torch.autograd.grad(model(x).pow(2).sum(), x)
    run = gradscope.open_run(recorder.run_dir)
    assert run.site("body").curve == "input"
    np.testing.assert_allclose(run.array("body", "input")[0], against_lag(expected.transpose(0, 1)).numpy(), rtol=1e-10)


def test_a_transformer_inside_a_model_has_its_curve_through_it_alone() -> None:
    torch.manual_seed(0)
    model = Attention().double().eval()
    x = _x()
    found = gradscope.snapshot(model, lambda: model(x).pow(2).sum(), sites=["encoder"])["encoder"].input
    embedded = model.embed(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.encoder(embedded)[:, -1].sum(1).pow(2).sum(), embedded)
    torch.testing.assert_close(found, expected.transpose(0, 1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("kind", "site"), [(Window, "body"), (Attention, "encoder")])
def test_recording_a_black_box_leaves_training_bit_identical(kind: type[nn.Module], site: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = kind()
    recorded = copy.deepcopy(plain)
    ends = []
    for model in (plain, recorded):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters())
        recorder = (
            gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, sites=[site]) if ends else None
        )
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(5, 9, 3)).pow(2).mean().backward()
            optimizer.step()
        ends.append(model.state_dict())
        if recorder is not None:
            recorder.close()
            assert gradscope.open_run(recorder.run_dir).n_records == 20
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_tokens_have_no_gradient_and_coverage_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 1))
    with gradscope.record(model, tmp_path / "run", every=1, sites=["0"]) as recorder:
        model(torch.randint(5, (2, 4))).sum().backward()
        recorder.step()
    assert (
        "has no gradient; name the module after the embedding"
        in gradscope.open_run(recorder.run_dir).coverage[0].reason
    )


class Edits(nn.Module):
    """Its box edits what it is given, which is used beside the box as well."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.embed, self.box, self.copies = (
            nn.Linear(3, 4),
            nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)),
            copies,
        )

    def forward(self, x: Tensor) -> Tensor:
        embedded = x.clone() if self.copies else self.embed(x)
        return self.box(embedded) + embedded.sum(-1, keepdim=True)


@pytest.mark.parametrize("of_data", [False, True])
def test_a_black_box_that_edits_its_input_edits_it_recorded_too(of_data: bool, tmp_path: Path) -> None:
    plain = Edits(of_data)
    if of_data:
        plain.box[1] = nn.Linear(3, 4)
    recorded, x = copy.deepcopy(plain), torch.randn(5, 9, 3)
    loss = plain(x).pow(2).sum()
    loss.backward()
    with gradscope.record(recorded, tmp_path / "run", every=1, sites=["box"]) as recorder:
        again = recorded(x).pow(2).sum()
        again.backward()
        recorder.step()
    assert again.item() == loss.item()
    for own, other in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        assert own.grad is None or torch.equal(own.grad, other.grad)  # type: ignore[arg-type]
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert run.n_records == 0
    assert ["edits its input in place" in line.reason for line in run.coverage] == [True]
