"""Gates that the fused LSTM kernel kept: what a replay would compute, and left alone at every surprise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.adjoint import StackCall, stack_adjoints
from gradscope.capture.calls import kept_gates
from gradscope.capture.calls.fused import open_call

OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 2, "dropout": 0.4},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
]


def _call(module: nn.LSTM, x: Tensor, samples: int | None = None) -> StackCall:
    given, rng = x.transpose(0, 1) if module.batch_first else x, torch.get_rng_state()
    return open_call(module, (given,), {}, module(given), samples, rng, precise=False)[0].call


def _fused(module: nn.LSTM, x: Tensor) -> bool:
    """Whether this torch runs a float32 LSTM on this processor by the kernel in question."""
    node = module(x)[0].grad_fn
    while node is not None and node.name() != kept_gates.NODE:
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "batch first", "dropout", "deep"])
@pytest.mark.parametrize("size", [5, 16, 64, 100], ids=lambda size: f"H{size}")
@pytest.mark.parametrize(("steps", "batch", "samples"), [(1, 1, None), (2, 12, 2), (7, 3, None), (9, 12, 8)])
def test_adjoints_equal_a_replay_in_float64(
    options: dict[str, Any], size: int, steps: int, batch: int, samples: int | None
) -> None:
    torch.manual_seed(0)
    module, x = nn.LSTM(6, size, **options), torch.randn(steps, batch, 6)
    call = _call(module, x, samples)
    assert (call.kept is not None) == _fused(module, x)
    assert call.kept is None or all(site.cell is not None for layer in call.kept for site in layer)
    call = replace(call, grad_output=torch.randn_like(call.output))
    kept, replayed = stack_adjoints(call, torch.float32), stack_adjoints(call.again(), torch.float64)
    for place, expected in replayed.items():
        for quantity in ("hidden", "cell", "cell_carry", "gates"):
            found = kept[place].true(getattr(kept[place], quantity))
            torch.testing.assert_close(found, getattr(expected, quantity), rtol=1e-4, atol=1e-5, msg=quantity)


def test_every_length_is_taken_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for name in ("_layouts", "_compared"):
        monkeypatch.setattr(kept_gates, name, OrderedDict())
    compared: list[Any] = []
    monkeypatch.setattr(kept_gates, "_compare", _noting(compared, kept_gates._compare))
    module = nn.LSTM(6, 16)
    for steps in range(2, 200):
        call = _call(module, torch.randn(steps, 4, 6), 2)
        if call.kept is None:
            pytest.skip("no such kernel here")
        assert call.kept[0][0].cell is not None
    assert len(kept_gates._layouts) == 64
    assert len(compared) == 1  # gates are computed anew once, not at every length


def _noting(into: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        into.append(arguments)
        return function(*arguments)

    return noted


@pytest.mark.parametrize("size", [5, 100, 256])
def test_gates_of_every_length_equal_those_computed_anew(size: int) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(70, size)
    for steps in (1, 2, 5, 33, 4, 100):
        call = _call(module, torch.randn(steps, 12, 70), 8)
        if call.kept is None:
            pytest.skip("no such kernel here")
        call = replace(call, grad_output=torch.randn_like(call.output))
        kept, replayed = stack_adjoints(call, torch.float32), stack_adjoints(call.again(), torch.float64)
        for quantity in ("hidden", "cell"):
            found, expected = (getattr(a[0, 0], quantity) for a in (kept, replayed))
            torch.testing.assert_close(kept[0, 0].true(found), expected, rtol=1e-4, atol=1e-5, msg=quantity)


def test_another_layout_is_noticed_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for name in ("_layouts", "_compared"):
        monkeypatch.setattr(kept_gates, name, OrderedDict())
    monkeypatch.setattr(kept_gates, "_ALIGNMENT", 24)
    assert _call(nn.LSTM(6, 16), torch.randn(9, 4, 6)).kept is None


def test_saved_tensors_in_somebody_elses_hands_are_not_read() -> None:
    module, x = nn.LSTM(6, 16), torch.randn(9, 4, 6)

    def refuse(value: Any) -> Any:
        raise AssertionError("unpacked")

    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, refuse):
        assert _call(module, x).kept is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_float32_layer_is_recorded(reentrant: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module, x = nn.LSTM(6, 16), torch.randn(9, 4, 6, requires_grad=True)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant)[-1].sum().backward()
        recorder.step()
    taken = gradscope.snapshot(module, lambda: module(x)[0][-1].sum())["model/l0"].cell
    run = gradscope.open_run(tmp_path / "run")
    found = torch.from_numpy(run.array("model/l0", "cell")[0])
    torch.testing.assert_close(found, taken.norm(dim=2).flip(0).T, rtol=1e-4, atol=1e-9)
    assert run.lost == {}


@pytest.mark.parametrize("module", [nn.LSTM(6, 16, proj_size=4), nn.LSTM(6, 16).double(), nn.GRU(6, 16)])
def test_other_layers_have_no_such_kernel(module: nn.RNNBase) -> None:
    x = torch.randn(9, 4, 6, dtype=module.weight_ih_l0.dtype)
    assert open_call(module, (x,), {}, module(x), None, None, precise=False)[0].call.kept is None


def test_a_snapshot_is_computed_anew() -> None:
    """Float64 throughout is what a snapshot promises; the kernel's gates are float32."""
    module, x = nn.LSTM(6, 16), torch.randn(9, 4, 6)
    assert open_call(module, (x,), {}, module(x), None, None)[0].call.kept is None


@pytest.mark.parametrize("samples", [None, 2], ids=["whole batch", "rows"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_of_an_earlier_call_are_not_taken_for_those_of_this_one(
    bidirectional: bool, samples: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they were when a layer of the size was first seen may be memory that an earlier call had left behind."""
    torch.manual_seed(0)
    monkeypatch.setattr(kept_gates, "_layouts", OrderedDict())
    module = nn.LSTM(6, 16, bidirectional=bidirectional)
    first = _call(module, torch.randn(9, 4, 6), samples)
    if first.kept is None:
        pytest.skip("no such kernel here")
    true = dict(kept_gates._layouts)
    for wrong in ({"cell": 16}, {"stride": 64 + 16}):
        for key, layout in true.items():
            assert layout is not None
            moved = {name: getattr(layout, name) + by if name == "cell" else by for name, by in wrong.items()}
            kept_gates._layouts[key] = replace(layout, **moved)
        call = _call(module, torch.randn(9, 4, 6), samples)
        assert call.kept is not None
        call = replace(call, grad_output=torch.randn_like(call.output))
        kept, replayed = stack_adjoints(call, torch.float32), stack_adjoints(call.again(), torch.float64)
        for place, expected in replayed.items():
            assert expected.cell is not None
            assert kept[place].cell is not None
            torch.testing.assert_close(kept[place].true(kept[place].cell), expected.cell, rtol=1e-4, atol=1e-5)
        assert kept_gates._layouts == true


def test_a_layer_whose_states_never_fit_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(kept_gates, "_layouts", OrderedDict())
    module, x = nn.LSTM(6, 16), torch.randn(9, 4, 6)
    if _call(module, x).kept is None:
        pytest.skip("no such kernel here")
    monkeypatch.setattr(kept_gates, "_fit", lambda *_: False)
    assert _call(module, x).kept is None
    assert list(kept_gates._layouts.values()) == [None]
