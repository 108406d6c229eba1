"""Clipping calls whose outcome is known exactly, made in every way a training script makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_ as imported_by_name

import gradscope
from gradscope.capture import Recorder
from gradscope.capture.training.clipping import gradient_norms

both_types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


class TwoWeights(nn.Module):
    """A recurrent model with one parameter of two elements, whose gradient the tests set by hand."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, dtype=dtype)
        self.pair = nn.Parameter(torch.zeros(2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0].sum() + self.pair.sum()


Clip = Callable[[Recorder, list[Tensor], float], Any]

NORM_CALLS: dict[str, Clip] = {
    "recorder": lambda recorder, parameters, c: recorder.clip_grad_norm_(c, parameters=parameters),
    "torch.nn.utils": lambda recorder, parameters, c: torch.nn.utils.clip_grad_norm_(parameters, c),
    "torch.nn.utils.clip_grad": lambda recorder, parameters, c: torch.nn.utils.clip_grad.clip_grad_norm_(parameters, c),
    "imported by name": lambda recorder, parameters, c: imported_by_name(parameters, c),
    "one tensor": lambda recorder, parameters, c: torch.nn.utils.clip_grad_norm_(parameters[0], c),
    "in two halves": lambda recorder, parameters, c: torch.nn.utils.clip_grads_with_norm_(
        parameters, c, torch.nn.utils.get_total_norm([p.grad for p in parameters])
    ),
    "a generator": lambda recorder, parameters, c: torch.nn.utils.clip_grad_norm_((p for p in parameters), c),
}
VALUE_CALLS: dict[str, Clip] = {
    "recorder": lambda recorder, parameters, c: recorder.clip_grad_value_(c, parameters=parameters),
    "torch.nn.utils": lambda recorder, parameters, c: torch.nn.utils.clip_grad_value_(parameters, c),
    "torch.nn.utils.clip_grad": lambda recorder, parameters, c: torch.nn.utils.clip_grad.clip_grad_value_(
        parameters, c
    ),
    "a generator": lambda recorder, parameters, c: torch.nn.utils.clip_grad_value_((p for p in parameters), c),
}


def _clipped(tmp_path: Path, dtype: torch.dtype, raw: tuple[float, float], clip: Clip) -> tuple[Tensor, Any]:
    """Clip a gradient at 1 while recording; return what is left of it and the recorded event."""
    model = TwoWeights(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1) as recorder:
        model(torch.randn(4, 2, 2, dtype=dtype)).backward()
        model.pair.grad = torch.tensor(raw, dtype=dtype)
        clip(recorder, [model.pair], 1.0)
        left = model.pair.grad.clone()
        optimizer.step()
    events = gradscope.open_run(tmp_path / "run").clips()
    assert len(events) == 1
    event = events.iloc[0]
    assert (event.step, event.threshold, event.parameters) == (0, 1.0, 1)
    return left, event


@both_types
@pytest.mark.parametrize("call", VALUE_CALLS)
def test_value_clipping_turns_the_gradient(call: str, dtype: torch.dtype, tmp_path: Path) -> None:
    left, event = _clipped(tmp_path, dtype, (10.0, 1.0), VALUE_CALLS[call])
    assert left.tolist() == [1.0, 1.0]
    assert event.kind == "value"
    assert event.norm_before == pytest.approx(math.sqrt(101), rel=1e-12)
    assert event.norm_after == pytest.approx(math.sqrt(2), rel=1e-12)
    assert event["scale"] == pytest.approx(math.sqrt(2 / 101), rel=1e-12)
    assert event.cosine == pytest.approx(11 / math.sqrt(202), rel=1e-12)
    assert event.cosine == pytest.approx(0.773957, abs=1e-6)
    assert event.clipped == 0.5


@both_types
@pytest.mark.parametrize("call", NORM_CALLS)
def test_norm_clipping_divides_by_the_norm_plus_a_millionth(call: str, dtype: torch.dtype, tmp_path: Path) -> None:
    left, event = _clipped(tmp_path, dtype, (3.0, 4.0), NORM_CALLS[call])
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert float(left.double().norm()) == pytest.approx(5 / (5 + 1e-6), rel=tolerance)
    assert event.kind == "norm"
    assert event.norm_before == 5.0
    assert event.norm_after == pytest.approx(5 / (5 + 1e-6), rel=1e-14)
    assert event["scale"] == pytest.approx(1 / (5 + 1e-6), rel=1e-14)
    assert event.cosine == 1.0
    assert event.clipped == 1.0
    assert event.norm_type == 2.0


@both_types
@pytest.mark.parametrize("call", NORM_CALLS)
def test_norm_clipping_of_an_infinite_gradient_leaves_nan_and_zero(
    call: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    left, event = _clipped(tmp_path, dtype, (math.inf, 1.0), NORM_CALLS[call])
    assert math.isnan(left[0])
    assert left[1] == 0.0
    assert event.norm_before == math.inf
    assert event["scale"] == 0.0
    assert math.isnan(event.norm_after)
    assert math.isnan(event.cosine)
    assert event.clipped == 1.0


@pytest.mark.parametrize("call", NORM_CALLS)
def test_a_gradient_below_the_threshold_is_reported_as_untouched(call: str, tmp_path: Path) -> None:
    left, event = _clipped(tmp_path, torch.float64, (0.3, 0.4), NORM_CALLS[call])
    assert left.tolist() == pytest.approx([0.3, 0.4], rel=1e-15)
    assert event.norm_before == event.norm_after == pytest.approx(0.5)
    assert (event["scale"], event.clipped) == (1.0, 0.0)


def test_the_recorder_returns_what_torch_returns(tmp_path: Path) -> None:
    model = TwoWeights(torch.float64)
    with gradscope.record(model, tmp_path / "run") as recorder:
        model.pair.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        assert float(recorder.clip_grad_norm_(1.0, parameters=[model.pair])) == 5.0
        model.pair.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
        assert float(imported_by_name([model.pair], 1.0)) == 5.0


def test_a_call_that_torch_refuses_raises_what_torch_raises_and_is_no_event(tmp_path: Path) -> None:
    model = TwoWeights(torch.float64)
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model.pair.grad = torch.tensor([math.inf, 1.0], dtype=torch.float64)
        with pytest.raises(RuntimeError, match="non-finite"):
            torch.nn.utils.clip_grad_norm_([model.pair], 1.0, error_if_nonfinite=True)
        with pytest.raises(ValueError, match="could not convert"):
            torch.nn.utils.clip_grad_value_([model.pair], "one")  # type: ignore[arg-type]
        assert model.pair.grad.tolist() == [math.inf, 1.0]
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.clips().empty
    assert run.lost == {}


def test_norm_clipping_is_noted_at_every_step_and_the_rest_of_the_model_stays_out_of_it(tmp_path: Path) -> None:
    model, stranger = TwoWeights(torch.float64), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=5) as recorder:
        for _ in range(12):
            model(torch.randn(4, 2, 2, dtype=torch.float64)).backward()
            expected = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
            stranger.grad = torch.ones(2)
            torch.nn.utils.clip_grad_norm_([stranger], 0.1)  # another model's gradient
            assert float(recorder.clip_grad_norm_(1.0)) == pytest.approx(float(expected), rel=1e-12)
            optimizer.step()
            optimizer.zero_grad()
    events = gradscope.open_run(tmp_path / "run").clips()
    assert events.step.tolist() == list(range(12))
    assert events.parameters.tolist() == [5] * 12


@both_types
def test_the_gradient_norms_of_a_recorded_step_are_those_before_clipping(dtype: torch.dtype, tmp_path: Path) -> None:
    model = TwoWeights(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1) as recorder:
        model(torch.randn(4, 2, 2, dtype=dtype)).backward()
        raw = {name: float(p.grad.double().norm()) for name, p in model.named_parameters()}
        recorder.clip_grad_norm_(0.01)
        optimizer.step()
    run = gradscope.open_run(tmp_path / "run")
    row = run.parameters().iloc[0]
    for name, norm in raw.items():
        assert row[name] == pytest.approx(norm, rel=1e-12)
    steps = run.steps().iloc[0]
    assert steps.grad_norm == pytest.approx(math.hypot(*raw.values()), rel=1e-12)
    assert steps.grad_norm_applied == pytest.approx(0.01, rel=1e-3)


def test_the_norm_type_that_was_asked_for_is_recorded(tmp_path: Path) -> None:
    def clip(recorder: Recorder, parameters: list[Tensor], c: float) -> None:
        recorder.clip_grad_norm_(c, norm_type=math.inf, parameters=parameters)

    left, event = _clipped(tmp_path, torch.float64, (3.0, 4.0), clip)
    assert left.tolist() == pytest.approx([0.75, 1.0], rel=1e-5)
    assert event.norm_type == math.inf
    assert event.norm_before == 4.0


def test_adaptive_clipping_acts_on_each_row_relative_to_its_weights(tmp_path: Path) -> None:
    """Rows (3, 4) and (.03, .04) of weights (6, 8) and 0 at factor .1: limits 1 and .1 · 1e-3."""
    torch.manual_seed(0)
    model = TwoWeights(torch.float64)
    model.rows = nn.Parameter(torch.tensor([[6.0, 8.0], [0.0, 0.0]], dtype=torch.float64))
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model(torch.randn(4, 2, 2, dtype=torch.float64)).backward()
        model.rows.grad = torch.tensor([[3.0, 4.0], [0.03, 0.04]], dtype=torch.float64)
        recorder.clip_grad_adaptive_(0.1, parameters=[model.rows])
        recorder.step()
    expected = [[0.6, 0.8], [6e-5, 8e-5]]
    torch.testing.assert_close(model.rows.grad, torch.tensor(expected, dtype=torch.float64))
    event = gradscope.open_run(tmp_path / "run").clips().iloc[0]
    assert (event.kind, event.threshold, event.clipped) == ("adaptive", 0.1, 1.0)
    raw, left = torch.tensor([3.0, 4.0, 0.03, 0.04]), torch.tensor([0.6, 0.8, 6e-5, 8e-5])
    assert event.norm_before == pytest.approx(float(raw.norm()))
    assert event.norm_after == pytest.approx(float(left.norm()))
    assert event.cosine == pytest.approx(float(torch.cosine_similarity(raw, left, dim=0)))


def test_complex_parameters_have_the_norm_that_torch_gives_them() -> None:
    weight = nn.Parameter(torch.tensor([3 + 4j, 0 + 12j], dtype=torch.complex128))
    weight.grad = weight.detach().clone()
    assert gradient_norms([weight]) == [float(torch.nn.utils.get_total_norm([weight.grad]))] == [13.0]
