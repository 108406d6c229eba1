"""Recurrences of papers, written as the code that goes with them writes them; decoders fed at times; windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.capture.recurrences.cases import FEATURES, B, H, case, site
from tests.capture.recurrences.cells import zeros
from tests.capture.recurrences.truth import note


@case(site("field", h="hidden"), shape=(B, FEATURES))
class RungeKutta(nn.Module):
    """A neural differential equation: the field is asked four times a step, and only once is a state made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Linear(FEATURES, H), nn.Linear(H, 2)
        self.field = nn.Sequential(nn.Linear(H, 8), nn.Tanh(), nn.Linear(8, H))

    def forward(self, x: Tensor) -> Tensor:
        h, d = self.encode(x), 0.1
        for _ in range(8):
            k1 = self.field(h)
            k2 = self.field(h + d / 2 * k1)
            k3 = self.field(h + d / 2 * k2)
            k4 = self.field(h + d * k3)
            h = h + d / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            note(h=h)
        return self.out(h)


@case(site("*", h="hidden"))
class ComplexStateSpace(nn.Module):
    """S4D in recurrent mode (Gu et al. 2022): one state for each feature; the first step has no decayed state."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = nn.Parameter(torch.rand(H)), nn.Parameter(torch.rand(H) * 3)
        self.b, self.c = nn.Parameter(torch.randn(FEATURES, H, 2)), nn.Parameter(torch.randn(H, 2))
        self.out = nn.Linear(FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(-0.1 * torch.complex(self.real.exp(), self.imaginary))
        b, c = torch.view_as_complex(self.b), torch.view_as_complex(self.c)
        h, outputs = torch.zeros(len(x), FEATURES, H, dtype=decay.dtype), []
        for t in range(x.shape[1]):
            h = decay * h + b * x[:, t].unsqueeze(-1)
            note(h=h)
            outputs.append((h * c).sum(-1).real + x[:, t])
        return self.out(torch.stack(outputs, 1))


@case(site("*", h="hidden"))
class ScanOfProducts(nn.Module):
    """Mamba (Gu & Dao 2023): what enters is made by ``einsum``, of another shape at the first step than later."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.project, self.step = nn.Linear(FEATURES, 2 * H), nn.Linear(H, 2 + 3 + 3), nn.Linear(2, H)
        self.log_a, self.out = nn.Parameter(torch.rand(H, 3)), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.enter(x).split([H, H], -1)
        delta, b, c = self.project(functional.silu(u)).split([2, 3, 3], -1)
        delta = functional.softplus(self.step(delta))
        decay = torch.exp(torch.einsum("bld,dn->bldn", delta, -self.log_a.exp()))
        entering = torch.einsum("bld,bln,bld->bldn", delta, b, u)
        h, outputs = zeros(x, H, 3), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + entering[:, t]
            note(h=h)
            outputs.append(torch.einsum("bdn,bn->bd", h, c[:, t]))
        return self.out(torch.stack(outputs, 1) * functional.silu(gate))


@case(site("*", s="hidden"))
class DeltaRule(nn.Module):
    """DeltaNet (Schlag et al. 2021): what the memory holds under a key is replaced by degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.b = (nn.Linear(FEATURES, n) for n in (H, H, H, 1))
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, b = self.q(x), functional.normalize(self.k(x), dim=-1), self.v(x), torch.sigmoid(self.b(x))
        s, outputs = zeros(x, H, H), []
        for t in range(x.shape[1]):
            held = torch.einsum("bij,bj->bi", s, k[:, t])
            s = s + b[:, t].unsqueeze(2) * torch.einsum("bi,bj->bij", v[:, t] - held, k[:, t])
            note(s=s)
            outputs.append(torch.einsum("bij,bj->bi", s, q[:, t]))
        return self.out(torch.stack(outputs, 1))


@case(site("*", h="hidden|state", m="cell|state"))
class LegendreMemory(nn.Module):
    """LMU (Voelker et al. 2019): the memory is moved by matrices that are not trained, and is zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.x_u, self.h_u, self.m_u = (nn.Linear(n, 1, bias=False) for n in (FEATURES, H, 4))
        self.x_h, self.h_h, self.m_h = (nn.Linear(n, H, bias=False) for n in (FEATURES, H, 4))
        self.register_buffer("a", torch.eye(4) * 0.8 + 0.1 * torch.randn(4, 4))
        self.register_buffer("b", torch.randn(4, 1))
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, m = zeros(x), zeros(x, 4)
        for x_t in x.unbind(1):
            m = m @ self.a.T + (self.x_u(x_t) + self.h_u(h) + self.m_u(m)) @ self.b.T
            h = torch.tanh(self.x_h(x_t) + self.h_h(h) + self.m_h(m))
            note(h=h, m=m)
        return self.out(h)


@case(site("*", h="hidden"))
class LeakyFedAtTimes(nn.Module):
    """No weight lies in the recurrence, and the truth is fed instead of the output at four of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(2, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, y, outputs = zeros(x), zeros(x, 2), []
        for t in range(x.shape[1]):
            h = 0.9 * h + torch.tanh(self.enter(y))
            note(h=h)
            outputs.append(self.out(h))
            y = x[:, t, :2] if t in (0, 2, 3, 6) else outputs[-1]
        return torch.stack(outputs)


@case(site("h2h", "model", h="hidden"))
class FedAtTimesOldAndNewAreRead(nn.Module):
    """The output is made of two states, so that more crosses to the next step where it is fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.y2h, self.h2h, self.out = nn.Linear(2, H), nn.Linear(H, H), nn.Linear(2 * H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, y = zeros(x), zeros(x, 2)
        for t in range(6):
            before, h = h, torch.tanh(self.y2h(y) + self.h2h(h))
            note(h=h)
            y = self.out(torch.cat((h, before), 1))
            if t % 3 == 1:
                y = x[:, t, :2]
        return y


@case(site("leaky", below="hidden"), site("gates", h="hidden", c="cell"))
class LeakyBelowLSTM(nn.Module):
    """A layer of fixed decay below a cell, and a loss at every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.gates, self.out = nn.Linear(FEATURES, H), nn.Linear(2 * H, 4 * H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        below, h, c, outputs = zeros(x), zeros(x), zeros(x), []
        for x_t in x.unbind(1):
            below = 0.9 * below + self.leaky(x_t)
            i, f, g, o = self.gates(torch.cat((below, h), 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            note(below=below, h=h, c=c)
            outputs.append(self.out(h))
        return torch.stack(outputs)[::2]


@case(site("h", h="hidden", c="cell"))
class PhasedLSTM(nn.Module):
    """Neil et al. 2016: both states are kept or replaced by a clock, and the last cell state is read by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.out = nn.Linear(FEATURES, 4 * H), nn.Linear(H, 4 * H), nn.Linear(H, 2)
        self.period, self.shift = nn.Parameter(torch.rand(H) * 3 + 1), nn.Parameter(torch.rand(H))

    def forward(self, x: Tensor) -> Tensor:
        h, c, r = zeros(x), zeros(x), 0.3
        for t in range(x.shape[1]):
            i, f, g, o = (self.x(x[:, t]) + self.h(h)).chunk(4, 1)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            phase = torch.fmod(t + self.shift, self.period) / self.period
            k = torch.where(phase < r / 2, 2 * phase / r, torch.where(phase < r, 2 - 2 * phase / r, 0.1 * phase))
            c, h = k * new_c + (1 - k) * c, k * o.sigmoid() * new_c.tanh() + (1 - k) * h
            note(h=h, c=c)
        return self.out(h)


@case(site("gates", "decoder", h="hidden", c="cell", y="state|absent"))
class AttentionFedAtTimes(nn.Module):
    """What is fed back was made of the attention before as well, so that a third tensor crosses."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.attend, self.score = nn.Linear(FEATURES, H), nn.Linear(2 * H, H), nn.Linear(H, 1)
        self.gates, self.out = nn.Linear(2 + 2 * H, 4 * H), nn.Linear(2 * H, 2)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.tanh(self.encode(x))
        h, c, y, outputs = memory.mean(1), zeros(x), zeros(x, 2), []
        for t in range(8):
            energy = torch.tanh(self.attend(torch.cat((h.unsqueeze(1).expand_as(memory), memory), 2)))
            context = (torch.softmax(self.score(energy), 1) * memory).sum(1)
            i, f, g, o = self.gates(torch.cat((y, context, h), 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            y = self.out(torch.cat((h, context), 1))
            note(h=h, c=c, y=y)
            outputs.append(y)
            y = x[:, t, :2] if t in (0, 3, 4) else y
        return torch.stack(outputs)


@case(site("h2h", h="hidden"))
class WindowsOfALoop(nn.Module):
    """Truncated backpropagation in one pass: each window starts from the detached state of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = zeros(x), []
        for window in x.split(3, 1):
            h = h.detach()
            for x_t in window.unbind(1):
                h = torch.tanh(self.i2h(x_t) + self.h2h(h))
                note(h=h)
            outputs.append(self.out(h))
        return torch.cat(outputs, 1)


@case(site("*", s="hidden|state", n="cell|state"))
class LinearAttention(nn.Module):
    """Katharopoulos et al. 2020, recurrent: both memories are mere sums, but each step asks them something."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(FEATURES, 3 * 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 4).unbind(2)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        s, n, outputs = zeros(x, 2, 4, 4), zeros(x, 2, 4), []
        for t in range(x.shape[1]):
            s = s + torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
            n = n + k[:, t]
            note(s=s, n=n)
            norm = torch.einsum("bhi,bhi->bh", q[:, t], n).unsqueeze(-1)
            outputs.append((torch.einsum("bhi,bhij->bhj", q[:, t], s) / (norm + 1e-6)).flatten(1))
        return self.out(torch.stack(outputs, 1))


@case(site("layer*", h="hidden"))
class UniversalTransformer(nn.Module):
    """Dehghani et al. 2019: inside the layer, rows are made of timesteps and sequences, and timesteps come first."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.depth = nn.Parameter(torch.randn(5, 8) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for of_step in self.depth:
            h = self.layer(h + of_step)
            note(h=h)
        return self.out(h)


@case(site("*", below="state", h="hidden"))
class LeakyBelowAndFedBack(nn.Module):
    """Both layers depend on each other by way of the output; that one of them decays makes it no cell state."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.above = nn.Linear(FEATURES + 2, H), nn.Linear(2 * H, H)
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        below, h, y = zeros(x), zeros(x), zeros(x, 2)
        for x_t in x.unbind(1):
            below = 0.9 * below + self.leaky(torch.cat((x_t, y), 1))
            h = torch.tanh(self.above(torch.cat((below, h), 1)))
            note(below=below, h=h)
            y = self.out(h)
        return y
