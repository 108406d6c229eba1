"""What a hook on a fused layer shows is not the adjoint: with a last-step loss it is 0 at every earlier step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradscope

T, B, H = 20, 3, 8
LAYERS = [nn.RNN, nn.LSTM, nn.GRU]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_output_grad_is_zero_where_the_adjoint_is_not(layer: type[nn.RNNBase], dtype: torch.dtype) -> None:
    module = layer(4, H, dtype=dtype)
    x = torch.randn(T, B, 4, dtype=dtype)
    outputs: list[Tensor] = []

    def loss() -> Tensor:
        output, _ = module(x)
        output.retain_grad()
        outputs.append(output)
        return output[-1].pow(2).sum()

    site = gradscope.snapshot(module, loss)["model/l0"]
    loss().backward()
    seen = outputs[-1].grad
    assert seen is not None
    assert not seen[:-1].any()
    assert bool((site.hidden[:-1].norm(dim=2) > 0).all()), "the loss reaches every lag"
    assert bool((site.recurrent[:-1].norm(dim=2) > 0).all())
    # What the hook sees is the direct gradient, and gradscope calls it that.
    torch.testing.assert_close(site.direct, seen.double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(site.hidden[-1], seen[-1].double(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_loss_on_the_final_state_is_direct_at_the_last_step_only(layer: type[nn.RNNBase]) -> None:
    module = layer(4, H, dtype=torch.float64)
    x = torch.randn(T, B, 4, dtype=torch.float64)

    def loss() -> Tensor:
        final = module(x)[1]
        return (final[0] if isinstance(final, tuple) else final).pow(2).sum()

    site = gradscope.snapshot(module, loss)["model/l0"]
    assert not site.direct[:-1].any()
    assert bool((site.direct[-1] != 0).all())
    assert bool((site.hidden.norm(dim=2) > 0).all())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_loss_on_every_output_still_adds_what_comes_through_the_recurrence(layer: type[nn.RNNBase]) -> None:
    module = layer(4, H, dtype=torch.float64)
    x, weight = torch.randn(T, B, 4, dtype=torch.float64), torch.randn(T, B, H, dtype=torch.float64)
    site = gradscope.snapshot(module, lambda: (module(x)[0] * weight).sum())["model/l0"]
    torch.testing.assert_close(site.direct, weight, rtol=0.0, atol=0.0)
    assert bool(((site.hidden - weight)[:-1].norm(dim=2) > 1e-3).all())
