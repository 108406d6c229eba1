"""What enters each step from outside the loop: ∂L/∂x_t where x_t has a graph, else a line that says what would help."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import NotRecordedError
from tests.capture.recurrences.agreement import against_lag, error
from tests.capture.recurrences.cases import FEATURES, B, Case, H, T
from tests.capture.recurrences.models import CASES
from tests.capture.recurrences.truth import note

#: Models whose steps are each given the input of that step, and nothing else.
STEPWISE = {
    name: CASES[name]
    for name in (
        "TutorialCharRNN",
        "TutorialCharRNNWithTanh",
        "TwoLinears",
        "ALossAtEveryStep",
        "EightLinearLSTM",
        "LeakyIntegrator",
        "HandsOnHAndC",
        "HandsOnAPair",
        "TheCellKeepsTheState",
        "HandsOnADict",
        "HandGRUWithLearnedStart",
        "Rollout",
        "Video",
        "SpikingLearnedDecay",
        "Liquid",
        "ClosedForm",
        "FunctionalLSTMCell",
    )
}
stepwise = pytest.mark.parametrize("case", STEPWISE.values(), ids=STEPWISE)


def _true_input(case: Case, x: Tensor) -> Tensor:
    """Return ∂L/∂x_t, (T, B, \\*features)."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(case.loss(case.build(x.dtype), x), x)
    return gradient.transpose(0, 1)


@stepwise
def test_the_gradient_of_the_input_of_each_step(case: Case) -> None:
    x = case.data(torch.float64).requires_grad_()
    model = case.build(torch.float64)
    snapshot = gradscope.snapshot(model, lambda: case.loss(model, x))
    (site,) = snapshot.values()
    true = _true_input(case, x)
    steps = len(site.input)
    assert steps in (T, T - 1, 7)
    # The tutorial's last step leaves nothing: the steps that are there are the first ones that reach the loss.
    assert error(site.input.flatten(2), true.flatten(2)[:steps]) < 1e-10 or case.name == "TutorialCharRNN"


@stepwise
def test_without_a_graph_coverage_says_what_would_give_it_one(case: Case) -> None:
    model, x = case.build(torch.float64), case.data(torch.float64)
    snapshot = gradscope.snapshot(model, lambda: case.loss(model, x))
    (site,) = snapshot.values()
    try:
        found = site.input
    except NotRecordedError:
        lines = [line for line in snapshot.coverage if "input" in line.reason]
        assert any("requires_grad_()" in line.reason for line in lines), snapshot.coverage
    else:  # what was made of it by a layer of the step itself
        assert len(found) in (T, T - 1, 7)


class Embedded(nn.Module):
    """Words are looked up before the loop: what enters a step is an embedding, which has a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.i2h, self.h2h = nn.Embedding(7, FEATURES), nn.Linear(FEATURES, H), nn.Linear(H, H)

    def forward(self, words: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        h = torch.zeros(len(words), H, dtype=torch.float64)
        for word in words.unbind(1):
            entering = self.embed(word)
            if kept is not None:
                entering.retain_grad()
                kept.append(entering)
            h = torch.tanh(self.i2h(entering) + self.h2h(h))
            note(h=h)
        return h


class OfManyLeaves(nn.Module):
    """Every timestep is a tensor of its own that requires gradient, as in attacks and saliency maps."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h = nn.Linear(FEATURES, H), nn.Linear(H, H)

    def forward(self, steps: list[Tensor]) -> Tensor:
        h = torch.zeros(B, H, dtype=torch.float64)
        for x_t in steps:
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
        return h


def test_inputs_that_are_leaves_are_no_weights_of_the_steps() -> None:
    torch.manual_seed(0)
    model = OfManyLeaves().double()
    steps = [torch.randn(B, FEATURES, dtype=torch.float64, requires_grad=True) for _ in range(T)]
    snapshot = gradscope.snapshot(model, lambda: model(steps).pow(2).mean())
    assert all(x_t.grad is None for x_t in steps)
    true = torch.autograd.grad(model(steps).pow(2).mean(), steps)
    assert snapshot.sites == ("h2h",)
    assert error(snapshot["h2h"].input, torch.stack(true)) < 1e-10


def test_an_embedding_of_each_step_is_recorded_by_default(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, words = Embedded().double(), torch.randint(7, (B, T))
    kept: list[Tensor] = []
    model(words, kept).pow(2).mean().backward()
    model.zero_grad()
    true = torch.stack([entering.grad for entering in kept])
    assert error(gradscope.snapshot(model, lambda: model(words).pow(2).mean())["h2h"].input, true) < 1e-10
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        model(words).pow(2).mean().backward()
        recorder.step()
    table = gradscope.open_run(tmp_path / "run").norms("h2h", "input")
    table = table.pivot(index="lag", columns="sequence", values="norm").sort_index()
    assert error(torch.tensor(table.to_numpy()), against_lag(true)) < 1e-10


class _CutsOutWhereItIsUsed(nn.Module):
    """A GRU by hand that writes ``x[:, t]`` at every use, in two gates of the same form and one of another."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.xz, self.xr, self.xn = (nn.Linear(features, H) for _ in range(3))
        self.hz, self.hr, self.hn = (nn.Linear(H, H) for _ in range(3))
        self.skip = nn.Linear(features, H)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), H)
        for t in range(x.shape[1]):
            z = torch.sigmoid(self.xz(x[:, t]) + self.hz(h))
            r = torch.sigmoid(self.xr(x[:, t]) + self.hr(h))
            n = torch.tanh(self.xn(x[:, t]) + self.hn(r * h)) + self.skip(x[:, t]) * z
            h = (1 - z) * h + z * n
        return h


@pytest.mark.parametrize("computed", [False, True])
def test_a_timestep_that_is_cut_out_several_times_is_one_input(computed: bool) -> None:
    torch.manual_seed(3)
    model = _CutsOutWhereItIsUsed(FEATURES).double()
    x = torch.randn(B, T, FEATURES, dtype=torch.float64, requires_grad=True)
    entering = x * 2 if computed else x

    def loss() -> Tensor:
        return model(x * 2 if computed else x).pow(2).sum()

    (site,) = gradscope.snapshot(model, loss).values()
    (true,) = torch.autograd.grad(model(entering).pow(2).sum(), entering)
    assert site.input.shape == (T, B, FEATURES)
    assert error(site.input, true.transpose(0, 1)) < 1e-12


class SharedInput(nn.Module):
    """A code of the whole sequence is given to every step of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.h2h, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        code, h = self.encode(x.mean(1)), torch.zeros(len(x), H).to(x)
        for _ in range(T):
            h = torch.tanh(self.h2h(h) + code)
        return self.out(h)


def test_an_input_that_serves_all_steps_is_not_said_to_lack_a_graph() -> None:
    model, x = SharedInput().double(), torch.randn(B, T, FEATURES, dtype=torch.float64)
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    (line,) = [line for line in snapshot.coverage if line.reason.startswith("input: ")]
    assert "requires_grad_" not in line.reason
    assert "other steps" in line.reason


def test_a_quantity_that_was_asked_for_and_is_not_there_has_a_line(tmp_path: Path) -> None:
    case = CASES["TwoLinears"]
    model, x = case.build(torch.float64), case.data(torch.float64)
    with gradscope.record(model, tmp_path / "run", quantities=["hidden", "cell", "gates"], every=1) as recorder:
        case.loss(model, x).backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    (site,) = run.sites
    said = {line.reason.partition(": ")[0]: line.reason for line in run.coverage if line.status == "partial"}
    assert set(said) == {"cell", "gates"}
    assert "equations" in said["gates"]
    with pytest.raises(NotRecordedError, match="equations") as refused:
        run.norms(site, "gates")
    assert "Record it" not in str(refused.value)
