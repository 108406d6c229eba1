"""The first gradient that is not finite is named with its step and the place where it entered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.reading.remarks import first_nonfinite


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(2, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][-1])


def _train(run_dir: Path, spoil: str, at: int = 3) -> gradscope.Run:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradscope.record(model, run_dir, optimizer=optimizer, every=1):
        for k in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3, 2)).pow(2).mean()
            if k == at and spoil == "loss":
                loss = loss * float("inf")
            loss.backward()
            if k == at and spoil == "parameter":
                model.out.bias.grad.fill_(float("inf"))  # type: ignore[union-attr]
            optimizer.step()
    return gradscope.open_run(run_dir)


def test_a_finite_run_has_none(tmp_path: Path) -> None:
    assert first_nonfinite(_train(tmp_path / "run", "")) == ""


@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_enters_from_above_at_the_last_step(at: int, tmp_path: Path) -> None:
    said = first_nonfinite(_train(tmp_path / "run", "loss", at))
    assert said.startswith(
        f"The first recorded gradient that is not finite is at step {at}: rnn/l0 (hidden), 3 sequences"
    )
    assert said.endswith("it comes from above, at the last step.")


def test_a_parameter_whose_gradient_alone_is_infinite_is_named(tmp_path: Path) -> None:
    said = first_nonfinite(_train(tmp_path / "run", "parameter"))
    assert said == "The first recorded gradient that is not finite is at step 3: in the gradient of out.bias."
