from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.errors import SettingError, UnknownNameError
from tests.unrolled import unroll

DOUBLE = torch.float64
THRESHOLDS = (float("inf"), 0.3, 0.05, 0.002)


def _clipped_by_hooks(module: nn.RNNBase, x: Tensor, threshold: float, site: str, lengths: Tensor | None = None):  # type: ignore[no-untyped-def]
    """Autograd through elementary operations, with a hook on every gate pre-activation that clamps its gradient."""
    unrolled = unroll(module, x, lengths)
    for place in unrolled.sites.values():
        for name in ("gates", "gates_rz", "gates_n"):
            for node in place.nodes.get(name, {}).values():
                node.register_hook(lambda gradient: gradient.clamp(-threshold, threshold))
    unrolled.differentiate(unrolled.output.pow(2).sum())
    return unrolled.sites[site].gradients


KINDS = {
    "rnn_tanh": lambda **options: nn.RNN(3, 4, dtype=DOUBLE, **options),
    "rnn_relu": lambda **options: nn.RNN(3, 4, nonlinearity="relu", dtype=DOUBLE, **options),
    "lstm": lambda **options: nn.LSTM(3, 4, dtype=DOUBLE, **options),
    "lstm_proj": lambda **options: nn.LSTM(3, 4, proj_size=2, dtype=DOUBLE, **options),
    "gru": lambda **options: nn.GRU(3, 4, dtype=DOUBLE, **options),
}


@pytest.mark.parametrize("site", ["l0", "l1", "l0_reverse"])
@pytest.mark.parametrize("kind", KINDS)
def test_curves_equal_autograd_with_hooks_that_clip(kind: str, site: str) -> None:
    module = KINDS[kind](num_layers=2, bidirectional=True)
    x = torch.randn(9, 2, 3, dtype=DOUBLE)
    found = gradscope.clip_whatif(module, lambda: module(x)[0].pow(2).sum(), THRESHOLDS, site=f"model/{site}")
    quantities = {"hidden", "cell"} if "lstm" in kind else {"hidden"}
    assert set(found.norms) == quantities
    for index, threshold in enumerate(THRESHOLDS):
        expected = _clipped_by_hooks(module, x, threshold, site)
        for quantity in quantities:
            norms = torch.linalg.vector_norm(expected[quantity], dim=2).t().numpy()
            by_lag = norms if site.endswith("reverse") else norms[:, ::-1]
            np.testing.assert_allclose(found.norms[quantity][index], by_lag, rtol=1e-10, atol=1e-14)


def test_packed_sequences_are_clipped_within_their_length() -> None:
    module = nn.GRU(3, 4, dtype=DOUBLE)
    x, lengths = torch.randn(7, 2, 3, dtype=DOUBLE), torch.tensor([4, 7])

    def closure() -> Tensor:
        return pad_packed_sequence(module(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])[0].pow(2).sum()

    found = gradscope.clip_whatif(module, closure, [0.01]).norms["hidden"][0]
    expected = torch.linalg.vector_norm(_clipped_by_hooks(module, x, 0.01, "l0", lengths)["hidden"], dim=2)
    np.testing.assert_allclose(found[0, :4], expected[:4, 0].flip(0).numpy(), rtol=1e-10)
    np.testing.assert_allclose(found[1], expected[:, 1].flip(0).numpy(), rtol=1e-10)
    assert np.isnan(found[0, 4:]).all()


def test_no_threshold_is_what_snapshot_measures() -> None:
    module = nn.LSTM(2, 5)
    x = torch.randn(12, 3, 2)

    def closure() -> Tensor:
        return module(x)[0][-1].pow(2).sum()

    found = gradscope.clip_whatif(module, closure, [float("inf")])
    expected = torch.linalg.vector_norm(gradscope.snapshot(module, closure)["model/l0"].cell, dim=2).t().flip(1)
    np.testing.assert_allclose(found.curves[0], expected.numpy(), rtol=1e-12)
    assert (found.clipped == 0).all()


def test_clipping_tames_an_exploding_gradient_and_says_how_much_it_clipped() -> None:
    module = nn.RNN(1, 4, nonlinearity="relu", dtype=DOUBLE)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.weight_hh_l0.copy_(1.5 * torch.eye(4))
        module.bias_ih_l0.fill_(0.1)
    x = torch.zeros(30, 1, 1, dtype=DOUBLE)
    found = gradscope.clip_whatif(module, lambda: module(x)[0][-1].sum(), [float("inf"), 2.0])
    # Every unit's adjoint grows by 1.5 a step, and is 1.5 · 2 once the clip at 2 holds it (from 1.5² = 2.25 on).
    np.testing.assert_allclose(found.curves[0, 0], 2 * 1.5 ** np.arange(30), rtol=1e-12)
    np.testing.assert_allclose(found.curves[1, 0, :3], 2 * np.array([1, 1.5, 2.25]), rtol=1e-12)
    np.testing.assert_allclose(found.curves[1, 0, 3:], 2 * 3.0, rtol=1e-12)
    assert found.clipped[1].tolist() == [0.0, 0.0] + [1.0] * 28


MODULE = nn.RNN(2, 3)
X = torch.ones(4, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"thresholds": []}, SettingError, "positive"),
        ({"thresholds": [0.0]}, SettingError, "positive"),
        ({"thresholds": [float("nan")]}, SettingError, "positive"),
        ({"kind": "norm"}, SettingError, "threshold_table"),
        ({"kind": "time_step"}, UnknownNameError, "Did you mean 'timestep'"),
        ({"site": "model/l3"}, UnknownNameError, "model/l0"),
        ({"closure": lambda: MODULE(X)[0]}, SettingError, "one element"),
        ({"closure": lambda: MODULE(X)[0].sum().detach()}, SettingError, "no graph"),
        ({"closure": lambda: X.sum()}, SettingError, "not called"),
    ],
)
def test_bad_arguments_are_clear_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"closure": lambda: MODULE(X)[0].sum(), "thresholds": [1.0]} | arguments
    with pytest.raises(error, match=message):
        gradscope.clip_whatif(MODULE, **given)  # type: ignore[arg-type]
