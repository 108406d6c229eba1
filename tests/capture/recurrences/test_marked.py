"""A state that the user names: one line in the loop, which wins over what would be found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradscope
from tests.capture.recurrences.agreement import against_lag, error, norms_of
from tests.capture.recurrences.cases import FEATURES, B, H, T
from tests.capture.recurrences.truth import note, true_adjoints


class Marked(nn.Module):
    """An LSTM of two linear layers whose loop names what it wants to see."""

    def __init__(self, mark: Callable[[str, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.i2g, self.h2g, self.out = nn.Linear(FEATURES, 4 * H), nn.Linear(H, 4 * H), nn.Linear(H, 1)
        self.mark = mark or gradscope.state

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            i, f, g, o = (self.i2g(x_t) + self.h2g(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = self.mark("memory", o.sigmoid() * c.tanh())
            note(h=h, c=c)
        return self.out(h)


def _data(seed: int = 1) -> Tensor:
    return torch.randn(B, T, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _nothing(_: str, state: Tensor) -> Tensor:
    return state


def test_a_marked_state_is_the_site_of_its_name() -> None:
    model, x = Marked().double(), _data()
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())["h"]
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    assert snapshot.sites == ("memory",)
    assert error(snapshot["memory"].hidden, truth) < 1e-10


def test_two_names_are_two_sites() -> None:
    class Both(Marked):
        def forward(self, x: Tensor) -> Tensor:
            h = c = torch.zeros(len(x), H).to(x)
            for x_t in x.unbind(1):
                i, f, g, o = (self.i2g(x_t) + self.h2g(h)).chunk(4, 1)
                c = gradscope.state("c", f.sigmoid() * c + i.sigmoid() * g.tanh())
                h = gradscope.state("h", o.sigmoid() * c.tanh())
                note(h=h, c=c)
            return self.out(h)

    model, x = Both().double(), _data()
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    assert set(snapshot.sites) == {"h", "c"}
    for name in "hc":
        assert error(snapshot[name].hidden, truth[name]) < 1e-10


def test_what_reaches_a_marked_state_from_above_is_apart() -> None:
    class EachStep(Marked):
        def forward(self, x: Tensor) -> Tensor:
            h, outputs = torch.zeros(len(x), H).to(x), []
            for x_t in x.unbind(1):
                h = self.mark("h", torch.tanh(self.i2g(x_t)[:, :H] + self.h2g(h)[:, :H]))
                outputs.append(self.out(h))
            return torch.cat(outputs, 1)

    marked, x = EachStep().double(), _data()
    loose = EachStep(_nothing).double()
    loose.load_state_dict(marked.state_dict())
    found, named = (gradscope.snapshot(m, lambda m=m: m(x).pow(2).mean()) for m in (loose, marked))
    (site,) = found.sites
    assert torch.equal(named["h"].direct, found[site].direct)
    assert torch.equal(named["h"].hidden, found[site].hidden)


@pytest.mark.parametrize("through", ["the package", "the recorder"])
def test_a_run_has_the_marked_state(through: str, tmp_path: Path) -> None:
    model, x, marks = Marked().double(), _data(), []
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())["h"]
    with gradscope.record(model, tmp_path / "run", every=2, samples=None) as recorder:
        mark = gradscope.state if through == "the package" else recorder.state

        def watched(name: str, state: Tensor) -> Tensor:
            marks.append(mark(name, state) is state)
            return state

        model.mark = watched
        for _ in range(3):
            model(x).pow(2).mean().backward()
            recorder.step()
    assert len(marks) == 3 * T
    assert all(marks), "the same tensor comes back"
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert run.sites == ("memory",)
    assert run.records("memory")["step"].tolist() == [0, 2]
    lags, values = norms_of(run, "memory", 0)[0]["hidden"]
    assert lags == list(range(T))
    assert error(values, against_lag(truth)) < 1e-10


class MarkedCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(FEATURES, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = gradscope.state("memory", self.cell(x_t, h))
        return h


def test_a_state_of_a_known_cell_stays_at_its_site_and_the_coverage_says_so(tmp_path: Path) -> None:
    model, x = MarkedCell().double(), _data()
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model(x).pow(2).mean().backward()
        recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    for sites, coverage in ((snapshot.sites, snapshot.coverage), (run.sites, run.coverage)):
        assert tuple(sites) == ("cell",)
        (line,) = [line for line in coverage if line.site == "memory"]
        assert "'cell'" in line.reason


def test_outside_of_recording_a_mark_does_nothing() -> None:
    state = torch.randn(2, 3, requires_grad=True) * 2
    assert gradscope.state("h", state) is state
    assert not state._backward_hooks
    state.sum().backward()


class Confused(Marked):
    """One name for two things."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return self.mark("memory", out.expand(len(x), 3)) * 1.0


class WithoutBatch(Marked):
    def forward(self, x: Tensor) -> Tensor:
        return self.mark("memory", super().forward(x).mean())


@pytest.mark.filterwarnings("ignore::gradscope.capture.GradscopeWarning")
@pytest.mark.parametrize(("build", "reason"), [(Confused, "shape"), (WithoutBatch, "shape|batch")])
def test_a_name_for_things_of_different_shape_is_refused_in_words(build: Any, reason: str, tmp_path: Path) -> None:
    def train(run: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = build(_nothing if run is None else gradscope.state).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = None if run is None else gradscope.record(model, run, optimizer=optimizer, every=1)
        for seed in range(3):
            model(_data(seed)).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if recorder is not None:
            recorder.close()
        return [p.detach().clone() for p in model.parameters()]

    alone, recorded = train(None), train(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(alone, recorded, strict=True))
    run = gradscope.open_run(tmp_path / "run")
    assert run.lost == {}
    assert "memory" not in run.sites
    lines = [line for line in run.coverage if line.site == "memory"]
    assert lines
    assert all(line.status == "missing" for line in lines)
    assert all(any(word in line.reason for word in reason.split("|")) for line in lines)
