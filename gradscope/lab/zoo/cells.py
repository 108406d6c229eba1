"""Recurrent cells that torch.nn does not have, written as ordinary modules.

Each has ``step(x_t, state) -> state``, where the state is ``h`` or ``(h, c)``, and
``forward(x, state=None) -> (output, state)`` with ``x`` ``(B, T, I)`` and ``output`` ``(B, T, H)``, the hidden states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.capture import register_adapter
from gradscope.errors import SettingError

State = Tensor | tuple[Tensor, Tensor]


class LoopedCell(nn.Module):
    """A recurrence as a Python loop over :meth:`step`.

    Parameters
    ----------
    input_size, hidden_size : int
    """

    gates: tuple[str, ...] = ()
    has_cell_state = False

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.batch_first = True

    def step(self, x: Tensor, state: Any) -> Any:
        """Advance by one timestep: ``x`` is ``(B, I)``, the state ``h`` or ``(h, c)`` of ``(B, H)`` each."""
        raise NotImplementedError

    def initial_state(self, x: Tensor) -> State:
        """Zeros for a batch like ``x`` ``(B, T, I)``."""
        zeros = x.new_zeros(x.shape[0], self.hidden_size)
        return (zeros, zeros) if self.has_cell_state else zeros

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        current = self.initial_state(x) if state is None else state
        outputs = []
        for x_t in x.unbind(1):
            current = self.step(x_t, current)
            outputs.append(current[0] if isinstance(current, tuple) else current)
        return torch.stack(outputs, 1), current


def _uniform(module: nn.Module, hidden_size: int) -> None:
    # torch.nn's own default for recurrent layers, so that zoo members differ by their equations only.
    bound = 1 / math.sqrt(hidden_size)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)


class PeepholeLSTM(LoopedCell):
    """LSTM whose gates see the cell state (Gers & Schmidhuber 2000).

    i and f look at c_{t-1}, o looks at c_t, through one weight per unit each (``peephole_i`` and so on). Gate order
    i, f, g, o.
    """

    gates = ("i", "f", "g", "o")
    has_cell_state = True

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.from_input = nn.Linear(input_size, 4 * hidden_size)
        self.from_hidden = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.peephole_i = nn.Parameter(torch.empty(hidden_size))
        self.peephole_f = nn.Parameter(torch.empty(hidden_size))
        self.peephole_o = nn.Parameter(torch.empty(hidden_size))
        _uniform(self, hidden_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.from_input(x) + self.from_hidden(h)).chunk(4, -1)
        i = torch.sigmoid(i + self.peephole_i * c)
        f = torch.sigmoid(f + self.peephole_f * c)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o + self.peephole_o * c) * torch.tanh(c), c


class CoupledLSTM(LoopedCell):
    """LSTM with f = 1 - i: what is written is what is forgotten (Greff et al. 2017). Gate order i, g, o."""

    gates = ("i", "g", "o")
    has_cell_state = True

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.from_input = nn.Linear(input_size, 3 * hidden_size)
        self.from_hidden = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        _uniform(self, hidden_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, g, o = (self.from_input(x) + self.from_hidden(h)).chunk(3, -1)
        i = torch.sigmoid(i)
        c = (1 - i) * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class MinGRU(LoopedCell):
    """GRU whose gate and candidate see the input only, so that h is linear in h_{t-1} (Feng et al. 2024).

    h_t = (1 - z_t) h_{t-1} + z_t n_t. Gate order z, n.
    """

    gates = ("z", "n")

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.from_input = nn.Linear(input_size, 2 * hidden_size)
        _uniform(self, hidden_size)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        z, candidate = self.from_input(x).chunk(2, -1)
        z = torch.sigmoid(z)
        return (1 - z) * state + z * candidate


class LRU(LoopedCell):
    """Linear recurrence with a complex diagonal (Orvieto et al. 2023): s_t = λ s_{t-1} + γ B x_t.

    λ = exp(-exp(ν) + i exp(θ)) starts uniform in the ring ``radius``, and γ = √(1 - |λ|²). The state is real: the
    real parts of ``hidden_size / 2`` complex units, then their imaginary parts; the layer that reads it plays the
    part of C.
    """

    def __init__(self, input_size: int, hidden_size: int, radius: tuple[float, float] = (0.9, 0.999)) -> None:
        if hidden_size % 2:
            raise SettingError(f"hidden size {hidden_size} must be even: an LRU keeps real and imaginary parts.")
        super().__init__(input_size, hidden_size)
        units = hidden_size // 2
        low, high = radius
        modulus = torch.sqrt(torch.rand(units) * (high**2 - low**2) + low**2)
        self.log_decay = nn.Parameter(torch.log(-torch.log(modulus)))
        self.log_phase = nn.Parameter(torch.log(2 * math.pi * torch.rand(units)))
        self.log_scale = nn.Parameter(0.5 * torch.log1p(-(modulus**2)))
        self.from_input = nn.Linear(input_size, hidden_size, bias=False)

    def step(self, x: Tensor, state: Tensor) -> Tensor:
        modulus = torch.exp(-torch.exp(self.log_decay))
        phase = torch.exp(self.log_phase)
        real, imaginary = modulus * torch.cos(phase), modulus * torch.sin(phase)
        u, v = state.chunk(2, -1)
        drive = self.from_input(x) * torch.exp(self.log_scale).repeat(2)
        return torch.cat([real * u - imaginary * v, imaginary * u + real * v], -1) + drive


register_adapter(LoopedCell)
for _layer in (PeepholeLSTM, CoupledLSTM):
    register_adapter(_layer, curve="cell", gates=_layer.gates)
