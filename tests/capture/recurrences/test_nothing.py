"""Where nothing recurs, nothing is found; where something is hidden, that is said, with the reason and what to do."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

import gradscope
from gradscope.capture import GradscopeWarning
from gradscope.errors import NothingToRecordError
from tests.capture.recurrences.agreement import against_lag, error, norms_of
from tests.capture.recurrences.cells import HandsOnAPair
from tests.capture.recurrences.kernels import SCRIPTED
from tests.capture.recurrences.loops import TwoLinears
from tests.capture.recurrences.truth import true_adjoints


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x))


def cnn() -> nn.Module:
    channels = (3, 4, 4, 6, 6)
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(channels)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


def mlp() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(10) for layer in (nn.Linear(8, 8), nn.Tanh())))


class Residual(nn.Module):
    """The same class in every block, but no weight twice."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.ModuleList([nn.Linear(5, 5) for _ in range(4)])
        self.channels = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + F.gelu(tokens(x.transpose(1, 2))).transpose(1, 2)
            x = x + F.gelu(channels(x))
        return x.mean(1)


class BagOfSteps(nn.Module):
    """A weight used at every timestep, side by side, and a running sum of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        for x_t in x.unbind(1):
            total = total + torch.tanh(self.embed(x_t))
        return self.out(total)


class TiedLanguageModel(nn.Module):
    """The embedding is the output layer's weight: used twice, once above the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 8), nn.Sequential(Residual(), Residual())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.embed(x.flatten(1).argsort(1) % 11)) @ self.embed.weight.T


class SumOfLosses(nn.Module):
    """A loss for each step of a convolution over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, loss = torch.tanh(self.conv(x.transpose(1, 2))), 0.0
        for t in range(y.shape[2]):
            loss = loss + self.out(y[:, :, t]).pow(2).mean()
        return torch.as_tensor(loss)


class SharedActivation(nn.Module):
    """One learned slope in every layer of a network whose layers are all different."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.slope = nn.ModuleList([nn.Linear(8, 8) for _ in range(6)]), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.slope(layer(x))
        return x


class ConditionedBlocks(nn.Module):
    """A diffusion model's blocks: all are told the same time, each by weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([Residual() for _ in range(5)])
        self.shifts = nn.ModuleList([nn.Linear(8, 8) for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        time = F.silu(self.time(torch.ones_like(x)))
        for block, shift in zip(self.blocks, self.shifts, strict=True):
            x = block(x + shift(time))
        return x


class SharedPositions(nn.Module):
    """One table of relative positions for all layers of attention (Raffel et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5, 5))
        self.qkv, self.out = (nn.ModuleList([nn.Linear(8, n) for _ in range(5)]) for n in (24, 8))

    def forward(self, x: Tensor) -> Tensor:
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).chunk(3, -1)
            x = x + out(torch.softmax(q @ k.transpose(1, 2) + self.bias, -1) @ v)
        return x


class DiscountedLosses(SumOfLosses):
    """A return: the sum so far is a number that shrinks, and no state of a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        y, loss = torch.tanh(self.conv(x.transpose(1, 2))), torch.zeros(())
        for t in range(y.shape[2]):
            loss = 0.9 * loss + self.out(y[:, :, t]).pow(2).mean()
        return loss


class ParallelScan(nn.Module):
    """A linear recurrence over all timesteps at once (Heinsen 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        decay = F.logsigmoid(self.gate(x)).cumsum(1)
        return (decay + (F.logsigmoid(self.value(x)) - decay).logcumsumexp(1)).exp()


class LogSpaceScan(nn.Module):
    """minGRU at once (Feng et al. 2024, appendix B.3): gates are used in several places, one above the other."""

    def __init__(self) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
        log_values = -F.softplus(-gate) + torch.where(hidden >= 0, (F.relu(hidden) + 0.5).log(), -F.softplus(-hidden))
        decay = (-F.softplus(gate)).cumsum(1)
        return (decay + (log_values - decay).logcumsumexp(1)).exp()


TOKENS, IMAGE, ROW = (3, 5, 8), (3, 3, 6, 6), (3, 8)
FEEDFORWARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Transformer encoder": (Transformer, TOKENS),
    "CNN": (cnn, IMAGE),
    "ten-layer MLP": (mlp, ROW),
    "ResNet blocks": (lambda: nn.Sequential(*(Residual() for _ in range(6))), ROW),
    "MLP mixer": (Mixer, TOKENS),
    "bag of steps": (BagOfSteps, TOKENS),
    "tied embedding": (TiedLanguageModel, TOKENS),
    "sum of losses": (SumOfLosses, TOKENS),
    "shared activation": (SharedActivation, ROW),
    "conditioned blocks": (ConditionedBlocks, ROW),
    "shared positions": (SharedPositions, TOKENS),
    "discounted losses": (DiscountedLosses, TOKENS),
    "parallel scan": (ParallelScan, TOKENS),
    "scan in log space": (LogSpaceScan, TOKENS),
}
nothing_recurs = pytest.mark.parametrize(("build", "shape"), FEEDFORWARD.values(), ids=FEEDFORWARD)


@nothing_recurs
def test_a_snapshot_says_that_nothing_recurs(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = build(), torch.randn(shape)
    with pytest.raises(NothingToRecordError, match="recur"):
        gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    assert all(p.grad is None for p in model.parameters())


@nothing_recurs
def test_a_run_ends_with_one_warning_and_a_line_of_coverage(
    build: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    alone = _five_steps(build, shape, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorded = _five_steps(build, shape, tmp_path / "run")
    assert [w.category for w in caught] == [gradscope.capture.GradscopeWarning]
    assert "recur" in str(caught[0].message)
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == ()
    assert run.n_records == 0
    assert run.lost == {}
    assert run.coverage
    assert all(line.status == "missing" and line.reason for line in run.coverage)
    assert all(torch.equal(a, b) for a, b in zip(alone, recorded, strict=True))


def _five_steps(build: Callable[[], nn.Module], shape: tuple[int, ...], run: Path | None) -> list[Tensor]:
    torch.manual_seed(1)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = None if run is None else gradscope.record(model, run, optimizer=optimizer, every=1, samples=None)
    for _ in range(5):
        model(torch.randn(shape)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if recorder is not None:
        recorder.close()
    return [p.detach().clone() for p in model.parameters()]


# -- what is there and cannot be seen ----------------------------------------------------------------------------------


def _said(lines: list[gradscope.schema.Coverage], *patterns: str) -> bool:
    """Whether one line that is not plainly 'recorded' gives the reason and the next step."""
    return any(line.status != "recorded" and all(re.search(p, line.reason) for p in patterns) for line in lines)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_scripted_loop_is_recorded_until_its_executor_hides_it(tmp_path: Path) -> None:
    model, twin, x = SCRIPTED.build(torch.float64), SCRIPTED.build(torch.float64), SCRIPTED.data(torch.float64)
    truth = true_adjoints(twin, lambda: twin(x).pow(2).mean())
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        for _ in range(5):
            model(x).pow(2).mean().backward()
            recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    (site,) = run.sites
    stored = set(run.records(site).step)
    assert 0 in stored
    for step in stored:  # at its second call the first timesteps are hidden already: all of it, or nothing
        assert error(norms_of(run, site, step)[0]["hidden"][1], against_lag(truth["h"])) < 1e-10
    assert stored < set(range(5)), "nothing is stored of a step that could not be seen"
    assert _said(run.coverage, "TorchScript", "PYTORCH_JIT=0|first call")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_snapshot_of_a_scripted_loop_at_its_fifth_call_says_what_hides_it() -> None:
    model, x = SCRIPTED.build(torch.float64), SCRIPTED.data(torch.float64)
    for _ in range(4):
        model(x).pow(2).mean().backward()
    with pytest.raises(NothingToRecordError, match=r"TorchScript.*(PYTORCH_JIT=0|first call)"):
        gradscope.snapshot(model, lambda: model(x).pow(2).mean())


class Tree(nn.Module):
    """Socher et al. 2011: pairs are combined into one, down to the root."""

    def __init__(self) -> None:
        super().__init__()
        self.combine = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        nodes = list(x.unbind(1))
        while len(nodes) > 1:
            pairs = zip(nodes[::2], nodes[1::2], strict=True)
            nodes = [torch.tanh(self.combine(torch.cat(pair, 1))) for pair in pairs]
        return nodes[0]


def test_a_tree_is_no_sequence_and_is_named_as_the_nearest_miss(tmp_path: Path) -> None:
    model = Tree()
    with pytest.raises(NothingToRecordError, match="tree"):
        gradscope.snapshot(model, lambda: model(torch.randn(3, 16, 8)).pow(2).mean())

    def train() -> None:
        with gradscope.record(model, tmp_path / "run", every=1) as recorder:
            model(torch.randn(3, 16, 8)).pow(2).mean().backward()
            recorder.step()

    _with_warnings_let_be(train)
    run = gradscope.open_run(tmp_path / "run")
    assert run.sites == ()
    assert any(line.status == "missing" and "tree" in line.reason and "combine" in line.site for line in run.coverage)


def _with_warnings_let_be(train: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradscopeWarning)
        # torch's own, where torch.compile goes on with states in the middle of a step.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        train()


@pytest.mark.parametrize("build", [TwoLinears, HandsOnAPair])
def test_models_side_by_side_under_vmap(build: Any, tmp_path: Path) -> None:
    """An ensemble: the parameters that get gradient are stacks, and no module was called outside vmap."""
    torch.manual_seed(0)
    model = build().double()
    stacked, buffers = stack_module_state([model, copy.deepcopy(model)])
    x = torch.randn(4, 9, 3, dtype=torch.float64)

    def train() -> None:
        with gradscope.record(model, tmp_path / "run", every=1) as recorder:
            vmap(lambda p, b: functional_call(model, (p, b), (x,)))(stacked, buffers).pow(2).mean().backward()
            recorder.step()

    _with_warnings_let_be(train)
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert all(p.grad is not None for p in stacked.values())
    assert not any("not called" in line.reason for line in run.coverage)
    assert _said(run.coverage, "vmap|torch.func|functional_call")


@pytest.mark.parametrize("build", [TwoLinears, HandsOnAPair])
def test_gradients_of_each_sample_by_torch_func(build: Any, tmp_path: Path) -> None:
    """As differentially private training makes them: the pass runs inside torch.func."""
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(4, 9, 3, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, parameters, (one[None],)).pow(2).mean()

    def gradients() -> dict[str, Tensor]:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return vmap(grad(loss), (None, 0))(parameters, x)

    alone = gradients()
    recorded = {}

    def train() -> None:
        with gradscope.record(model, tmp_path / "run", every=1) as recorder:
            recorded.update(gradients())
            recorder.step()

    _with_warnings_let_be(train)
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert all(torch.equal(alone[name], recorded[name]) for name in alone)
    assert not any("not called" in line.reason for line in run.coverage)
    assert _said(run.coverage, "torch.func|vmap|backward")


@pytest.mark.slow
@pytest.mark.parametrize("build", [TwoLinears, HandsOnAPair])
def test_a_compiled_model_is_one_opaque_node(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    compiled, x = torch.compile(model, backend="aot_eager"), torch.randn(4, 9, 3)

    def train() -> None:
        with gradscope.record(model, tmp_path / "run", every=1) as recorder:
            for _ in range(2):
                compiled(x).pow(2).mean().backward()
                recorder.step()

    _with_warnings_let_be(train)
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    if not run.sites:  # recording may also have kept torch.compile from compiling: then it was seen
        assert _said(run.coverage, "compile", "set_stance|disable|eager|without")


# -- passes through passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [TwoLinears, HandsOnAPair])
def test_a_gradient_penalty_on_a_loop(build: Any, tmp_path: Path) -> None:
    """The graph of the second pass holds the first pass too: there the loop runs forwards and backwards."""

    def train(run: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = build().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = None if run is None else gradscope.record(model, run, optimizer=optimizer, every=1, samples=None)
        for seed in range(3):
            x = torch.randn(4, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            x.requires_grad_()
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            (out.pow(2).mean() + slope.pow(2).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return [p.detach().clone() for p in model.parameters()]

    alone = train(None)
    recorded: list[Tensor] = []
    _with_warnings_let_be(lambda: recorded.extend(train(tmp_path / "run")))
    assert all(torch.equal(a, b) for a, b in zip(alone, recorded, strict=True))
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert run.coverage
    for site in run.sites:
        for quantity in set(run.quantities(site)) & {"hidden", "cell"}:
            assert run.norms(site, quantity).lag.max() == 8, "no step is counted twice"
