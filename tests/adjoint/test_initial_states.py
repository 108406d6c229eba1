"""∂L/∂h_0 and ∂L/∂c_0 at every layer and direction, against autograd on the module itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.adjoint import Keep, StackCall, Weights, stack_adjoints

T, B, X, H = 37, 4, 3, 5
LENGTHS = torch.tensor([37, 33, 20, 1])
CELLS: dict[str, Any] = {
    "RNN": nn.RNN,
    "ReLU RNN": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    "GRU": nn.GRU,
    "LSTM": nn.LSTM,
    "projection": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
}


def _weights(module: nn.RNNBase) -> tuple[tuple[Weights, ...], ...]:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

    def site(suffix: str) -> Weights:
        return Weights(*(None if (w := getattr(module, n + suffix, None)) is None else w.detach() for n in names))

    directions = ("", "_reverse")[: 1 + module.bidirectional]
    return tuple(tuple(site(f"_l{layer}{d}") for d in directions) for layer in range(module.num_layers))


def _run(module: nn.RNNBase, packed: bool) -> tuple[StackCall, list[Tensor]]:
    """Run a loss on every output and final state; return the call, and autograd's gradients of the initial states."""
    sites = module.num_layers * (1 + module.bidirectional)
    dtype = module.weight_hh_l0.dtype
    x = torch.randn(T, B, X, dtype=dtype)
    initial = [torch.randn(sites, B, module.proj_size or H, dtype=dtype, requires_grad=True)]
    if module.mode == "LSTM":
        initial.append(torch.randn(sites, B, H, dtype=dtype, requires_grad=True))
    given = pack_padded_sequence(x, LENGTHS) if packed else x
    output, final = module(given, tuple(initial) if len(initial) > 1 else initial[0])
    output = pad_packed_sequence(output)[0] if packed else output
    ends = [output, *(final if isinstance(final, tuple) else (final,))]
    loss = sum((end * torch.randn_like(end)).sum() for end in ends)
    found = torch.autograd.grad(loss, [*ends, *initial])
    arrived = dict(zip(("grad_output", "grad_hn", "grad_cn"), found[: len(ends)], strict=False))
    states = [state.detach() for state in initial]
    call = StackCall(module.mode, _weights(module), x, output.detach(), *states, **arrived)  # type: ignore[arg-type]
    return (StackCall(**{**vars(call), "lengths": LENGTHS}) if packed else call), list(found[len(ends) :])


@pytest.mark.parametrize("arithmetic", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_initial_states_have_the_gradient_that_autograd_gives(
    cell: str, layers: int, bidirectional: bool, packed: bool, arithmetic: torch.dtype
) -> None:
    torch.manual_seed(0)
    module = CELLS[cell](X, H, num_layers=layers, bidirectional=bidirectional).double()
    call, expected = _run(module, packed)
    exact = {"rtol": 1e-10, "atol": 1e-14} if arithmetic == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for keep in (Keep(), Keep(gates=False)):
        sites = stack_adjoints(call, arithmetic, keep=keep)
        for (layer, direction), site in sites.items():
            place = layer * (1 + bidirectional) + direction
            found = [site.initial_hidden, site.initial_cell][: len(expected)]
            for gradient, reference in zip(found, expected, strict=True):
                assert gradient is not None
                assert gradient.dtype == torch.float64
                torch.testing.assert_close(gradient, reference[place], **exact)
            assert cell in ("LSTM", "projection") or site.initial_cell is None


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_a_gradient_beyond_float32_reaches_the_initial_state_with_its_digits(cell: str) -> None:
    torch.manual_seed(0)
    module = CELLS[cell](X, H).double()
    x, h0 = torch.randn(400, 1, X, dtype=torch.float64), torch.zeros(1, 1, H, dtype=torch.float64, requires_grad=True)
    c0 = torch.zeros_like(h0, requires_grad=True)
    output, _ = module(x, (h0, c0) if cell == "LSTM" else h0)
    states = [h0, c0] if cell == "LSTM" else [h0]
    direct, *expected = torch.autograd.grad(output[-1].sum(), [output, *states])
    assert 0 < float(expected[0].norm()) < 1e-45
    given = [state.detach() for state in states]
    call = StackCall(module.mode, _weights(module), x, output.detach(), *given, grad_output=direct)
    site = stack_adjoints(call, torch.float32)[0, 0]
    for found, reference in zip((site.initial_hidden, site.initial_cell), expected, strict=False):
        assert found is not None
        torch.testing.assert_close(found / reference[0], torch.ones_like(found), rtol=0, atol=2e-3)


def test_what_no_gradient_reaches_is_zero() -> None:
    torch.manual_seed(0)
    module = nn.GRU(X, H).double()
    call, _ = _run(module, packed=False)
    silent = StackCall(call.mode, call.weights, call.input, call.output, call.h0)
    for arithmetic in (torch.float64, torch.float32):
        found = stack_adjoints(silent, arithmetic)[0, 0].initial_hidden
        assert found is not None
        assert not found.any()


@pytest.mark.parametrize("shape", ["batched", "unbatched"])
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_cell_in_a_loop_has_them_too(kind: str, shape: str) -> None:
    torch.manual_seed(0)
    cell = getattr(nn, kind)(X, H, dtype=torch.float64)
    batch = (B,) if shape == "batched" else ()
    x = torch.randn(9, *batch, X, dtype=torch.float64)
    initial = [torch.randn(*batch, H, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "LSTMCell"))]

    def loss(given: list[Tensor]) -> Tensor:
        state: Any = tuple(given) if len(given) > 1 else given[0]
        for x_t in x:
            state = cell(x_t, state)
        return sum((s.sin().sum() for s in (state if isinstance(state, tuple) else (state,))), start=x.new_zeros(()))

    expected = torch.autograd.grad(loss(initial), initial)
    found = gradscope.snapshot(cell, lambda: loss([s.detach() for s in initial]))["model"].adjoints
    for gradient, reference in zip((found.initial_hidden, found.initial_cell), expected, strict=False):
        torch.testing.assert_close(gradient, reference.reshape(-1, H), rtol=1e-10, atol=1e-14)
