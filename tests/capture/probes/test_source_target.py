from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.errors import SettingError, UnknownNameError
from tests.adjoint.linearized import jacobian_files
from tests.golden_files import Golden
from tests.unrolled import Unrolled, layer_by_layer, unroll

DOUBLE = torch.float64


@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_matrix_equals_reference(path: Path) -> None:
    golden = Golden.load(path)
    module = golden.module()
    state = golden.tensor("h0") if "c0" not in golden.data else (golden.tensor("h0"), golden.tensor("c0"))
    found = gradscope.source_target(
        module, lambda: (module(golden.tensor("x"), state)[0] * golden.tensor("R_out")).sum(2)
    )
    np.testing.assert_allclose(found.hidden, golden.data["src_tgt_h"], rtol=1e-10, atol=1e-12)
    assert found.per_step
    if "src_tgt_c" in golden.data:
        assert found.cell is not None
        np.testing.assert_allclose(found.cell, golden.data["src_tgt_c"], rtol=1e-10, atol=1e-12)


def test_losses_may_be_listed() -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(3, 4).double(), torch.randn(6, 2, 3, dtype=DOUBLE)
    each = gradscope.source_target(module, lambda: module(x)[0].pow(2).sum(2))
    listed = gradscope.source_target(module, lambda: [loss.sum() for loss in module(x)[0].pow(2).sum(2)])
    kept_whole = gradscope.source_target(module, lambda: list(module(x)[0].pow(2).sum(2)))
    for found in (listed, kept_whole):
        assert found.per_step
        np.testing.assert_allclose(found.hidden_per_sequence, each.hidden_per_sequence, rtol=1e-12)


def _expected(unrolled: Unrolled, losses: Tensor, site: str, quantity: str) -> np.ndarray:
    """One backward pass of autograd per target through elementary operations, (N, T, B)."""
    rows = []
    for loss in losses:
        unrolled.differentiate(loss)
        rows.append(torch.linalg.vector_norm(unrolled.sites[site].gradients[quantity], dim=2))
    return torch.stack(rows).numpy()


def _per_step_loss(output: Tensor) -> Tensor:
    return (output.sin() ** 2).mean(2)


def _cumulative_loss(output: Tensor) -> Tensor:
    return (output.cumsum(0) ** 2).mean(2)


def _three_windows(output: Tensor) -> Tensor:
    return torch.stack([(output[t : t + 3] ** 3).sum() for t in (0, 2, 4)])


def _cancelling(output: Tensor) -> Tensor:
    """Losses whose cross-dependencies add up to zero, so that their plain sum looks like one loss per step."""
    cross = output[0].sum(1)
    losses = (output**2).sum(2)
    return losses + torch.stack([0 * cross, cross, cross, -2 * cross, 0 * cross, 0 * cross, 0 * cross])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("per_target", "per_step"),
    [(_per_step_loss, True), (_cumulative_loss, False), (_three_windows, False), (_cancelling, False)],
)
def test_every_layer_and_direction_equals_one_backward_pass_per_target(
    kind: type[nn.RNNBase], per_target: Callable[[Tensor], Tensor], per_step: bool
) -> None:
    module = kind(3, 4, num_layers=2, bidirectional=True, dtype=DOUBLE)
    x = torch.randn(7, 2, 3, dtype=DOUBLE)
    unrolled = unroll(module, x)
    losses = per_target(unrolled.output)
    losses = losses.sum(1) if losses.dim() > 1 else losses
    for site in ("l0", "l1_reverse"):
        found = gradscope.source_target(
            module, lambda: per_target(module(x)[0]), site=f"model/{site}", targets_at_once=3
        )
        assert found.per_step is per_step
        expected = _expected(unrolled, losses, site, "hidden")
        np.testing.assert_allclose(found.hidden_per_sequence, expected, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(found.hidden, expected.mean(2), rtol=1e-9, atol=1e-13)
        expected = _expected(unrolled, losses, site, "input")
        np.testing.assert_allclose(found.input_per_sequence, expected, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(found.input, expected.mean(2), rtol=1e-9, atol=1e-13)
        if module.mode == "LSTM":
            expected = _expected(unrolled, losses, site, "cell")
            np.testing.assert_allclose(found.cell_per_sequence, expected, rtol=1e-9, atol=1e-13)


def test_a_forward_source_after_its_target_is_exactly_zero_and_a_reverse_one_before_it() -> None:
    module = nn.GRU(2, 3, bidirectional=True)
    x = torch.randn(8, 3, 2)
    forward, reverse = (
        gradscope.source_target(module, lambda: module(x)[0].pow(2).sum(2), site=f"model/{suffix}").hidden
        for suffix in ("l0", "l0_reverse")
    )
    assert (np.triu(forward, 1) == 0).all()
    assert (np.tril(forward) > 0)[np.tril_indices(8)].all()
    assert (np.tril(reverse, -1) == 0).all()
    assert (reverse[np.triu_indices(8)] > 0).all()


def test_losses_on_the_final_states_count() -> None:
    module = nn.LSTM(2, 3, dtype=DOUBLE)
    x = torch.randn(5, 2, 2, dtype=DOUBLE)

    def losses(output: Tensor, h_n: Tensor, c_n: Tensor) -> Tensor:
        return torch.stack([output[2].sum(), (h_n**2).sum(), (c_n**3).sum()])

    def closure() -> Tensor:
        output, (h_n, c_n) = module(x)
        return losses(output, h_n, c_n)

    found = gradscope.source_target(module, closure)
    unrolled = unroll(module, x)
    assert unrolled.c_n is not None
    values = losses(unrolled.output, unrolled.h_n, unrolled.c_n)
    for quantity, norms in (("hidden", found.hidden_per_sequence), ("cell", found.cell_per_sequence)):
        np.testing.assert_allclose(norms, _expected(unrolled, values, "l0", quantity), rtol=1e-10, atol=1e-14)


def test_dropout_between_layers_is_the_one_that_was_drawn() -> None:
    module = nn.GRU(3, 4, num_layers=2, dropout=0.5, dtype=DOUBLE)
    x = torch.randn(6, 2, 3, dtype=DOUBLE)
    state = torch.get_rng_state()
    found = gradscope.source_target(module, lambda: module(x)[0].pow(2).sum(2), site="model/l0")
    torch.set_rng_state(state)
    _, masks = layer_by_layer(module, x)
    assert bool((masks[0] == 0).any())
    unrolled = unroll(module, x, masks=masks)
    expected = _expected(unrolled, unrolled.output.pow(2).sum((1, 2)), "l0", "hidden")
    np.testing.assert_allclose(found.hidden_per_sequence, expected, rtol=1e-10, atol=1e-14)


def test_packed_sequences_have_nan_beyond_their_end() -> None:
    module = nn.LSTM(2, 3, num_layers=2, dtype=DOUBLE)
    x, lengths = torch.randn(6, 2, 2, dtype=DOUBLE), torch.tensor([3, 6])

    def closure() -> Tensor:
        output = module(pack_padded_sequence(x, lengths, enforce_sorted=False))[0]
        return pad_packed_sequence(output)[0].pow(2).sum(2)

    found = gradscope.source_target(module, closure, site="model/l0")
    unrolled = unroll(module, x, lengths)
    expected = _expected(unrolled, unrolled.output.pow(2).sum((1, 2)), "l0", "hidden")
    assert np.isnan(found.hidden_per_sequence[:, 3:, 0]).all()
    expected[:, 3:, 0] = np.nan
    np.testing.assert_allclose(found.hidden_per_sequence, expected, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.hidden[:, 3:], expected[:, 3:, 1], rtol=1e-10, atol=1e-14)


def test_an_output_edited_in_place_and_a_module_above_change_nothing_of_the_exactness() -> None:
    below, above = nn.GRU(2, 3, dtype=DOUBLE), nn.RNN(3, 3, dtype=DOUBLE)
    model = nn.ModuleDict({"below": below, "above": above})
    x = torch.randn(5, 2, 2, dtype=DOUBLE)

    def closure() -> Tensor:
        output = below(x)[0]
        output *= 2
        return above(output)[0].pow(2).sum((1, 2))

    found = gradscope.source_target(model, closure, site="below/l0")
    unrolled = unroll(below, x)
    expected = _expected(unrolled, above(unrolled.output * 2)[0].pow(2).sum((1, 2)), "l0", "hidden")
    assert not found.per_step
    np.testing.assert_allclose(found.hidden_per_sequence, expected, rtol=1e-10, atol=1e-14)


def test_no_parameter_gradient_appears() -> None:
    module = nn.GRU(2, 3)
    gradscope.source_target(module, lambda: module(X)[0].pow(2).sum(2))
    assert all(p.grad is None for p in module.parameters())


X = torch.ones(4, 2, 2)


def _closure(kind: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    module = nn.RNN(2, 3)
    closures: dict[str, Callable[[], Tensor]] = {
        "good": lambda: module(X)[0].sum(2),
        "scalar": lambda: module(X)[0].sum(),
        "unrelated": lambda: X.sum((1, 2)),
        "twice": lambda: module(module(X)[0][..., :2])[0].sum(2),
    }
    return module, closures[kind]


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        ("scalar", {}, SettingError, "one loss per target"),
        ("unrelated", {}, SettingError, "not called"),
        ("twice", {}, SettingError, "called 2 times"),
        ("good", {"site": "rnn/l0"}, UnknownNameError, "unknown site"),
        ("good", {"targets_at_once": 0}, SettingError, "targets_at_once"),
    ],
)
def test_bad_arguments_are_clear_errors(
    kind: str, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    module, closure = _closure(kind)
    with pytest.raises(error, match=message):
        gradscope.source_target(module, closure, **arguments)  # type: ignore[arg-type]


def test_frozen_models_are_told_that_there_is_no_graph() -> None:
    module = nn.RNN(2, 3).requires_grad_(False)
    with pytest.raises(SettingError, match="no graph"):
        gradscope.source_target(module, lambda: module(X)[0].sum(2))


def test_a_cell_called_once_per_step_is_refused() -> None:
    cell = nn.GRUCell(2, 3)
    with pytest.raises(SettingError, match="is a GRUCell; source_target needs"):
        gradscope.source_target(cell, lambda: cell(X[0]).sum(1))
