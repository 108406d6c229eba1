"""The loop of a block, captured once and replayed: what a CUDA graph does, played on the CPU.

The stand-in for a graph keeps every operation with the very tensors it ran on and runs them again; a loop that read
anything but its buffers would give something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradscope.adjoint import Keep, StackCall, Weights, launch, stack_adjoints
from gradscope.adjoint.walk import BLOCK

T = 5 * BLOCK + 7


class _Kept(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def _graph(body: Callable[[], None], counted: list[int]) -> Callable[[], None]:
    with _Kept() as kept:
        body()

    def replay() -> None:
        counted.append(1)
        for func, args, kwargs, result in kept.operations:
            again = func(*args, **kwargs)
            if isinstance(result, Tensor) and again.data_ptr() != result.data_ptr():
                result.copy_(again)  # a graph writes where it wrote before

    return replay


def _call(module: nn.RNNBase) -> StackCall:
    torch.manual_seed(1)
    x, states = torch.randn(T, 3, 4, dtype=torch.float64), torch.zeros(1, 3, module.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        output, _ = module(x)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0")
    weights = Weights(*(None if (w := getattr(module, n, None)) is None else w.detach() for n in names))
    h0 = torch.zeros(1, 3, output.shape[2], dtype=torch.float64)
    c0 = states if module.mode == "LSTM" else None
    return StackCall(module.mode, ((weights,),), x, output, h0, c0, grad_output=torch.randn_like(output))


MODULES: dict[str, Callable[[], nn.RNNBase]] = {
    "RNN": lambda: nn.RNN(4, 5),
    "GRU": lambda: nn.GRU(4, 5),
    "LSTM": lambda: nn.LSTM(4, 5),
    "LSTM with projection": lambda: nn.LSTM(4, 5, proj_size=2),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("keep", [Keep(gates=False), Keep(), Keep(gates=False, input=True), Keep(input=True)], ids=str)
def test_replayed_blocks_equal_those_that_ran(name: str, keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    call = _call(MODULES[name]().double())
    expected = stack_adjoints(call, keep=keep)[0, 0]
    counted: list[int] = []
    monkeypatch.setitem(launch.CAPTURES, "cpu", lambda body: _graph(body, counted))
    found = stack_adjoints(call, keep=keep)[0, 0]
    assert len(counted) == 4, "five whole blocks, the first of which ran"
    for quantity in (
        "hidden",
        "cell",
        "cell_carry",
        "gates",
        "gates_hh",
        "input_gradient",
        "initial_hidden",
        "initial_cell",
    ):
        expected_values, values = getattr(expected, quantity), getattr(found, quantity)
        assert (values is None) == (expected_values is None)
        if values is not None:
            assert torch.equal(values, expected_values), quantity


@pytest.mark.parametrize("name", MODULES)
def test_where_nothing_can_be_captured_the_loop_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    call = _call(MODULES[name]().double())
    expected = stack_adjoints(call)[0, 0].hidden
    monkeypatch.setitem(launch.CAPTURES, "cpu", lambda body: body())
    assert torch.equal(stack_adjoints(call)[0, 0].hidden, expected)


def test_a_gradient_at_the_final_cell_is_not_replayed_into_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    call = _call(nn.LSTM(4, 5).double())
    call = replace(call, grad_cn=torch.randn(1, 3, 5, dtype=torch.float64))
    expected = stack_adjoints(call)[0, 0].cell
    counted: list[int] = []
    monkeypatch.setitem(launch.CAPTURES, "cpu", lambda body: _graph(body, counted))
    assert torch.equal(stack_adjoints(call)[0, 0].cell, expected)
    assert not counted
