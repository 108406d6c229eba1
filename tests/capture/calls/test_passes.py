"""Every backward pass is seen, whoever starts it and however its function was imported."""

from collections.abc import Callable

import pytest
import torch
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

from gradscope.capture.calls import passes
from gradscope.capture.calls.passes import Pass


class Told:
    """Keeps what it was told; raises on demand."""

    def __init__(self, fail: bool = False) -> None:
        self.begun: list[Pass] = []
        self.ended: list[Pass] = []
        self.loss: list[float] = []
        self.fail = fail

    def pass_begins(self, begun: Pass) -> None:
        self.begun.append(begun)
        self.loss += [float(r.detach()) for r in begun.roots if isinstance(r, torch.Tensor) and r.numel() == 1]
        if self.fail:
            raise RuntimeError("an observer's own fault")

    def pass_ends(self, ended: Pass) -> None:
        self.ended.append(ended)
        if self.fail:
            raise RuntimeError("an observer's own fault")


def told(run: Callable[[torch.Tensor], object], fail: bool = False) -> Told:
    observer, x = Told(fail), torch.tensor([1.0, 2.0], requires_grad=True)
    passes.observe(observer)
    try:
        run(x)
    finally:
        passes.ignore(observer)
    assert set(observer.begun) == set(observer.ended)
    return observer


@pytest.mark.parametrize(
    ("run", "kind", "asked"),
    [
        (lambda x: x.pow(2).sum().backward(), "backward", False),
        (lambda x: torch.autograd.backward(x.pow(2).sum()), "backward", False),
        (lambda x: x.pow(2).sum().backward(inputs=[x]), "backward", True),
        (lambda x: torch.autograd.grad(x.pow(2).sum(), x), "grad", True),
        (lambda x: grad(x.pow(2).sum(), x), "grad", True),
    ],
)
def test_a_pass_is_seen_with_its_loss(run: Callable[[torch.Tensor], object], kind: str, asked: bool) -> None:
    observer = told(run)
    assert [(p.kind, p.asked, p.failed, p.outer) for p in observer.ended] == [(kind, asked, False, None)]
    assert observer.loss == [5.0]


def test_a_pass_that_builds_a_graph_says_so() -> None:
    def penalty(x: torch.Tensor) -> None:
        (first,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
        first.pow(2).sum().backward()

    assert [(p.kind, p.create_graph) for p in told(penalty).ended] == [("grad", True), ("backward", False)]


def test_a_checkpoint_runs_a_pass_inside_the_pass() -> None:
    def checkpointed(x: torch.Tensor) -> None:
        checkpoint(lambda y: y.tanh(), x, use_reentrant=True).sum().backward()

    outer, inner = told(checkpointed).begun
    assert inner.outer is outer
    assert inner.outermost() is outer
    assert outer.task not in (-1, inner.task)


def test_a_pass_that_fails_ends_too() -> None:
    def twice(x: torch.Tensor) -> None:
        loss = x.pow(2).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    assert [p.failed for p in told(twice).ended] == [False, True]


def test_what_an_observer_raises_stays_out_of_the_pass() -> None:
    x = torch.ones(2, requires_grad=True)
    told(lambda _: x.pow(2).sum().backward(), fail=True)
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]


def test_nothing_of_the_graph_is_kept() -> None:
    observer = told(lambda x: x.pow(2).sum().backward(inputs=[x]))
    assert (observer.ended[0].roots, observer.ended[0].root_gradients, observer.ended[0].inputs) == ((), (), ())


def test_torch_is_as_it_was_with_the_last_observer_gone() -> None:
    before = torch.autograd._engine_run_backward
    first, second = Told(), Told()
    passes.observe(first)
    passes.observe(second)
    passes.ignore(first)
    torch.ones(1, requires_grad=True).sum().backward()
    passes.ignore(second)
    assert torch.autograd._engine_run_backward is before
    assert (len(first.begun), len(second.begun)) == (0, 1)


def test_without_the_private_seam_the_public_functions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "engine_seam", lambda: None)
    before = torch.autograd.backward, torch.autograd.grad
    seen = told(lambda x: x.pow(2).sum().backward()).ended + told(lambda x: torch.autograd.grad(x.sum(), x)).ended
    assert [(p.kind, p.asked) for p in seen] == [("backward", False), ("grad", True)]
    assert (torch.autograd.backward, torch.autograd.grad) == before
