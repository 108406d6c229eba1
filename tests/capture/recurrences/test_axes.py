"""Which axis of a state is the batch, where its rows are made of two: read from attention, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.errors import NothingToRecordError

SIZE, BATCH, TIME, DEPTH = 8, 3, 7, 4


class TiedEncoder(nn.Module):
    """One layer of a Transformer, applied again and again (Lan et al. 2020)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(SIZE, 2, 16, dropout=0.0, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(DEPTH):
            x = self.layer(x)
        return x


class TiedAttention(nn.Module):
    """Attention by hand, with two products."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first, self.qkv, self.out = batch_first, nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(DEPTH):
            q, k, v = self.qkv(x).chunk(3, -1)
            if not self.batch_first:
                q, k, v = (part.transpose(0, 1) for part in (q, k, v))
            mixed = torch.softmax(q @ k.transpose(1, 2), -1) @ v
            x = x + torch.tanh(self.out(mixed if self.batch_first else mixed.transpose(0, 1)))
        return x


@pytest.mark.parametrize("build", [TiedEncoder, TiedAttention])
def test_the_batch_is_what_attention_keeps_apart(build: Callable[[bool], nn.Module]) -> None:
    torch.manual_seed(0)
    first = build(True).double()
    second = build(False).double()
    second.load_state_dict(first.state_dict())
    x = torch.randn(BATCH, TIME, SIZE, dtype=torch.float64)
    (expected,) = gradscope.snapshot(first, lambda: first(x).pow(2).mean()).values()
    (found,) = gradscope.snapshot(second, lambda: second(x.transpose(0, 1)).pow(2).mean()).values()
    assert found.hidden.shape == (DEPTH, BATCH, TIME, SIZE)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-10, atol=1e-18)


class TiedMLP(nn.Module):
    """Nothing brings the rows together: any axis may be the batch."""

    def __init__(self, mark: Callable[[str, Tensor], Tensor] = lambda _, state: state) -> None:
        super().__init__()
        self.layer, self.mark = nn.Linear(SIZE, SIZE), mark

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(DEPTH):
            x = self.mark("depth", torch.tanh(self.layer(x)))
        return x


def test_rows_of_time_and_batch_that_nothing_tells_apart_are_refused() -> None:
    model, x = TiedMLP().double(), torch.randn(TIME, BATCH, SIZE, dtype=torch.float64)
    with pytest.raises(NothingToRecordError, match=r"which axis of its state is the batch.*gradscope\.state"):
        gradscope.snapshot(model, lambda: model(x).pow(2).mean())


def test_a_mark_says_that_the_first_axis_is_the_batch() -> None:
    model, x = TiedMLP(gradscope.state).double(), torch.randn(BATCH, TIME, SIZE, dtype=torch.float64)
    snapshot = gradscope.snapshot(model, lambda: model(x).pow(2).mean())
    assert snapshot["depth"].hidden.shape == (DEPTH, BATCH, TIME, SIZE)


def test_a_loop_over_time_keeps_the_batch_first() -> None:
    """Beams, or slots, of each sequence: time is in the loop, so it is in no state."""
    recur, enter = nn.Linear(SIZE, SIZE).double(), nn.Linear(SIZE, SIZE).double()

    class Beams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recur, self.enter = recur, enter

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(BATCH, 4, SIZE)
            for x_t in x.unbind(1):
                h = torch.tanh(self.recur(h) + self.enter(x_t).unsqueeze(1))
            return h

    model, x = Beams(), torch.randn(BATCH, TIME, SIZE, dtype=torch.float64)
    (site,) = gradscope.snapshot(model, lambda: model(x).pow(2).mean()).values()
    assert site.hidden.shape == (TIME, BATCH, 4, SIZE)
