"""What goes on from step to step and is recorded in no site has a line in the coverage, and nothing else has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import GradscopeError
from tests.capture.recurrences.agreement import error
from tests.capture.recurrences.cases import FEATURES, B, H
from tests.capture.recurrences.models import CASES
from tests.capture.recurrences.truth import note, true_adjoints

SAID = "beside the recorded states"


class LeakyBelow(nn.Module):
    """A layer of fixed decay below another, fed with the output or, every third time, the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.enter, self.recur = nn.Linear(FEATURES + 2, H), nn.Linear(H, H), nn.Linear(H, H)
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        low = h = torch.zeros(len(x), H).to(x)
        y = torch.zeros(len(x), 2).to(x)
        for t, x_t in enumerate(x.unbind(1)):
            low = 0.9 * low + self.leaky(torch.cat((x_t, y), 1))
            h = torch.relu(self.enter(low) + self.recur(h))
            note(low=low, h=h)
            y = x_t[:, :2] if t % 3 == 1 else self.out(h)
        return self.out(h)


class SlowTwice(nn.Module):
    """Clockwork of two speeds, whose slow part is updated twice in all."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.fast, self.slow, self.out = (
            nn.Linear(FEATURES, H),
            nn.Linear(2 * H, H),
            nn.Linear(2 * H, H),
            nn.Linear(2 * H, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = slow = torch.zeros(len(x), H).to(x)
        for t, x_t in enumerate(x.unbind(1)):
            if t in (2, 5):
                slow = torch.tanh(self.slow(torch.cat((h, slow), 1)))
            h = torch.tanh(self.enter(x_t) + self.fast(torch.cat((h, slow), 1)))
            note(h=h, slow=slow)
        return self.out(torch.cat((h, slow), 1))


@pytest.mark.parametrize(("build", "steps", "owner"), [(LeakyBelow, 5, "leaky"), (SlowTwice, 9, "slow")])
def test_a_state_that_is_not_followed_is_said(build: type[nn.Module], steps: int, owner: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(B, steps, FEATURES, dtype=torch.float64)
    truth = true_adjoints(model, lambda: model(x).pow(2).mean())
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    with gradscope.record(model, tmp_path / "run", every=1) as recorder:
        model(x).pow(2).mean().backward()
        recorder.step()
    (site,) = snapshot.values()
    assert error(site.hidden, truth["h"]) < 1e-10
    for coverage in (snapshot.coverage, gradscope.open_run(tmp_path / "run").coverage):
        (line,) = [line for line in coverage if SAID in line.reason]
        assert line.status == "partial"
        assert repr(owner) in line.reason
        assert "gradscope.state" in line.reason


def test_no_other_model_has_such_a_line() -> None:
    said = set()
    for name, case in CASES.items():
        model, x = case.build(torch.float64), case.data(torch.float64)
        try:
            snapshot = gradscope.snapshot(model, lambda model=model, x=x, case=case: case.loss(model, x))
        except GradscopeError:
            continue
        if any(SAID in line.reason for line in snapshot.coverage):
            said.add(name)
    # A slow part that is not followed, and an output that goes on where it is fed back.
    assert said == {"Clockwork", "AttentionFedAtTimes"}
