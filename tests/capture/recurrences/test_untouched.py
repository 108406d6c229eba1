"""Looking for recurrences changes nothing in the training and leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch.nn.modules import module as hooks

import gradscope
from gradscope.errors import GradscopeError
from tests.capture.recurrences.agreement import EXACT, Training, unharmed
from tests.capture.recurrences.cases import Case
from tests.capture.recurrences.models import CASES

Trained = Callable[[Case, torch.dtype], Training]
both_precisions = pytest.mark.parametrize("dtype", EXACT, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_model = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_model
@both_precisions
def test_five_steps_end_in_the_same_weights(case: Case, dtype: torch.dtype, trained: Trained) -> None:
    training = trained(case, dtype)
    assert all(torch.equal(a, b) for a, b in zip(training.alone, training.recorded, strict=True))
    assert training.same_generator


@every_model
def test_a_snapshot_leaves_weights_gradients_and_hooks_alone(case: Case) -> None:
    model, x = case.build(torch.float32), case.data(torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    entry_points = torch.autograd.backward, torch.autograd.grad
    made: list[weakref.ref[torch.Tensor]] = []

    def closure() -> torch.Tensor:
        loss = case.loss(model, x)
        made.append(weakref.ref(loss))
        return loss

    with contextlib.suppress(*([GradscopeError] if case.refusal else [])):
        gradscope.snapshot(model, closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert (torch.autograd.backward, torch.autograd.grad) == entry_points
    assert unharmed(model)
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    gc.collect()
    assert made[0]() is None, "the graph outlives the snapshot"
