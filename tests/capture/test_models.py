"""Models as people write them: exact numbers, or a coverage line that says why not."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.capture.training.coverage import NO_GRADIENT
from gradscope.store import Run
from tests.loops import LoopLayer, adjoints, against_lag

KINDS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}
EXACT = {"rtol": 1e-10, "atol": 1e-13}


class Tagger(nn.Module):
    """A recurrent layer and a readout, as in most people's code."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.rnn = KINDS[kind](3, 6, **options)
        self.readout = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.rnn(x, state)
        return self.readout(output), state


def _model(kind: str = "LSTM", **options: Any) -> tuple[Tagger, Tagger]:
    """Return a model and its twin whose layer is unrolled."""
    torch.manual_seed(0)
    model = Tagger(kind, **options).double()
    twin = copy.deepcopy(model)
    twin.rnn = LoopLayer(twin.rnn)
    return model, twin


def _data(steps: int = 9, batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(steps, batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _record(model: nn.Module, path: Path, **options: Any) -> gradscope.Recorder:
    return gradscope.record(model, path / "run", every=1, samples=None, **options)


def _norms(run: Run, site: str, quantity: str = "hidden", record: int = 0) -> np.ndarray:
    return run.array(site, quantity)[record]


def _check(run: Run, site: str, loss: Tensor, states: Any, record: int = 0, cell: bool = True) -> None:
    expected = against_lag(adjoints(loss, states)).detach().numpy()
    np.testing.assert_allclose(_norms(run, site, record=record), expected, **EXACT)
    if cell and states[0][1] is not None:
        expected = against_lag(adjoints(loss, states, 1)).detach().numpy()
        np.testing.assert_allclose(_norms(run, site, "cell", record), expected, **EXACT)


# -- cells in loops ------------------------------------------------------------------------------------------


class CellLoop(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[kind](3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        state, states = None, []
        for x_t in x:
            state = self.cell(x_t, state)
            states.append(state if isinstance(state, tuple) else (state, None))
        return states[-1][0], states


@pytest.mark.parametrize("kind", KINDS)
def test_cells_in_a_loop(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CellLoop(kind).double()
    with _record(model, tmp_path, quantities="all") as recorder:
        model(_data())[0].pow(2).sum().backward()
        recorder.step()
    last, states = model(_data())
    run = gradscope.open_run(recorder.run_dir)
    assert run.sites == ("cell",)
    _check(run, "cell", last.pow(2).sum(), states)


@pytest.mark.parametrize("kind", KINDS)
def test_cell_loop_equals_the_fused_layer_in_every_quantity(kind: str) -> None:
    torch.manual_seed(0)
    cell_model, fused = CellLoop(kind).double(), KINDS[kind](3, 6).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(fused, f"{name}_l0").data.copy_(getattr(cell_model.cell, name).data)
    x = _data()
    stepwise = gradscope.snapshot(cell_model, lambda: cell_model(x)[0].pow(2).sum())["cell"]
    whole = gradscope.snapshot(fused, lambda: fused(x)[0][-1].pow(2).sum())["model/l0"]
    quantities = ["hidden", "gates", "input", "weight", *(["cell", "cell_carry"] if kind == "LSTM" else [])]
    for quantity in quantities:
        torch.testing.assert_close(getattr(stepwise, quantity), getattr(whole, quantity), rtol=1e-10, atol=1e-13)


class Decoder(nn.Module):
    """Encoder and decoder cells, teacher forcing, masks, and an early exit."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRUCell(3, 6)
        self.decoder = nn.LSTMCell(3, 6)

    def forward(self, x: Tensor, exit_at: int) -> tuple[Tensor, list[Any], list[Any]]:
        h, encoded = x.new_zeros(x.shape[1], 6), []
        keep = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=x.dtype)[:, None]
        for t, x_t in enumerate(x):
            new = self.encoder(x_t, h)
            encoded.append((new, None))
            h = new * keep + h * (1 - keep) if t > 3 else new  # the second sequence is finished
        state, decoded = (h, torch.zeros_like(h)), []
        for t, x_t in enumerate(x.flip(0)):
            if t == exit_at:
                break
            state = self.decoder(x_t, state)
            decoded.append(state)
        return state[0], encoded, decoded


def test_encoder_and_decoder_cells_with_masks_and_early_exit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Decoder().double()
    with _record(model, tmp_path) as recorder:
        model(_data(), exit_at=5)[0].sum().backward()
        recorder.step()
    out, encoded, decoded = model(_data(), exit_at=5)
    run = gradscope.open_run(recorder.run_dir)
    assert set(run.sites) == {"encoder", "decoder"}
    _check(run, "encoder", out.sum(), encoded)
    _check(run, "decoder", out.sum(), decoded)
    assert _norms(run, "decoder").shape[1] == 5


class ScaledCell(nn.Module):
    """A cell of the user's own, returning (output, state)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(9, 6)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.mix(torch.cat((x, h), 1))) * 0.9
        return new * 2, new


class OwnModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = ScaledCell()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        h, states, out = x.new_zeros(x.shape[1], 6), [], None
        for x_t in x:
            out, h = self.cell(x_t, h)
            states.append((h, None))
        return out, states


def test_a_users_own_cell(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OwnModel().double()
    with _record(model, tmp_path) as recorder:
        model(_data())[0].pow(2).sum().backward()
        recorder.step()
    out, states = model(_data())
    _check(gradscope.open_run(recorder.run_dir), "cell", out.pow(2).sum(), states)


# -- one layer, many passes ----------------------------------------------------------------------------------


def test_a_layer_used_twice_in_one_forward_is_two_sites(tmp_path: Path) -> None:
    model, twin = _model()
    a, b = _data(seed=1), _data(7, seed=2)
    with _record(model, tmp_path) as recorder:
        (model(a)[0][-1].sum() * model(b)[0][-1].pow(2).sum()).backward()
        recorder.step()
    loss = twin(a)[0][-1].sum() * twin(b)[0][-1].pow(2).sum()
    run = gradscope.open_run(recorder.run_dir)
    assert run.sites == ("rnn/l0", "rnn/l0#2")
    _check(run, "rnn/l0", loss, twin.rnn.states[0])
    _check(run, "rnn/l0#2", loss, twin.rnn.states[1])


def test_accumulated_micro_batches_are_separate_records(tmp_path: Path) -> None:
    model, twin = _model("GRU")
    with _record(model, tmp_path) as recorder:
        for seed in (1, 2, 3):
            model(_data(seed=seed))[0][-1].pow(2).mean().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert run.records("rnn/l0")["micro"].tolist() == [0, 1, 2]
    for k, seed in enumerate((1, 2, 3)):
        loss = twin(_data(seed=seed))[0][-1].pow(2).mean()
        _check(run, "rnn/l0", loss, twin.rnn.states[-1], record=k)


def test_two_backward_passes_through_one_graph_are_two_records(tmp_path: Path) -> None:
    model, twin = _model("RNN")
    with _record(model, tmp_path) as recorder:
        out = model(_data())[0]
        out[-1].sum().backward(retain_graph=True)
        out[4].pow(2).sum().backward()
        recorder.step()
    out = twin(_data())[0]
    run = gradscope.open_run(recorder.run_dir)
    _check(run, "rnn/l0", out[-1].sum(), twin.rnn.states[0], record=0)
    _check(run, "rnn/l0", out[4].pow(2).sum(), twin.rnn.states[0], record=1)


@pytest.mark.parametrize("every", [1, 3])
def test_truncated_backpropagation_restarts_the_lag_and_records_what_was_carried(every: int, tmp_path: Path) -> None:
    model, twin = _model()
    x = _data(40)
    state, twin_state, losses = None, None, []
    with gradscope.record(model, tmp_path / "run", every=every, samples=None) as recorder:
        for k in range(4):
            out, state = model(x[10 * k : 10 * k + 10], state)
            out.pow(2).mean().backward()
            state = tuple(s.detach() for s in state)
            out, twin_state = twin(x[10 * k : 10 * k + 10], twin_state)
            twin_state = tuple(s.detach() for s in twin_state)
            losses.append(out.pow(2).mean())
            recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    steps = list(range(0, 4, every))
    for record, step in enumerate(steps):
        _check(run, "rnn/l0", losses[step], twin.rnn.states[step], record=record)
    # With every=3 the first window gave no sign that states are carried: how far back is then unknown.
    assert run.records("rnn/l0")["carried"].tolist() == ([0, 10, 20, 30] if every == 1 else [0, -1])


def test_a_managed_state_is_followed_between_recorded_steps(tmp_path: Path) -> None:
    model, _ = _model("GRU")
    state = torch.zeros(1, 4, 6, dtype=torch.float64)
    with gradscope.record(model, tmp_path / "run", every=3, samples=None) as recorder:
        for k in range(4):
            out, state = model(_data(10, seed=k), state)
            out.pow(2).mean().backward()
            state = state.detach()
            recorder.step()
    assert gradscope.open_run(recorder.run_dir).records("rnn/l0")["carried"].tolist() == [0, 30]


# -- partly frozen, evaluated, checkpointed --------------------------------------------------------------------


def test_a_frozen_layer_below_a_trained_one_is_reported_not_zero(tmp_path: Path) -> None:
    model, _ = _model()
    model.rnn.requires_grad_(False)
    with _record(model, tmp_path) as recorder:
        model(_data())[0].sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert [(line.status, "requires no gradient" in line.reason) for line in run.coverage] == [("missing", True)]
    assert run.n_records == 0


def test_a_frozen_layer_above_a_trained_input_is_recorded(tmp_path: Path) -> None:
    model, twin = _model()
    model.rnn.requires_grad_(False)
    x = _data().requires_grad_()
    with _record(model, tmp_path) as recorder:
        model(x)[0][-1].sum().backward()
        recorder.step()
    loss = twin(_data())[0][-1].sum()
    _check(gradscope.open_run(recorder.run_dir), "rnn/l0", loss, twin.rnn.states[0])


def test_evaluation_between_steps_changes_nothing(tmp_path: Path) -> None:
    model, twin = _model()
    with _record(model, tmp_path) as recorder:
        with torch.no_grad():
            model(_data(seed=5))
        with torch.inference_mode():
            model(_data(seed=6))
        model(_data())[0][-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert run.sites == ("rnn/l0",)
    _check(run, "rnn/l0", twin(_data())[0][-1].sum(), twin.rnn.states[0])


def test_a_loss_that_does_not_touch_the_layer_is_coverage_not_zero(tmp_path: Path) -> None:
    model, _ = _model()
    with _record(model, tmp_path) as recorder:
        model(_data())
        model.readout.weight.sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert [line.reason for line in run.coverage] == [NO_GRADIENT]
    assert run.n_records == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, tmp_path: Path) -> None:
    model, twin = _model()
    x = _data().requires_grad_()
    with _record(model, tmp_path) as recorder:
        out = checkpoint(lambda x: model(x)[0], x, use_reentrant=reentrant)
        out[-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert run.sites == ("rnn/l0",)
    _check(run, "rnn/l0", twin(_data())[0][-1].sum(), twin.rnn.states[0])
    assert [line.status for line in run.coverage] == ["recorded"]


# -- weights that are not plain parameters ---------------------------------------------------------------------


class WeightDrop(nn.Module):
    """AWD-LSTM's DropConnect: the recurrent matrix is replaced before every call (Merity et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6)
        self.raw = nn.Parameter(self.rnn.weight_hh_l0.detach().clone())
        del self.rnn._parameters["weight_hh_l0"]

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.weight_hh_l0 = torch.dropout(self.raw, 0.5, True)
        return self.rnn(x)[0]


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
def test_weight_dropped_recurrence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WeightDrop().double()
    with _record(model, tmp_path) as recorder:
        model(_data())[-1].pow(2).sum().backward()
        recorder.step()
    twin = LoopLayer(model.rnn)
    loss = twin(_data())[0][-1].pow(2).sum()
    _check(gradscope.open_run(recorder.run_dir), "rnn/l0", loss, twin.states[0])


def test_weight_norm_parametrization(tmp_path: Path) -> None:
    model, _ = _model()
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh_l0")
    with _record(model, tmp_path) as recorder:
        model(_data())[0][-1].sum().backward()
        recorder.step()
    twin = Tagger().double()
    twin.load_state_dict(model.state_dict(), strict=False)
    twin.readout, twin.rnn = model.readout, LoopLayer(model.rnn)
    loss = twin(_data())[0][-1].sum()
    _check(gradscope.open_run(recorder.run_dir), "rnn/l0", loss, twin.rnn.states[0])


def test_weights_changed_during_backward_are_noticed(tmp_path: Path) -> None:
    model, _ = _model()

    def update(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    with _record(model, tmp_path) as recorder:
        model(_data())[0][-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert "weights changed during backward" in run.coverage[0].reason


def test_a_model_moved_to_another_type_after_attaching(tmp_path: Path) -> None:
    model, twin = _model()
    model.float()
    with _record(model, tmp_path) as recorder:
        model.double()
        model.load_state_dict({k: v for k, v in twin.state_dict().items() if "module" not in k}, strict=False)
        twin.rnn.module.load_state_dict(model.rnn.state_dict())
        model(_data())[0][-1].sum().backward()
        recorder.step()
    _check(gradscope.open_run(recorder.run_dir), "rnn/l0", twin(_data())[0][-1].sum(), twin.rnn.states[0])


def test_a_model_is_copied_pickled_and_saved_while_recorded(tmp_path: Path) -> None:
    model, _ = _model()
    with _record(model, tmp_path) as recorder:
        copied = copy.deepcopy(model)
        pickled = pickle.dumps(model)
        torch.save(model, buffer := io.BytesIO())
        model(_data())[0].sum().backward()
        recorder.step()
    assert b"gradscope" not in pickled
    assert b"gradscope" not in buffer.getvalue()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*copied.modules(), *model.modules()))


# -- data as it comes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_are_kept_and_counted(bad: float, tmp_path: Path) -> None:
    model, _ = _model()
    with _record(model, tmp_path) as recorder:
        out = model(_data())[0][-1]
        (out.sum(1) * torch.tensor([1.0, bad, 1.0, 1.0])).sum().backward()
        recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert run.records("rnn/l0")["nonfinite"].tolist() == [1]
    norms = _norms(run, "rnn/l0")
    assert np.isfinite(norms[[0, 2, 3]]).all()
    assert not np.isfinite(norms[1]).any()


def test_an_empty_batch_is_harmless(tmp_path: Path) -> None:
    model, _ = _model("GRU")
    with _record(model, tmp_path) as recorder:
        for batch in (0, 3):
            model(_data(batch=batch))[0].sum().backward()
            recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert run.lost == {}
    assert (run.lengths("rnn/l0") > 0).sum(1).tolist()[-1] == 3


def test_lengths_and_batches_that_differ_from_step_to_step(tmp_path: Path) -> None:
    model, twin = _model()
    shapes = [(9, 4), (3, 2), (12, 5), (1, 1)]
    with _record(model, tmp_path) as recorder:
        for steps, batch in shapes:
            model(_data(steps, batch))[0][-1].sum().backward()
            recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    for record, (steps, batch) in enumerate(shapes):
        loss = twin(_data(steps, batch))[0][-1].sum()
        expected = against_lag(adjoints(loss, twin.rnn.states[-1]))
        found = _norms(run, "rnn/l0", record=record)
        np.testing.assert_allclose(found[:batch, :steps], expected.numpy(), **EXACT)
        assert np.isnan(found[batch:]).all()
        assert np.isnan(found[:, steps:]).all()


def test_output_edited_in_place_and_hooked_by_the_user(tmp_path: Path) -> None:
    model, twin = _model("GRU")

    def run_model(m: nn.Module) -> Tensor:
        out, _ = m.rnn(_data())
        out.register_hook(lambda g: g.clamp(-0.01, 0.01))
        out *= 2
        out.relu_()
        return m.readout(out)[-3:].sum()

    with _record(model, tmp_path) as recorder:
        run_model(model).backward()
        recorder.step()
    loss = run_model(twin)
    _check(gradscope.open_run(recorder.run_dir), "rnn/l0", loss, twin.rnn.states[0])


def test_a_forward_without_backward_leaves_no_memory_behind(tmp_path: Path) -> None:
    import gc
    import weakref

    model, _ = _model()
    with _record(model, tmp_path):
        gc.disable()
        try:
            alive = []
            for seed in range(5):
                output, _ = model(_data(seed=seed))
                alive.append(weakref.ref(output))
                del output, _
            assert [ref() for ref in alive] == [None] * 5
        finally:
            gc.enable()


def test_an_error_of_gradscope_never_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = _model()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("replay broke")

    monkeypatch.setattr("gradscope.capture.calls.fused.stack_adjoints", broken)
    with _record(model, tmp_path) as recorder:
        for _ in range(3):
            model(_data())[0].sum().backward()
            recorder.step()
    run = gradscope.open_run(recorder.run_dir)
    assert sum(run.lost.values()) == 3
    assert any("replay broke" in reason for reason in run.lost)
    assert "an error inside gradscope" in run.coverage[0].reason
    assert "replay broke" not in run.coverage[0].reason
