"""Twenty recordings of small models, and their arrays laid along the lag by plain numpy: what sentences are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope

T, B, H = 40, 8, 12
#: What is recorded by default, and what the figures of gates, weights and timescales are drawn from.
QUANTITIES = ("hidden", "cell", "input", "direct", "gates", "weight", "activations")


class Net(nn.Module):
    """A core, a readout, and what of the outputs the loss reads."""

    def __init__(self, core: nn.Module, reads: str = "last", packed: bool = False) -> None:
        super().__init__()
        self.core, self.reads, self.packed = core, reads, packed
        self.out = nn.Linear(H * (1 + core.bidirectional), 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            lengths = torch.tensor([T, T, T, 36, 34, 30, 28, 25])
            output, _ = pad_packed_sequence(self.core(pack_padded_sequence(x, lengths))[0])
            return self.out(output[lengths - 1, torch.arange(B)])
        output = self.core(x)[0]
        return self.out({"last": output[-1], "every": output, "middle": output[T // 2], "start": output[2]}[self.reads])


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out = nn.GRU(2, H), nn.GRU(2, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.decoder(x[25:], self.encoder(x[:25])[1])[0][-1])


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(2, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(B, H)
        for x_t in x:
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
        return self.out(h)


def _gate(core: nn.RNNBase, spread: str) -> nn.RNNBase:
    with torch.no_grad():
        drawn = torch.empty(H).uniform_(1, T - 1).log()
        if spread != "chrono":
            drawn = torch.full((H,), float(spread.partition(" in one")[0]))
            drawn[1:] *= "in one" not in spread
        core.bias_ih_l0[H : 2 * H], core.bias_hh_l0[H : 2 * H] = drawn, 0.0
        if spread == "chrono" and isinstance(core, nn.LSTM):
            core.bias_ih_l0[:H], core.bias_hh_l0[:H] = -drawn, 0.0
    return core


def _recurrent(core: nn.RNNBase, gain: float) -> nn.RNNBase:
    with torch.no_grad():
        core.weight_hh_l0.copy_(gain * torch.eye(H))
    return core


@dataclass(frozen=True)
class Recording:
    make: Callable[[], nn.Module]
    steps: int = 24
    every: int = 2
    clip: tuple[str, float] | None = ("norm", 1.0)
    lr: float = 1e-2
    samples: int = 8
    seed: int = 0


RECORDINGS = {
    "rnn": Recording(lambda: Net(nn.RNN(2, H))),
    "lstm": Recording(lambda: Net(nn.LSTM(2, H)), clip=("norm", 50.0)),
    "gru": Recording(lambda: Net(nn.GRU(2, H)), clip=("value", 0.01), steps=40, every=1),
    "one sequence": Recording(lambda: Net(nn.RNN(2, H)), steps=1, clip=None, samples=1),
    "forget bias 1": Recording(lambda: Net(_gate(nn.LSTM(2, H), "1.0")), clip=("norm", 1e-3)),
    "lstm, chrono": Recording(lambda: Net(_gate(nn.LSTM(2, H), "chrono"))),
    "gru, chrono": Recording(lambda: Net(_gate(nn.GRU(2, H), "chrono")), steps=60, every=1),
    "lstm, bias 4 in one unit": Recording(lambda: Net(_gate(nn.LSTM(2, H), "4.0 in one")), lr=1e-4, seed=4),
    "irnn": Recording(lambda: Net(_recurrent(nn.RNN(2, H, nonlinearity="relu"), 1.0)), lr=1e-4, steps=40, seed=9),
    "growing": Recording(lambda: Net(_recurrent(nn.RNN(2, H, nonlinearity="relu"), 1.15)), lr=1e-6, clip=None, seed=10),
    "diverging": Recording(
        lambda: Net(_recurrent(nn.RNN(2, H, nonlinearity="relu"), 1.1)), lr=10.0, clip=None, every=1
    ),
    "stacked, both directions": Recording(lambda: Net(nn.LSTM(2, H, num_layers=2, bidirectional=True))),
    "a loss at every step": Recording(lambda: Net(nn.GRU(2, H), "every")),
    "a loss at every step, level": Recording(lambda: Net(_gate(nn.GRU(2, H), "6.0"), "every")),
    "a loss in the middle": Recording(lambda: Net(nn.LSTM(2, H), "middle")),
    "a loss at the start": Recording(lambda: Net(nn.RNN(2, H), "start")),
    "ragged": Recording(lambda: Net(nn.GRU(2, H), packed=True), clip=("norm", 0.2)),
    "encoder and decoder": Recording(EncoderDecoder),
    "loop": Recording(Loop),
    "units that shut": Recording(lambda: Net(_recurrent(nn.RNN(2, H, nonlinearity="relu"), -1.0)), lr=1e-6),
}


def record(path: Path, of: Recording) -> gradscope.Run:
    torch.manual_seed(of.seed)
    model = of.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=of.lr)
    with gradscope.record(
        model, path, optimizer=optimizer, every=of.every, samples=of.samples, quantities=QUANTITIES
    ) as recorder:
        for _ in range(of.steps):
            x = torch.randn(T, B, 2)
            loss = (model(x) - x.sum(0)[:, :1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if of.clip is not None:
                clip = recorder.clip_grad_norm_ if of.clip[0] == "norm" else recorder.clip_grad_value_
                clip(of.clip[1])
            optimizer.step()
            recorder.log(loss=loss)
    return gradscope.open_run(path)


# --- plain numpy -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """The norms of the last (or first) tenth of the recorded steps, laid along the lag by plain numpy."""

    lags: np.ndarray
    rows: np.ndarray  # (sequence, lag), log10, NaN where there is none
    norms: np.ndarray  # as stored
    steps: np.ndarray  # of each row
    direct: np.ndarray | None
    hidden: np.ndarray | None

    @property
    def curve(self) -> np.ndarray:
        """Chained mean: the mean step between neighbouring lags, over the sequences that have both."""
        present = np.isfinite(self.rows).sum(0) > 0
        if not present.any():
            return np.full(self.lags.size, np.nan)
        first = int(np.argmax(present))
        differences = np.diff(self.rows[:, first:], axis=1)
        known = np.isfinite(differences)
        mean = np.where(known, differences, 0).sum(0) / np.maximum(known.sum(0), 1)
        begin = np.nanmean(self.rows[:, first])
        found = np.full(self.lags.size, np.nan)
        found[first:] = np.concatenate([[begin], begin + np.cumsum(mean)])
        found[np.isfinite(self.rows).sum(0) == 0] = np.nan
        return found

    def value(self, lag: float) -> float:
        return float(self.curve[self.lags == lag][0])

    def slope(self, low: int, high: int, rows: np.ndarray | None = None) -> stats._stats_py.LinregressResult:
        inside = (self.lags >= low) & (self.lags <= high)
        curve = self.curve if rows is None else rows
        known = inside & np.isfinite(curve)
        return stats.linregress(self.lags[known], curve[known])

    def step_slopes(self, low: int, high: int) -> np.ndarray:
        return np.array([
            self.slope(low, high, self.rows[self.steps == step].mean(0)).slope for step in np.unique(self.steps)
        ])  # fmt: skip


def raw_of(run: gradscope.Run, site: str, quantity: str, part: str) -> Raw:
    records, values = run.records(site), run.array(site, quantity)
    usable = (np.isfinite(values) & (values > 0)).reshape(len(values), -1).any(1)
    steps = records["step"].to_numpy()
    known = np.unique(steps[usable]) if usable.any() else np.unique(steps)
    share = max(1, round(known.size / 10))
    wanted = known[-share:] if part == "late" else known[:share]
    at = np.flatnonzero(np.isin(steps, wanted) & (usable | ~usable.any()))
    after = int(records["after"].to_numpy()[at].max()) if "after" in records else 0
    count = values.shape[1]

    def rows(name: str) -> np.ndarray:
        return run.array(site, name)[at].reshape(-1, values.shape[2])

    norms = rows(quantity)
    logs = np.full(norms.shape, np.nan)
    logs[norms > 1e-300] = np.log10(norms[norms > 1e-300])
    logs[~np.isfinite(norms)] = np.nan
    has = run.quantities(site)
    return Raw(
        after + np.arange(values.shape[2]), logs, norms, np.repeat(steps[at], count),
        rows("direct") if "direct" in has else None, rows("hidden") if "hidden" in has else None,
    )  # fmt: skip
