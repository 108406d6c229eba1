"""The model zoo: a recurrent core, an initialisation and a linear readout.

``CELLS`` builds cores, ``INITS`` overwrites their weights, ``MODELS`` names the combinations worth comparing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import SettingError, UnknownNameError
from gradscope.lab.zoo.cells import LRU, CoupledLSTM, MinGRU, PeepholeLSTM
from gradscope.lab.zoo.tasks import Task


class SequenceModel(nn.Module):
    """A recurrent core and a linear readout.

    Parameters
    ----------
    recurrent : nn.Module
        Maps ``(B, T, I)`` to ``((B, T, F), state)``.
    features : int
        F.
    output_size : int
    every_step : bool
        Read out every timestep, ``(B, T, O)``, or the whole sequence, ``(B, O)``.
    """

    def __init__(self, recurrent: nn.Module, features: int, output_size: int, every_step: bool = False) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(features, output_size)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.recurrent(x)
        if not self.every_step:
            output = self._end(output)
        return self.readout(output)

    def _end(self, output: Tensor) -> Tensor:
        if not getattr(self.recurrent, "bidirectional", False):
            return output[:, -1]
        # The reverse direction has read everything when it reaches the first timestep.
        half = output.shape[-1] // 2
        return torch.cat([output[:, -1, :half], output[:, 0, half:]], -1)


class WindowModel(nn.Module):
    """The fully connected baseline: Linear-Tanh-Linear-Tanh-Linear over the whole window ``(B, T, I)``."""

    def __init__(self, inputs: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, output_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CELLS: dict[str, Callable[[int, int], nn.Module]] = {
    "rnn": lambda inputs, hidden: nn.RNN(inputs, hidden, batch_first=True),
    "rnn-relu": lambda inputs, hidden: nn.RNN(inputs, hidden, nonlinearity="relu", batch_first=True),
    "rnn-stacked": lambda inputs, hidden: nn.RNN(inputs, hidden, num_layers=2, batch_first=True),
    "rnn-bidirectional": lambda inputs, hidden: nn.RNN(inputs, hidden, bidirectional=True, batch_first=True),
    "lstm": lambda inputs, hidden: nn.LSTM(inputs, hidden, batch_first=True),
    "gru": lambda inputs, hidden: nn.GRU(inputs, hidden, batch_first=True),
    "peephole": PeepholeLSTM,
    "coupled": CoupledLSTM,
    "mingru": MinGRU,
    "lru": LRU,
}

#: Cells that carry a cell state beside the hidden one.
WITH_CELL_STATE = ("lstm", "peephole", "coupled")


@dataclass(frozen=True)
class Init:
    """An initialisation: what it does to a core, given the longest lag, and which cells it is meant for."""

    apply: Callable[[Any, int], None]
    cells: tuple[str, ...]
    description: str


def _keep(core: Any, length: int) -> None:
    """Leave torch's default."""


@torch.no_grad()
def _retain_bias_one(core: Any, length: int) -> None:
    """The gate that keeps the old state, second in both of PyTorch's orders: f of an LSTM, z of a GRU."""
    hidden = core.hidden_size
    # PyTorch adds two bias vectors: 1 in both would make the sum 2, another initialisation altogether.
    core.bias_ih_l0[hidden : 2 * hidden] = 1.0
    core.bias_hh_l0[hidden : 2 * hidden] = 0.0


@torch.no_grad()
def _chrono(core: Any, length: int) -> None:
    hidden = core.hidden_size
    spread = torch.log(torch.empty(hidden).uniform_(1.0, max(length - 1.0, 1.0)))
    core.bias_hh_l0[: 2 * hidden] = 0.0
    if core.mode == "LSTM":
        core.bias_ih_l0[hidden : 2 * hidden] = spread
        core.bias_ih_l0[:hidden] = -spread
    else:
        # In PyTorch's GRU, z keeps the old state: it is the forget gate, with 1 - z as its input gate.
        core.bias_ih_l0[hidden : 2 * hidden] = spread


@torch.no_grad()
def _orthogonal(core: Any, length: int) -> None:
    nn.init.orthogonal_(core.weight_hh_l0)


@torch.no_grad()
def _identity(core: Any, length: int) -> None:
    nn.init.eye_(core.weight_hh_l0)
    nn.init.normal_(core.weight_ih_l0, std=0.001)
    nn.init.zeros_(core.bias_ih_l0)
    nn.init.zeros_(core.bias_hh_l0)


INITS: dict[str, Init] = {
    "default": Init(_keep, tuple(CELLS), "PyTorch's default"),
    "forget1": Init(_retain_bias_one, ("lstm",), "forget bias 1, b_ih + b_hh (Jozefowicz et al. 2015)"),
    "update1": Init(_retain_bias_one, ("gru",), "update bias 1, b_ih + b_hh: the forget bias of a GRU"),
    "chrono": Init(_chrono, ("lstm", "gru"), "timescales spread up to the sequence's length (Tallec & Ollivier 2018)"),
    "orthogonal": Init(_orthogonal, ("rnn",), "orthogonal recurrent matrix (Saxe et al. 2014)"),
    "identity": Init(_identity, ("rnn-relu",), "identity recurrent matrix, the IRNN (Le et al. 2015)"),
}

#: Name to cell and initialisation; ``window`` has no recurrence.
MODELS: dict[str, tuple[str, str]] = {
    "window": ("window", "default"),
    "rnn": ("rnn", "default"),
    "rnn-orthogonal": ("rnn", "orthogonal"),
    "irnn": ("rnn-relu", "identity"),
    "rnn-stacked": ("rnn-stacked", "default"),
    "rnn-bidirectional": ("rnn-bidirectional", "default"),
    "lstm": ("lstm", "default"),
    "lstm-forget1": ("lstm", "forget1"),
    "lstm-chrono": ("lstm", "chrono"),
    "peephole": ("peephole", "default"),
    "coupled": ("coupled", "default"),
    "gru": ("gru", "default"),
    "gru-update1": ("gru", "update1"),
    "gru-chrono": ("gru", "chrono"),
    "mingru": ("mingru", "default"),
    "lru": ("lru", "default"),
}


def build_model(name: str, task: Task, hidden_size: int = 64, *, seed: int = 0) -> nn.Module:
    """Build a member of ``MODELS`` for a task.

    The same seed gives the same weights, whatever was drawn before; the global random state is left as it was.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    return assemble(*MODELS[name], task, hidden_size, seed=seed)


def assemble(cell: str, init: str, task: Task, hidden_size: int = 64, *, seed: int = 0) -> nn.Module:
    """Build a model of a cell and an initialisation.

    Raises
    ------
    UnknownNameError
        If there is no such cell or initialisation.
    SettingError
        If the initialisation is not meant for the cell, or the size is not positive.
    """
    if cell != "window" and cell not in CELLS:
        raise UnknownNameError("cell", cell, [*CELLS, "window"])
    if init not in INITS:
        raise UnknownNameError("init", init, INITS)
    if init != "default" and cell not in INITS[init].cells:
        raise SettingError(f"init {init!r} is for {', '.join(INITS[init].cells)}, not for {cell!r}.")
    if hidden_size < 1:
        raise SettingError(f"hidden size {hidden_size} must be at least 1.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cell == "window":
            outputs = task.output_size * (task.length if task.every_step else 1)
            return _shaped(WindowModel(task.length * task.input_size, hidden_size, outputs), task)
        core = CELLS[cell](task.input_size, hidden_size)
        INITS[init].apply(core, task.length)
        features = hidden_size * (2 if getattr(core, "bidirectional", False) else 1)
        return SequenceModel(core, features, task.output_size, task.every_step)


def _shaped(model: WindowModel, task: Task) -> nn.Module:
    if task.every_step:
        model.layers.append(nn.Unflatten(-1, (task.length, task.output_size)))
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of trained scalars."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)
