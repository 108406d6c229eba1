"""Backward passes that are not the usual one: exact, or a line in coverage."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.calls import watcher
from gradscope.capture.calls.prehook import SECOND_ORDER, TRANSFORMED
from tests.unrolled import unroll

KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


def _expected(module: nn.RNNBase, x: Tensor, loss: Any, suffix: str = "l0") -> np.ndarray:
    twin = type(module)(module.input_size, module.hidden_size, bidirectional=module.bidirectional).to(x.dtype)
    twin.load_state_dict(module.state_dict())
    reference = unroll(twin, x)
    reference.differentiate(loss(reference.output))
    return reference.sites[suffix].gradients["hidden"].norm(dim=2).T.flip(1).numpy()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_first_output_edited_in_place(
    kind: str, dtype: torch.dtype, bidirectional: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](3, 6, batch_first=True, bidirectional=bidirectional).to(dtype)
    x = torch.randn(9, 4, 3, dtype=dtype)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        output, _ = module(x.transpose(0, 1))
        output.tanh_()
        try:
            output[:, -1].sum().backward()
        except RuntimeError as error:
            pytest.skip(f"torch itself cannot: {error}")
        recorder.step()
    expected = _expected(module, x, lambda output: output[-1].tanh().sum())
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty_is_refused_and_its_first_pass_kept_apart(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = KINDS[kind](3, 6).double(), torch.randn(9, 4, 3, dtype=torch.float64, requires_grad=True)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        output = module(x)[0][-1].sum()
        (gradient,) = torch.autograd.grad(output, x, create_graph=True)
        (output + gradient.pow(2).sum()).backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.n_records == 0, "the pass of the loss is refused, and the other was not for the update"
    assert run.lost == {}
    assert [(line.status, line.reason) for line in run.coverage] == [("missing", SECOND_ORDER)]
    assert run.apart.records("model/l0").role.tolist() == ["other"]
    found = run.apart.array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, _expected(module, x.detach(), lambda output: output[-1].sum()), rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_penalty_alone_is_refused_for_the_true_reason(kind: str, tmp_path: Path) -> None:
    """No call is in its graph: only what torch makes of a layer's inside when its gradient is differentiated."""
    module, x = KINDS[kind](3, 6), torch.randn(9, 4, 3, requires_grad=True)
    with gradscope.record(module, tmp_path / "run", every=1) as recorder:
        (gradient,) = torch.autograd.grad(module(x)[0][-1].sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert (run.n_records, run.lost) == (0, {})
    assert [(line.site, line.status, line.reason) for line in run.coverage] == [("model/l0", "missing", SECOND_ORDER)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batched_backward_pass_is_said_in_coverage(kind: str, tmp_path: Path) -> None:
    module, x = KINDS[kind](3, 6).double(), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    with gradscope.record(module, tmp_path / "run", every=1) as recorder:
        last = module(x)[0][-1, 0]
        torch.autograd.grad(last, x, torch.eye(6, dtype=torch.float64), is_grads_batched=True)
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert run.n_records == 0
    assert [line.reason for line in run.coverage] == [TRANSFORMED]


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_passes_that_fail_under_create_graph_leave_no_memory_behind(kind: str, tmp_path: Path) -> None:
    module = KINDS[kind](3, 8)

    def fail(_: Tensor) -> None:
        raise KeyError("the user's own")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    counts = []
    with gradscope.record(module, tmp_path / "run", every=1) as recorder:
        for _ in range(4):
            x = torch.randn(20, 4, 3, requires_grad=True)
            copied = x * 1
            copied.register_hook(fail)
            with pytest.raises(KeyError):
                torch.autograd.grad(module(copied)[0][-1].sum(), x, create_graph=True)
            del x, copied
            recorder.step()
            counts.append(tensors())
    assert counts[-1] <= counts[1]


class Offloaded(nn.LSTM):
    """Keeps saved tensors elsewhere, and gives each back once."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        store: dict[int, Tensor] = {}

        def pack(value: Tensor) -> int:
            store[len(store)] = value.detach()
            return len(store) - 1

        with torch.autograd.graph.saved_tensors_hooks(pack, store.pop):
            return super().forward(x, hx)


def test_saved_tensors_of_an_overridden_forward_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Offloaded(3, 6), torch.randn(9, 4, 3)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        module(x)[0][-1].sum().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    plain = nn.LSTM(3, 6)
    plain.load_state_dict(module.state_dict())
    expected = _expected(plain, x, lambda output: output[-1].sum())
    np.testing.assert_allclose(run.array("model/l0", "hidden")[0], expected, rtol=1e-4)


class Doubled(nn.GRU):
    def forward(self, x: Tensor, hx: Any = None) -> Any:
        output, h_n = super().forward(x, hx)
        return 2 * output, h_n


class Rescaled(nn.GRU):
    def forward(self, x: Tensor, hx: Any = None) -> Any:
        return super().forward(0.5 * x, hx)


@pytest.mark.parametrize(("kind", "into", "out"), [(Doubled, 1.0, 2.0), (Rescaled, 0.5, 1.0)])
def test_a_forward_that_changes_what_goes_in_or_out_is_recorded_as_its_kernel_ran(
    kind: Any, into: float, out: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, x = kind(3, 6).double(), torch.randn(9, 4, 3, dtype=torch.float64)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        module(x)[0][-1].sum().backward()
        recorder.step()
    plain = nn.GRU(3, 6).double()
    plain.load_state_dict(module.state_dict())
    expected = _expected(plain, into * x, lambda output: (out * output)[-1].sum())
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quiet_row_beside_a_loud_one_keeps_its_digits(kind: str, tmp_path: Path) -> None:
    """One scale serves all rows of a block: what it cannot hold is computed in float64."""
    torch.manual_seed(0)
    module, x = KINDS[kind](3, 16), torch.randn(60, 3, 3)

    def loss(output: Tensor) -> Tensor:
        return output[-1, 0].sum() + 1e-35 * output[-1, 1].sum() + 1e-20 * output[-1, 2].sum()

    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        loss(module(x)[0]).backward()
        recorder.step()
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    reference = _expected(module.double(), x.double(), loss)
    np.testing.assert_allclose(found, reference, rtol=1e-4)


def test_a_fast_decay_inside_one_block_keeps_its_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.GRU(3, 8), torch.randn(30, 3, 3)
    with torch.no_grad():
        module.bias_ih_l0[8:16] = -3.0
        module.weight_hh_l0 *= 0.2
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        module(x)[0][-1].sum().backward()
        recorder.step()
    found = gradscope.open_run(tmp_path / "run").array("model/l0", "hidden")[0]
    expected = _expected(module.double(), x.double(), lambda output: output[-1].sum())
    assert expected.min() < 2.0**-100
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_kept_loss_does_not_keep_the_kernels_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    opened = watcher.open_call
    monkeypatch.setattr(watcher, "open_call", lambda *given: calls.append(opened(*given)) or calls[-1])
    module, x = nn.LSTM(8, 16), torch.randn(10, 4, 8)
    with gradscope.record(module, tmp_path / "run", every=1, samples=None) as recorder:
        loss = module(x)[0][-1].sum()
        ((call, _),) = calls
        if call.call.kept is None:
            pytest.skip("this torch runs no fused LSTM here")
        loss.backward()
        recorder.step()
    assert call.call.kept is None
    assert loss.grad_fn is not None
