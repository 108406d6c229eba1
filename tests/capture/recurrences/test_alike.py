"""What is found depends on what the graph shows, never on values, and never on another graph that was seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradscope
from tests.capture.recurrences.agreement import against_lag, error, norms_of
from tests.capture.recurrences.cases import FEATURES, B, H
from tests.capture.recurrences.loops import TwoLinears
from tests.capture.recurrences.neurons import LiquidGivenItsInputEachTime
from tests.capture.recurrences.truth import note, true_adjoints


class Concatenating(nn.Module):
    """The tutorial's cell, with a loss on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES + H, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.mix(torch.cat((x[:, t], h), 1)))
            note(h=h)
        return h


class Elementwise(nn.Module):
    """Nothing trainable lies between two states."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(FEATURES, H)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for t in range(x.shape[1]):
            h = torch.tanh(0.9 * h + self.enter(x[:, t]))
            note(h=h)
        return h


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


STEPS = 12
DATA: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(B, STEPS, FEATURES, dtype=torch.float64),
    "one vector, again and again": lambda: _drawn(B, 1, FEATURES).repeat(1, STEPS, 1),
    "one vector, expanded": lambda: _drawn(B, 1, FEATURES).expand(B, STEPS, FEATURES),
    "every vector twice": lambda: _drawn(B, STEPS // 2, FEATURES).repeat_interleave(2, 1),
    "every vector four times": lambda: _drawn(B, STEPS // 4, FEATURES).repeat_interleave(4, 1),
    "padded": lambda: torch.cat((_drawn(B, 2, FEATURES), torch.zeros(B, STEPS - 2, FEATURES).double()), 1),
}


@pytest.mark.parametrize("build", [TwoLinears, Concatenating, Elementwise])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_that_repeats_is_as_many_steps_as_there_are(data: Callable[[], Tensor], build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = build().double(), data()
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())["h"]
    (site,) = gradscope.snapshot(model, lambda: model(x).pow(2).mean()).values()
    assert len(truth) == STEPS
    assert error(site.hidden, truth) < 1e-10


class Chosen(nn.Module):
    """A loop over slices of an embedding that are chosen by number; nothing trainable lies in it."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.enter, self.order = nn.Linear(FEATURES, H), order

    def forward(self, x: Tensor) -> Tensor:
        entered, h = self.enter(x), torch.zeros(len(x), H).to(x)
        for t in self.order:
            h = torch.tanh(0.9 * h + entered[:, t])
            note(h=h)
        return h


ORDERS = {"each": range(9), "one": (0,) * 9, "each three times": (0, 0, 0, 1, 1, 1, 2, 2, 2)}


def _sites(run: gradscope.Run, k: int) -> dict[str, tuple[list[int], Tensor]]:
    found = {}
    for site in run.sites:
        table = run.norms(site, "hidden")
        if (table.step == k).any():
            found[site] = norms_of(run, site, k)[0]["hidden"]
    return found


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("second", ORDERS)
def test_slices_are_told_apart_in_every_pass(first: str, second: str, tmp_path: Path) -> None:
    """Graphs that differ in which slices are taken are not taken for each other."""

    def found(*orders: str) -> dict[str, tuple[list[int], Tensor]]:
        torch.manual_seed(0)
        model, x = Chosen(()).double(), _drawn(B, 9, FEATURES)
        path = tmp_path / "-".join(("run", *orders)).replace(" ", "_")
        with gradscope.record(model, path, every=1, samples=None) as recorder:
            for order in orders:
                model.order = ORDERS[order]
                model(x).pow(2).mean().backward()
                recorder.step()
        return _sites(gradscope.open_run(path), len(orders) - 1)

    alone, after = found(second), found(first, second)
    assert {site: lags for site, (lags, _) in after.items()} == {site: lags for site, (lags, _) in alone.items()}
    for site, (_, values) in alone.items():
        assert torch.equal(after[site][1], values)


def test_a_solver_and_a_loop_with_as_many_links_are_told_apart(tmp_path: Path) -> None:
    """Six applications to each of three timesteps, then one application to each of eighteen: graphs of one form."""

    class Either(LiquidGivenItsInputEachTime):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] == 3:
                return super().forward(x)
            h = torch.zeros(len(x), H).to(x)
            for t in range(x.shape[1]):
                f = torch.sigmoid(self.enter(x[:, t]) + self.field(h))
                h = (h + f * self.reversal / 6) / (1 + (self.leak + f) / 6)
                note(h=h)
            return self.out(h)

    torch.manual_seed(0)
    model = Either().double()
    data = [_drawn(B, steps, FEATURES) for steps in (3, 18, 3)]
    with gradscope.record(model, tmp_path / "run", every=1, samples=None) as recorder:
        for x in data:
            model(x).pow(2).mean().backward()
            recorder.step()
    run = gradscope.open_run(tmp_path / "run")
    (site,) = run.sites
    for k, x in enumerate(data):
        truth = true_adjoints(model, lambda x=x: model(x).pow(2).mean())["h"]
        lags, values = norms_of(run, site, k)[0]["hidden"]
        assert lags == list(range(x.shape[1]))
        assert error(values, against_lag(truth)) < 1e-10
