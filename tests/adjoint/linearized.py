"""A one-layer module linearised along its own trajectory, and golden files that hold Jacobians."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gradscope.adjoint import CELLS, Linearization, Order, StackCall, Weights, stack_adjoints
from tests.golden_files import Golden, golden_files


def jacobian_files() -> list[Path]:
    return [path for path in golden_files() if path.stem.endswith("L1_uni_full")]


def golden_call(golden: Golden) -> StackCall:
    c0 = golden.tensor("c0") if "c0" in golden.data else None
    call = one_layer(golden.module(), golden.tensor("x"), golden.tensor("h0"), c0)
    torch.testing.assert_close(call.output, golden.tensor("out"), rtol=1e-12, atol=1e-14)
    return call


def one_layer(
    module: nn.RNNBase, x: Tensor, h0: Tensor | None = None, c0: Tensor | None = None, lengths: Tensor | None = None
) -> StackCall:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0")
    found = {name: p.detach() for name, p in module.named_parameters()}
    weights = Weights(*(found.get(name) for name in names))
    if h0 is None:
        h0 = x.new_zeros(1, x.shape[1], module.proj_size or module.hidden_size)
    if c0 is None and module.mode == "LSTM":
        c0 = x.new_zeros(1, x.shape[1], module.hidden_size)
    with torch.no_grad():
        output = module(x, h0 if c0 is None else (h0, c0))[0]
    return StackCall(module.mode, ((weights,),), x, output, h0, c0, lengths)


def linearize(call: StackCall) -> tuple[Linearization, Order]:
    adjoints = stack_adjoints(call)[0, 0]
    assert adjoints.trajectory is not None
    assert adjoints.weights is not None
    return CELLS[call.mode].linearise(adjoints.trajectory, adjoints.weights), adjoints.order
