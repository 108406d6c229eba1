"""Spiking and liquid cells: recurrences with a fixed or learned decay, and with inner solver steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.recurrences.cases import FEATURES, H, case, site
from tests.capture.recurrences.cells import zeros
from tests.capture.recurrences.truth import note


class Spike(torch.autograd.Function):
    """A step forwards, a fast sigmoid's slope backwards (Zenke & Ganguli 2018)."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        ctx.save_for_backward(potential)
        return (potential > 0).to(potential)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (potential,) = ctx.saved_tensors
        return gradients[0] / (1 + 5 * potential.abs()) ** 2


class Leaky(nn.Module):
    """Leaky integrate-and-fire: the threshold is subtracted after a spike."""

    def __init__(self, learned: bool, detached: bool = True) -> None:
        super().__init__()
        beta = torch.tensor(0.8)
        self.detached = detached
        if learned:
            self.beta = nn.Parameter(beta)
        else:
            self.register_buffer("beta", beta)

    def forward(self, current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        reset = Spike.apply(mem - 0.5)
        if self.detached:
            reset = reset.detach()
        mem = self.beta.clamp(0, 1) * mem + current - reset * 0.5
        note(mem=mem)
        return Spike.apply(mem - 0.5), mem


@case(site("lif", mem="hidden"))
class SpikingLearnedDecay(nn.Module):
    learned, detached = True, True

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(FEATURES, H), Leaky(self.learned, self.detached), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        mem, outputs = zeros(x), []
        for x_t in x.unbind(1):
            spikes, mem = self.lif(self.fc(x_t), mem)
            outputs.append(self.out(spikes))
        return torch.stack(outputs)


@case(site("*", mem="hidden"))
class SpikingFixedDecay(SpikingLearnedDecay):
    learned = False


@case(site("lif", mem="hidden"))
class SpikingResetWithGradient(SpikingLearnedDecay):
    """The reset carries the surrogate gradient: two ways from one potential to the next."""

    detached = False


@case(site("*", mem="hidden"))
class SpikingRecurrent(nn.Module):
    """Spikes are fed back through a weight; the potential still is all that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.recurrent, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        mem, outputs = zeros(x), []
        for x_t in x.unbind(1):
            fed_back = self.recurrent(Spike.apply(mem - 0.5))
            mem = 0.8 * mem + self.fc(x_t) + fed_back
            note(mem=mem)
            outputs.append(self.out(torch.sigmoid(mem)))
        return torch.stack(outputs)


@case(site("*", syn="state", mem="state"))
class SynapticFixedDecays(nn.Module):
    """A current that decays feeds a potential that decays; nothing in the chain is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(FEATURES, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        syn = mem = zeros(x)
        outputs = []
        for x_t in x.unbind(1):
            reset = (mem > 0.5).to(mem)
            syn = 0.7 * syn + self.fc(x_t)
            mem = 0.85 * mem + syn - 0.5 * reset
            note(syn=syn, mem=mem)
            outputs.append(self.out(Spike.apply(mem - 0.5)))
        return torch.stack(outputs)


@case(site("*", mem0="hidden"), site("*", mem1="hidden"))
class TwoSpikingLayers(nn.Module):
    """The common network: two layers of neurons, learned decays, spikes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(FEATURES, H), nn.Linear(H, H)
        self.beta1, self.beta2 = nn.Parameter(torch.full((H,), 0.8)), nn.Parameter(torch.full((H,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        mem0 = mem1 = zeros(x)
        potentials = []
        for x_t in x.unbind(1):
            mem0 = self.beta1 * mem0 + self.fc1(x_t) - 0.5 * (mem0 > 0.5).to(mem0)
            mem1 = self.beta2 * mem1 + self.fc2(Spike.apply(mem0 - 0.5)) - 0.5 * (mem1 > 0.5).to(mem1)
            note(mem0=mem0, mem1=mem1)
            potentials.append(mem1)
        return torch.stack(potentials)


class LiquidCell(nn.Module):
    """A liquid time constant (Hasani et al. 2021): six steps of a fused solver for each timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.sensory, self.recurrent = nn.Linear(FEATURES, H), nn.Linear(H, H)
        self.reversal, self.leak = nn.Parameter(torch.randn(H)), nn.Parameter(torch.ones(H))

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        drive = self.sensory(x)
        for _ in range(6):
            f = torch.sigmoid(self.recurrent(v) + drive)
            v = (v + f * self.reversal / 6) / (1 + (self.leak.abs() + f) / 6)
        note(v=v)
        return v


@case(site("cell", v="hidden"))
class Liquid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = LiquidCell(), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = zeros(x)
        for x_t in x.unbind(1):
            v = self.cell(x_t, v)
        return self.out(v)


@case(site("field", "enter", h="hidden"))
class LiquidGivenItsInputEachTime(nn.Module):
    """The solver asks for the same timestep six times: it is one, as it is the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.field, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 1)
        self.leak, self.reversal = nn.Parameter(torch.rand(H) + 0.5), nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(x.shape[1]):
            for _ in range(6):
                f = torch.sigmoid(self.enter(x[:, t]) + self.field(h))
                h = (h + f * self.reversal / 6) / (1 + (self.leak + f) / 6)
            note(h=h)
        return self.out(h)


@case(site("field", h="hidden"))
class LiquidGivenACopyEachTime(nn.Module):
    """Beside the state in one tensor, the timestep is a copy: every application is a step, and all are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.out = nn.Linear(FEATURES + H, H), nn.Linear(H, 1)
        self.leak, self.reversal = nn.Parameter(torch.rand(H) + 0.5), nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t in x.unbind(1):
            for _ in range(6):
                f = torch.sigmoid(self.field(torch.cat((x_t, h), 1)))
                h = (h + f * self.reversal / 6) / (1 + (self.leak + f) / 6)
                note(h=h)
        return self.out(h)


@case(site("mix", h="hidden"))
class LettersThatRepeat(nn.Module):
    """The same data twice or three times in a row is no solver."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(4 + H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, letters = zeros(x), torch.eye(4).to(x)
        for letter in (0, 0, 1, 1, 1, 2, 3, 3, 0):
            h = torch.tanh(self.mix(torch.cat((letters[letter].expand(len(x), 4), h), 1)))
            note(h=h)
        return self.out(h)


class ClosedFormCell(nn.Module):
    """Closed-form continuous time (Hasani et al. 2022): a backbone and four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(FEATURES + H, 8), nn.Tanh())
        self.ff1, self.ff2, self.time_a, self.time_b = (nn.Linear(8, H) for _ in range(4))

    def forward(self, x: Tensor, h: Tensor, elapsed: float = 1.0) -> tuple[Tensor, Tensor]:
        z = self.backbone(torch.cat((x, h), 1))
        a, b = torch.tanh(self.ff1(z)), torch.tanh(self.ff2(z))
        gate = torch.sigmoid(self.time_a(z) * elapsed + self.time_b(z))
        h = a * (1 - gate) + gate * b
        note(h=h)
        return h, h


@case(site("rnn_cell", h="hidden"))
class ClosedForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn_cell, self.out = ClosedFormCell(), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = zeros(x), []
        for t in range(x.size(1)):
            y, h = self.rnn_cell(x[:, t], h)
            outputs.append(self.out(y))
        return torch.stack(outputs, 1)


def loss_of_each_step(model: nn.Module, x: Tensor) -> Tensor:
    """As in the tutorials: potentials are stacked, and the losses of the steps are added up afterwards."""
    potentials, loss = model(x), torch.zeros(1, dtype=x.dtype)
    for step in range(x.shape[1]):
        loss += potentials[step].pow(2).mean()
    return loss.sum()


@case(site("*", mem="hidden"), loss=loss_of_each_step)
class SpikingWithTheLossOfEachStep(SpikingFixedDecay):
    """The sum of the losses is no state, though it goes on from step to step."""

    def forward(self, x: Tensor) -> Tensor:
        mem, potentials = zeros(x), []
        for x_t in x.unbind(1):
            _, mem = self.lif(self.fc(x_t), mem)
            potentials.append(mem)
        return torch.stack(potentials)


class StatefulNeuron(nn.Module):
    """Keeps its potential on itself, and begins with a number instead of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor(0.4)), 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v = self.v + (x - self.v) * self.w.sigmoid()
        note(v=self.v)
        spikes = Spike.apply(self.v - 0.3)
        self.v = (1 - spikes.detach()) * self.v
        return spikes


@case(site("neuron", "neuron.*", states={"v|after": "hidden"}))
class HardReset(nn.Module):
    """The potential is multiplied by 0 where it fired, after it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.neuron, self.out = nn.Linear(FEATURES, H), StatefulNeuron(), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.v, total = 0.0, torch.zeros(len(x), 2).to(x)
        for x_t in x.unbind(1):
            total = total + self.out(self.neuron(self.fc(x_t)))
            note(after=self.neuron.v)
        self.neuron.v = 0.0
        return total


@case(site("*", v="hidden|state|absent", a="cell|state|absent", z="hidden|state"))
class AdaptiveThreshold(nn.Module):
    """LSNN (Bellec et al. 2018): a threshold that rises with the spikes before, and spikes fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.recurrent, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H, bias=False), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = a = z = zeros(x)
        outputs = []
        for t, x_t in enumerate(x.unbind(1)):
            a = 0.9 * a + z
            if t > 0:  # as with TraceOfTheState
                note(a=a)
            threshold = 0.3 + 0.2 * a
            v = 0.8 * v + self.fc(x_t) + self.recurrent(z) - z * threshold
            z = Spike.apply(v - threshold)
            note(v=v, z=z)
            outputs.append(self.out(z))
        note(a=torch.zeros_like(a))
        return torch.stack(outputs)


@case(site("*", v="hidden"))
class PositionFromVelocity(nn.Module):
    """Outputs are added up, and the loss looks at some of the sums: they are read, never fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(FEATURES, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        v, positions = zeros(x), [zeros(x, 2)]
        for x_t in x.unbind(1):
            v = 0.9 * v + self.enter(x_t)
            note(v=v)
            positions.append(positions[-1] + self.out(v))
        return torch.tanh(torch.stack(positions[1::2]))
