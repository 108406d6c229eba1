from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gradscope
from gradscope.errors import NothingToRecordError, SettingError, UnknownNameError
from gradscope.words import number
from tests.adjoint.linearized import jacobian_files
from tests.golden_files import Golden

DOUBLE = torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_singular_values_equal_reference(path: Path, dtype: torch.dtype) -> None:
    golden = Golden.load(path, dtype)
    module = golden.module()
    found = gradscope.spectrum(module, lambda: golden.loss(module), exponents=0)
    expected = golden.data["jac_sv"][::-1]
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found.singular_values, expected, **tolerance)
    assert found.lags.tolist() == list(range(12))
    assert found.state == (("hidden", "cell") if "lstm" in path.stem else ("hidden",))


def _reversed_jacobian(module: nn.RNNBase, x: Tensor, steps: int) -> Tensor:
    """∂(state after ``steps`` steps) / ∂(initial state) of torch's own one-layer module, for the first sequence."""
    size = module.proj_size or module.hidden_size

    def run(state: Tensor) -> Tensor:
        given = state[None, None, :size], state[None, None, size:]
        final = module(x[:steps], given if module.mode == "LSTM" else given[0])[1]
        return torch.cat([part.flatten() for part in final]) if module.mode == "LSTM" else final.flatten()

    width = size + (module.hidden_size if module.mode == "LSTM" else 0)
    return torch.autograd.functional.jacobian(run, torch.zeros(width, dtype=DOUBLE))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_every_layer_and_direction_equals_autograd_on_that_layer_alone(kind: type[nn.RNNBase]) -> None:
    stack = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True, dtype=DOUBLE)
    x = torch.randn(1, 6, 3, dtype=DOUBLE)
    below: Tensor = x.transpose(0, 1)
    for layer in range(2):
        outputs = []
        for suffix in ("", "_reverse"):
            alone = kind(below.shape[2], 4, dtype=DOUBLE)
            alone.load_state_dict({n: stack.state_dict()[f"{n[:-1]}{layer}{suffix}"] for n in alone.state_dict()})
            given = below.flip(0) if suffix else below
            # From the initial state over all 6 steps; the spectrum starts at the state after the first.
            dense = _reversed_jacobian(alone, given, 6)
            found = gradscope.spectrum(stack, x, site=f"model/l{layer}{suffix}", lags=[5], exponents=0)
            first = _reversed_jacobian(alone, given, 1)
            expected = torch.linalg.svdvals(dense @ torch.linalg.inv(first))
            np.testing.assert_allclose(found.singular_values[0, 0], expected.numpy(), rtol=1e-6, atol=1e-14)
            output = alone(given)[0].detach()
            outputs.append(output.flip(0) if suffix else output)
        below = torch.cat(outputs, 2)


def test_exponents_of_a_symmetric_linear_network_come_with_no_spread() -> None:
    eigenvalues = torch.tensor([0.9, -0.7, 0.5], dtype=DOUBLE)
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))[0]
    module = nn.RNN(1, 3, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.copy_(basis * eigenvalues @ basis.t())
    found = gradscope.spectrum(module, torch.zeros(300, 4, 1, dtype=DOUBLE), lags=[0], warmup=150)
    np.testing.assert_allclose(found.exponents, eigenvalues.abs().log().numpy(), atol=1e-13)
    np.testing.assert_allclose(found.exponents_spread, 0, atol=1e-14)


def test_spread_over_sequences_is_their_standard_deviation() -> None:
    found = gradscope.spectrum(nn.GRU(2, 4), torch.randn(40, 5, 2), lags=[1], exponents=2)
    assert found.exponents_per_sequence.shape == (5, 2)
    np.testing.assert_allclose(found.exponents, found.exponents_per_sequence.mean(0))
    np.testing.assert_allclose(found.exponents_spread, found.exponents_per_sequence.std(0, ddof=1))
    assert (found.exponents_spread > 0).all()


def test_3000_steps_keep_what_a_plain_product_loses() -> None:
    found = gradscope.spectrum(
        nn.LSTM(1, 3, dtype=DOUBLE), torch.randn(3000, 1, 1, dtype=DOUBLE), lags=[2999], exponents=1
    )
    last = found.log_singular_values[-1, 0]
    assert np.isfinite(last).all()
    assert last.max() < math.log(5e-324)
    assert found.singular_values[-1].max() == 0
    assert last[0] / 2999 == pytest.approx(found.exponents[0], rel=0.05)


def test_a_long_sequence_is_seen_at_128_lags_from_the_first_to_the_last() -> None:
    found = gradscope.spectrum(nn.RNN(1, 2), torch.randn(200, 1, 1), exponents=0)
    assert len(found.lags) == len(found.log_singular_values) == 128
    assert (found.lags[0], found.lags[-1]) == (0, 199)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_a_cell_in_a_loop_equals_the_fused_layer_with_the_same_weights(kind: str) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = getattr(nn, kind)(2, 3, dtype=DOUBLE)

        def forward(self, x: Tensor) -> None:
            state = None
            for step in x:
                state = self.cell(step, state)

    model = Loop()
    fused = getattr(nn, kind.removesuffix("Cell"))(2, 3, dtype=DOUBLE)
    fused.load_state_dict({f"{name}_l0": p for name, p in model.cell.state_dict().items()})
    x = torch.randn(20, 10, 2, dtype=DOUBLE)
    found, expected = gradscope.spectrum(model, x), gradscope.spectrum(fused, x)
    np.testing.assert_allclose(found.log_singular_values, expected.log_singular_values, atol=1e-7)
    np.testing.assert_allclose(found.exponents, expected.exponents, rtol=1e-9)


def test_packed_sequences_end_where_they_end() -> None:
    module = nn.GRU(2, 3, dtype=DOUBLE)
    x = torch.randn(9, 2, 2, dtype=DOUBLE)
    packed = pack_padded_sequence(x, torch.tensor([5, 9]), enforce_sorted=False)
    found = gradscope.spectrum(module, packed)
    alone = gradscope.spectrum(module, x[:5, :1])
    assert found.lengths.tolist() == [5, 9]
    np.testing.assert_allclose(found.log_singular_values[:5, 0], alone.log_singular_values[:, 0], atol=1e-9)
    assert np.isnan(found.log_singular_values[5:, 0]).all()
    largest, median, _ = found.singular_values[8, 1]
    assert f"the largest singular value is {number(largest)}, the median {number(median)}" in str(found)


def test_model_and_generator_are_as_before_and_no_graph_is_needed() -> None:
    model = nn.Sequential(nn.LSTM(2, 3))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = torch.randn(7, 2, 2, generator=torch.Generator().manual_seed(1))
    gradscope.spectrum(model, x)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.unused = nn.RNN(2, 3), nn.GRU(2, 3)

    def forward(self, x: Tensor) -> None:
        self.rnn(x)
        self.rnn(x)


class _Rescaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(2, 3)

    def forward(self, x: Tensor) -> None:
        h = None
        for step in x:
            h = self.cell(step, h) * 0.9


class _OwnCell(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        return {"state": x + h}


class _OwnLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = _OwnCell()

    def forward(self, x: Tensor) -> None:
        self.cell(x[0], x[0])


X = torch.zeros(6, 2, 2)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (nn.Linear(2, 2), {}, NothingToRecordError, "no recurrent layer"),
        (nn.RNN(2, 3), {"site": "model/l1"}, UnknownNameError, "Did you mean 'model/l0'"),
        (nn.RNN(2, 3, num_layers=2), {}, SettingError, "model/l0, model/l1"),
        (_Twice(), {"site": "rnn"}, SettingError, "called 2 times"),
        (_Twice(), {"site": "unused/l0"}, SettingError, "not called"),
        (_Rescaled(), {}, SettingError, "changed in between"),
        (_OwnLoop(), {}, NothingToRecordError, "no recurrent layer whose equations are known"),
        (nn.RNN(2, 3), {"lags": [6]}, SettingError, "between 0 and 5"),
        (nn.RNN(2, 3), {"lags": []}, SettingError, "between 0 and 5"),
        (nn.RNN(2, 3), {"warmup": 6}, SettingError, "warm-up of 6 steps"),
        (nn.RNN(2, 3), {"exponents": 4}, SettingError, "state size 3"),
        (nn.RNN(2, 3), {"samples": 0}, SettingError, "samples"),
    ],
)
def test_bad_arguments_are_clear_errors(
    model: nn.Module, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gradscope.spectrum(model, X, **arguments)  # type: ignore[arg-type]


def test_it_is_printed_in_a_sentence_with_its_own_numbers() -> None:
    gru = nn.GRU(2, 4).double()
    found = gradscope.spectrum(gru, torch.randn(30, 3, 2, dtype=torch.float64))
    said = str(found)
    top = found.exponents[0]
    assert f"largest Lyapunov exponent {number(top)} per step, mean over 3 sequences after 6 steps of warm-up" in said
    assert f"small changes halve every {number(np.log(2) / -top)} steps" in said
    logs = np.log10(found.singular_values[-1])
    ends = (10 ** logs[:, 0].mean(), 10 ** np.median(logs, axis=1).mean())
    assert said.endswith("at lag 29 the largest singular value is {}, the median {}".format(*map(number, ends)))
    assert repr(found) == "<Spectrum of model/l0: 30 lags, 4 exponents>"
    assert "largest Lyapunov exponent" in found._repr_html_()
