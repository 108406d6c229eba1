"""Adjoints of whole stacks through ``gradscope.snapshot``, against autograd on the same network unrolled.

Dropout between layers is the hard part: the masks are drawn inside torch's call, and the reference gets them by calling
the layers one by one from the same state of the generator.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.errors import NothingToRecordError, NotRecordedError, SettingError, UnknownNameError
from tests.unrolled import Unrolled, expected, layer_by_layer, unroll

T, B, FEATURES, H = 7, 5, 3, 4
LENGTHS = torch.tensor([4, 7, 1, 6, 2])
QUANTITIES = ("hidden", "cell", "cell_carry", "gates", "input", "direct", "recurrent", "weight")
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
LAYERS: dict[str, Any] = {
    "RNN": nn.RNN,
    "RNN-relu": partial(nn.RNN, nonlinearity="relu"),
    "LSTM": nn.LSTM,
    "LSTM-proj": partial(nn.LSTM, proj_size=2),
    "GRU": nn.GRU,
}
cells = pytest.mark.parametrize("cell", LAYERS)


def _module(cell: str, dtype: torch.dtype = torch.float64, **settings: Any) -> nn.RNNBase:
    return LAYERS[cell](FEATURES, H, dtype=dtype, **settings)


def _forward(module: nn.RNNBase, x: Tensor, packed: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run ``module`` on time-major ``x`` the way its settings want it; return time-major output, h_n, c_n."""
    given = x.transpose(0, 1) if module.batch_first else x
    if packed:
        output, final = module(pack_padded_sequence(given, LENGTHS, module.batch_first, enforce_sorted=False))
        output = pad_packed_sequence(output, module.batch_first)[0]
    else:
        output, final = module(given)
    h_n, c_n = final if isinstance(final, tuple) else (final, None)
    return (output.transpose(0, 1) if module.batch_first else output), h_n, c_n


def _weighted(output: Tensor, h_n: Tensor, c_n: Tensor | None) -> Tensor:
    """A loss that sends a different gradient into every element of output, h_n and c_n."""
    generator = torch.Generator().manual_seed(7)
    parts = [output, h_n] if c_n is None else [output, h_n, c_n]
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in parts]
    return torch.stack([(part * w.to(part.dtype)).sum() for part, w in zip(parts, weights, strict=True)]).sum()


def _reference(module: nn.RNNBase, x: Tensor, packed: bool, masks: list[Tensor] | None) -> Unrolled:
    reference = unroll(module, x, LENGTHS if packed else None, masks)
    reference.differentiate(_weighted(reference.output, reference.h_n, reference.c_n))
    return reference


def _check(found: gradscope.Snapshot, reference: Unrolled, dtype: torch.dtype) -> None:
    assert list(found.sites) == [f"model/{suffix}" for suffix in reference.sites]
    assert [line.status for line in found.coverage] == ["recorded"] * len(reference.sites)
    for suffix, site in reference.sites.items():
        for quantity in QUANTITIES:
            if quantity.startswith("cell") and "cell" not in site.gradients:
                continue
            torch.testing.assert_close(
                getattr(found[f"model/{suffix}"], quantity),
                expected(site, quantity),
                **TOLERANCE[dtype],
                msg=lambda m, s=suffix, q=quantity: f"{q} at {s}: {m}",
            )


STACKS = list(itertools.product((2, 3), (False, True), (False, True), (False, True)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "packed", "batch_first"),
    STACKS,
    ids=[f"{layers}{'-bi' * bi}{'-packed' * packed}{'-batch_first' * first}" for layers, bi, packed, first in STACKS],
)
@cells
def test_dropout_between_layers_is_exact(
    cell: str, layers: int, bidirectional: bool, packed: bool, batch_first: bool, dtype: torch.dtype
) -> None:
    module = _module(cell, dtype, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, dropout=0.3)
    x = torch.randn(T, B, FEATURES, dtype=dtype)
    before = torch.get_rng_state()
    found = gradscope.snapshot(module, lambda: _weighted(*_forward(module, x, packed)))
    after = torch.get_rng_state()

    torch.set_rng_state(before)
    output, *_ = _forward(module, x, packed)
    assert torch.equal(torch.get_rng_state(), after), "a snapshot draws nothing of its own"
    torch.set_rng_state(before)
    given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
    split, masks = layer_by_layer(module, given)
    assert torch.equal(split, output), "the reference has drawn the masks of the stacked call"
    assert all(bool((mask == 0).any()) for mask in masks)
    _check(found, _reference(module, x, packed, masks), dtype)


@cells
def test_without_training_mode_there_is_no_dropout(cell: str) -> None:
    module = _module(cell, num_layers=3, bidirectional=True, dropout=0.3).eval()
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    found = gradscope.snapshot(module, lambda: _weighted(*_forward(module, x, False)))
    _check(found, _reference(module, x, False, None), torch.float64)


@cells
def test_all_dropped_leaves_nothing_for_the_layers_below(cell: str) -> None:
    module = _module(cell, num_layers=2, dropout=1.0)
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    found = gradscope.snapshot(module, lambda: module(x)[0].sum())
    assert not found["model/l0"].hidden.any()
    assert bool((found["model/l1"].hidden.norm(dim=2) > 0).all())


@cells
def test_two_calls_in_one_step_draw_their_own_masks(cell: str) -> None:
    module = _module(cell, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    before = torch.get_rng_state()
    found = gradscope.snapshot(module, lambda: module(x)[0].sum() + module(x)[0].pow(2).sum())
    torch.set_rng_state(before)
    for suffix, power in (("", 1), ("#2", 2)):
        reference = unroll(module, x, masks=layer_by_layer(module, x)[1])
        reference.differentiate(reference.output.pow(power).sum())
        for layer in ("l0", "l1"):
            torch.testing.assert_close(
                found[f"model/{layer}{suffix}"].hidden,
                expected(reference.sites[layer], "hidden"),
                rtol=1e-10,
                atol=1e-12,
            )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@cells
def test_a_snapshot_repeats_and_leaves_the_model_as_it_was(cell: str, dropout: float) -> None:
    module = _module(cell, num_layers=2, bidirectional=True, dropout=dropout)
    module.weight_ih_l0.grad = torch.ones_like(module.weight_ih_l0)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(T, B, FEATURES, dtype=torch.float64)
    rng = torch.get_rng_state()
    first = gradscope.snapshot(module, lambda: module(x)[0].sum())
    torch.set_rng_state(rng)
    second = gradscope.snapshot(module, lambda: module(x)[0].sum())
    assert first.loss == second.loss
    assert all(torch.equal(first[site].hidden, second[site].hidden) for site in first)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.weight_ih_l0.grad, torch.ones_like(module.weight_ih_l0))
    assert module.weight_hh_l0.grad is None
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_float32_adjoints_do_not_vanish_into_underflow() -> None:
    # At −.25 decades a step a float32 gradient reads 0 after some 150 steps; autograd in float64 says it is 1e-100.
    module = nn.RNN(2, 32)
    x = torch.randn(400, 2, 2)
    found = gradscope.snapshot(module, lambda: module(x)[0][-1].sum())["model/l0"].hidden
    # The reference has the same weights, but its own trajectory in float64: close, not equal.
    reference = unroll(module, x)
    reference.differentiate(reference.output[-1].sum())
    truth = expected(reference.sites["l0"], "hidden").norm(dim=2)
    norms = found.norm(dim=2)
    assert float(truth.min()) < 1e-45, "beyond what float32 can hold"
    assert bool((truth > 0).all())
    assert bool((norms > 0).all())
    torch.testing.assert_close(norms.log10(), truth.log10(), rtol=0.0, atol=0.01)


# --- in words --------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_the_decay_that_a_record_of_the_same_pass_has(tmp_path: Path) -> None:
    module = nn.LSTM(3, 8, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(30, 4, 3, dtype=torch.float64)

    def loss() -> Tensor:
        return module(x)[0][-1].square().sum()

    found = gradscope.snapshot(module, loss)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        loss().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    for site in run.sites:
        for quantity in (None, "hidden", "input"):
            ours, theirs = found.decay(site, quantity), run.decay(site, quantity)
            assert (ours.verdict, ours.reference_lag, ours.last_lag) == (
                theirs.verdict, theirs.reference_lag, theirs.last_lag
            )  # fmt: skip
            assert ours.rate == pytest.approx(theirs.rate, rel=1e-9, nan_ok=True)
    said = str(found)
    assert "l0 (cell): the gradient reaching 29 steps back is" in said
    assert "l1_reverse (cell): no verdict: only one step" in said
    assert found._repr_html_().count("<li>") == 4


def test_a_site_is_printed_by_its_shapes() -> None:
    module = nn.GRU(3, 4)
    found = gradscope.snapshot(module, lambda: module(torch.randn(7, 2, 3))[0].sum())
    assert str(found["model/l0"]) == (
        "<model/l0 (gru): 7 steps, 2 sequences; adjoints hidden (7, 2, 4), input (7, 2, 3), recurrent (7, 2, 4)>"
    )
    assert "tensor(" not in repr(found["model/l0"])


def test_a_decay_of_a_snapshot_says_what_was_asked_wrongly() -> None:
    module = nn.GRU(3, 4, num_layers=2)
    found = gradscope.snapshot(module, lambda: module(torch.randn(7, 2, 3))[0].sum())
    with pytest.raises(SettingError, match="2 sites; say which"):
        found.decay()
    with pytest.raises(NotRecordedError, match="has no quantity 'cell'"):
        found.decay("model/l0", "cell")
    with pytest.raises(SettingError, match="no decay to fit"):
        found.decay("model/l0", "weight")
    with pytest.raises(UnknownNameError, match="Did you mean 'hidden'"):
        found.decay("model/l0", "hiden")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0].mean()


def _backward(model: nn.Module, x: Tensor, **options: bool) -> Tensor:
    loss = model(x)
    loss.backward(**options)
    return loss


@pytest.mark.parametrize(
    ("closure", "error", "said"),
    [
        (lambda model, x: lambda: _Net()(x), NothingToRecordError, "another model, or a copy"),
        (lambda model, x: model(x), SettingError, "a function that runs the forward pass"),
        (lambda model, x: lambda: _backward(model, x), SettingError, "not call backward"),
        (lambda model, x: lambda: _backward(model, x, retain_graph=True), SettingError, "not call backward"),
        (lambda model, x: lambda: model(x).backward(), SettingError, "not call backward"),
        (lambda model, x: lambda: model(x).detach(), SettingError, "has no graph"),
    ],
    ids=["another model", "a loss", "backward", "backward that keeps the graph", "nothing returned", "detached"],
)
def test_a_closure_that_cannot_be_measured_is_refused_with_the_reason(
    closure: Any, error: type[Exception], said: str
) -> None:
    model, x = _Net(), torch.randn(4, 2, 2)
    with pytest.raises(error, match=said):
        gradscope.snapshot(model, closure(model, x))


def test_a_class_in_place_of_a_model_is_named() -> None:
    with pytest.raises(SettingError, match="an instance, not the class"):
        gradscope.snapshot(_Net, lambda: torch.zeros(()))  # type: ignore[arg-type]
