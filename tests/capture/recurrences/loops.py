"""Recurrences written out in the model, without a cell of their own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.recurrences.cases import CASES, FEATURES, B, Case, H, T, case, site, squares
from tests.capture.recurrences.truth import note


def line_by_letter(model: nn.Module, x: Tensor) -> Tensor:
    """The training function of the PyTorch tutorial: the model is called once a letter."""
    hidden, output = model.init_hidden(len(x)).to(x), None
    for letter in x.unbind(1):
        output, hidden = model(letter, hidden)
        note(h=hidden)
    return output.pow(2).mean()


@case(site("model", "i2h", h="hidden"), loss=line_by_letter)
class TutorialCharRNN(nn.Module):
    """Before 2024: no activation, and the output is made beside the state, so that the last state goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h = nn.Linear(FEATURES + H, H)
        self.i2o = nn.Linear(FEATURES + H, 4)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, letter: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        combined = torch.cat((letter, hidden), 1)
        return self.softmax(self.i2o(combined)), self.i2h(combined)

    def init_hidden(self, batch: int) -> Tensor:
        return torch.zeros(batch, H)


@case(site("model", h="hidden"), loss=line_by_letter)
class TutorialCharRNNWithTanh(TutorialCharRNN):
    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.i2o = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 4)

    def forward(self, letter: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.i2h(letter) + self.h2h(hidden))
        return self.softmax(self.i2o(hidden)), hidden


@case(site("h2h", h="hidden"))
class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.i2h(x[:, t]) + self.h2h(h))
            note(h=h)
        return self.out(h)


@case(site("h2h", h="hidden"))
class ALossAtEveryStep(TwoLinears):
    """All outputs in one list, with a running sum beside them: neither is a state."""

    def forward(self, x: Tensor) -> Tensor:
        h, outputs, total = torch.zeros(len(x), H).to(x), [], torch.zeros(len(x), 2).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
            outputs.append(self.out(h))
            total = total + outputs[-1]
        return torch.stack(outputs, 1).flatten(1) * torch.tanh(total.sum(1, keepdim=True))


@case(site("h2h", h="hidden"))
class OutputsWrittenInPlace(TwoLinears):
    """Outputs are copied into a tensor made beforehand; it is no state, though each copy follows another."""

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), H).to(x), torch.zeros(x.shape[1], len(x), 2).to(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.i2h(x[:, t]) + self.h2h(h))
            note(h=h)
            outputs[t] = self.out(h)
        return outputs


@case(site("h2h", h="hidden"))
class GradientClippedAtEachStep(TwoLinears):
    """Graves 2013: a hook bounds what goes back from one state to the one before."""

    def forward(self, x: Tensor) -> Tensor:
        h, total = torch.zeros(len(x), H).to(x), torch.zeros(len(x), 2).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            if h.requires_grad:
                h.register_hook(lambda gradient: gradient.clamp(-0.02, 0.02))
            note(h=h)
            total = total + self.out(h)
        return total


def seeded(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(11)
    return squares(model, x)


@case(site("h2h", states={"h|dropped": "hidden"}), loss=seeded)
class DropoutBetweenSteps(TwoLinears):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
            h = nn.functional.dropout(h, 0.3)
            note(dropped=h)
        return self.out(h)


@case(site("h2h", h="hidden"))
class StatesConcatenatedAndSliced(TwoLinears):
    """All states so far are one tensor, and the last row of it is the next step's state."""

    def forward(self, x: Tensor) -> Tensor:
        states = torch.zeros(len(x), 1, H).to(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.i2h(x[:, t]) + self.h2h(states[:, -1]))
            note(h=h)
            states = torch.cat((states, h.unsqueeze(1)), 1)
        return self.out(states[:, 1:])


@case(site("model", "w_hh", h="hidden"))
class BareMatrices(nn.Module):
    """Weights as parameters of the model, the input projected at once."""

    def __init__(self) -> None:
        super().__init__()
        self.w_xh = nn.Parameter(torch.randn(FEATURES, H) / 2)
        self.w_hh = nn.Parameter(torch.randn(H, H) / 3)
        self.b = nn.Parameter(torch.zeros(H))

    def forward(self, x: Tensor) -> Tensor:
        projected = torch.einsum("bti,ih->bth", x, self.w_xh)
        h = torch.zeros(len(x), H).to(x)
        for t in range(projected.shape[1]):
            h = torch.relu(projected[:, t] + h @ self.w_hh + self.b)
            note(h=h)
        return h


@case(site("*", h="hidden", c="cell"))
class EightLinearLSTM(nn.Module):
    """Four gates, two layers each, as students write it."""

    def __init__(self) -> None:
        super().__init__()
        for gate in "ifgo":
            setattr(self, f"x{gate}", nn.Linear(FEATURES, H))
            setattr(self, f"h{gate}", nn.Linear(H, H, bias=False))
        self.out = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h_t, c_t = self.start(x), torch.zeros(x.size(0), H).to(x)
        for t in range(x.size(1)):
            x_t = x[:, t, :]
            i_t = torch.sigmoid(self.xi(x_t) + self.hi(h_t))
            f_t = torch.sigmoid(self.xf(x_t) + self.hf(h_t))
            g_t = torch.tanh(self.xg(x_t) + self.hg(h_t))
            o_t = torch.sigmoid(self.xo(x_t) + self.ho(h_t))
            c_t = f_t * c_t + i_t * g_t
            h_t = o_t * torch.tanh(c_t)
            note(h=h_t, c=c_t)
        return self.out(h_t)

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(x.size(0), H).to(x)


@case(site("*", h="hidden", c="cell"))
class EightLinearLSTMWithLearnedStart(EightLinearLSTM):
    def __init__(self) -> None:
        super().__init__()
        self.h_0 = nn.Parameter(torch.randn(H))

    def start(self, x: Tensor) -> Tensor:
        return self.h_0.expand(len(x), H)


@case(site("*", h="hidden"))
class MinGRU(nn.Module):
    """Feng et al. 2024, stepped: gates see the input only, and no weight lies in the recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.to_z, self.to_candidate, self.out = nn.Linear(FEATURES, H), nn.Linear(FEATURES, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        z, candidate = torch.sigmoid(self.to_z(x)), self.to_candidate(x)
        h, states = torch.zeros(len(x), H).to(x), []
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * candidate[:, t]
            note(h=h)
            states.append(h)
        return self.out(torch.stack(states, 1))


@case(site("*", h="hidden"))
class MinGRUStepByStep(MinGRU):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            z = torch.sigmoid(self.to_z(x_t))
            h = torch.lerp(h, self.to_candidate(x_t), z)
            note(h=h)
        return self.out(h)


class DiagonalSSM(nn.Module):
    """A learned decay for each state, and nothing else in the recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.linspace(-3, 0, H))
        self.b, self.c = nn.Linear(FEATURES, H, bias=False), nn.Linear(H, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        decay, s, outputs = torch.exp(-torch.exp(self.log_rate)), torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            s = decay * s + self.b(x_t)
            note(s=s)
            outputs.append(self.c(s))
        return torch.stack(outputs, 1)


@case(site("ssm", "ssm.*", s="hidden"))
class StateSpaceBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ssm, self.gate, self.out = DiagonalSSM(), nn.Linear(FEATURES, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.ssm(x) * torch.nn.functional.silu(self.gate(x)))


@case(site("*", v="hidden"))
class LeakyIntegrator(nn.Module):
    """A fixed decay: no parameter and no slice lies in the chain, only the input projection goes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(FEATURES, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            v = 0.9 * v + self.fc(x_t)
            note(v=v)
        return self.out(v)


@case(site("h2h", h="hidden"))
class LeakyESN(TwoLinears):
    """A leaky echo-state update with a trained recurrence."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = 0.7 * h + 0.3 * torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
        return self.out(h)


@case(site("*", h="hidden"))
class AntisymmetricRNN(nn.Module):
    """Chang et al. 2019: a residual step with W - Wᵀ, made anew at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.w, self.out = nn.Linear(FEATURES, H), nn.Parameter(torch.randn(H, H) / 2), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = h + 0.3 * torch.tanh(self.v(x_t) + h @ (self.w - self.w.T - 0.1 * torch.eye(H).to(x)))
            note(h=h)
        return self.out(h)


@case(site("*", h="hidden"))
class ScaledRecurrence(nn.Module):
    """The recurrent weight is made once a forward pass, from two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.raw, self.scale = (
            nn.Linear(FEATURES, H),
            nn.Parameter(torch.randn(H, H)),
            nn.Parameter(torch.ones(1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = self.scale * self.raw / self.raw.norm()
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + nn.functional.linear(h, weight))
            note(h=h)
        return h


@case(site("*", states={"h|y": "hidden"}))
class JordanNetwork(nn.Module):
    """Only the output is fed back, as in Jordan 1986."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.y2h, self.out = nn.Linear(FEATURES, H), nn.Linear(2, H), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), 2).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.y2h(y))
            y = self.out(h)
            note(h=h, y=y)
        return y


@case(site("layer", h="hidden"), shape=(B, H))
class WeightTiedDepth(nn.Module):
    """One layer applied nine times: lag counts applications."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(T):
            x = torch.tanh(self.layer(x))
            note(h=x)
        return self.out(x)


@case(site("block", "block.*", h="hidden"), shape=(B, H))
class UniversalResidual(nn.Module):
    """A residual block of two layers, shared over depth; the loss looks at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(H, H)
        self.block = nn.Sequential(nn.LayerNorm(H), nn.Linear(H, 2 * H), nn.GELU(), nn.Linear(2 * H, H))

    def forward(self, x: Tensor) -> Tensor:
        h, depths = self.embed(x), []
        for _ in range(T):
            h = h + self.block(h)
            note(h=h)
            depths.append(h)
        return torch.stack(depths)


@case(site("w", z="hidden"), shape=(B, FEATURES))
class FixedPoint(nn.Module):
    """A deep equilibrium layer, unrolled (Bai et al. 2019): the same input is injected each time."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.out = nn.Linear(H, H, bias=False), nn.Linear(FEATURES, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        injected, z = self.u(x), torch.zeros(len(x), H).to(x)
        for _ in range(T):
            z = torch.tanh(self.w(z) + injected)
            note(z=z)
        return self.out(z)


@case(site("*", states={"h|evolved": "hidden"}))
class EulerBetweenObservations(nn.Module):
    """ODE-RNN (Rubanova et al. 2019): four Euler steps, then an observation."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(H, H), nn.Tanh(), nn.Linear(H, H))
        self.observe, self.out = nn.Linear(FEATURES + H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            for _ in range(4):
                h = h + 0.1 * self.field(h)
            note(evolved=h)
            h = torch.tanh(self.observe(torch.cat((x_t, h), -1)))
            note(h=h)
        return self.out(h)


@case(site("*", states={"h": "hidden|state", "memory": "cell|state"}))
class ExternalMemory(nn.Module):
    """A controller that reads and writes a memory, in the manner of a neural Turing machine (Graves et al. 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.controller = nn.Linear(FEATURES + H + H, H)
        self.key, self.erase, self.add = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.out = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, memory = torch.zeros(len(x), H).to(x), torch.full((len(x), 6, H), 0.1).to(x)
        memory = memory * torch.linspace(0.5, 1.5, 6).to(x)[:, None]
        for x_t in x.unbind(1):
            weights = torch.softmax((memory @ self.key(h).unsqueeze(2)).squeeze(2), 1)
            read = (weights.unsqueeze(1) @ memory).squeeze(1)
            h = torch.tanh(self.controller(torch.cat((x_t, read, h), 1)))
            erase, add = torch.sigmoid(self.erase(h)).unsqueeze(1), torch.tanh(self.add(h)).unsqueeze(1)
            memory = memory * (1 - weights.unsqueeze(2) * erase) + weights.unsqueeze(2) * add
            note(h=h, memory=memory)
        return self.out(h) + memory.mean((1, 2)).unsqueeze(1)


@case(site("h2h", h="hidden"), refusal="batch", batch_axis=None)
class OneSequence(TwoLinears):
    """No batch axis: a state is (H,). Its units are not sequences."""

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(H).to(x)
        for x_t in x[0]:
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
        return self.out(h)


@case(site("*", h="hidden"))
class BlockDiagonal(nn.Module):
    """Every head has a recurrent matrix of its own; what is (B, N, D) here is (N, B, D) inside the product."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.r = nn.Linear(FEATURES, 6), nn.Parameter(torch.randn(2, 3, 3) / 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 2, 3).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t).view(-1, 2, 3) + torch.einsum("bnd,nde->bne", h, self.r))
            note(h=h)
        return h


@case(site("*", h="hidden"), batch_axis=1)
class StateWithALeadingOne(TwoLinears):
    """As the tutorials begin it: ``torch.zeros(1, batch, hidden)``; the batch is the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, len(x), H).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t).unsqueeze(0) + self.h2h(h))
            note(h=h)
        return self.out(h)


@case(site("*", s="hidden"), refusal="complex")
class LinearRecurrentUnit(nn.Module):
    """Orvieto et al. 2023, stepped: a complex diagonal recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.nu, self.theta = nn.Parameter(torch.linspace(-2, 0, H)), nn.Parameter(torch.linspace(0, 3, H))
        self.b_real, self.b_imaginary = nn.Linear(FEATURES, H), nn.Linear(FEATURES, H)

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(torch.complex(-torch.exp(self.nu), self.theta))
        s, outputs = torch.zeros(len(x), H).to(x) + 0j, []
        for x_t in x.unbind(1):
            s = decay * s + torch.complex(self.b_real(x_t), self.b_imaginary(x_t))
            note(s=s)
            outputs.append(s.real)
        return torch.stack(outputs)


@case(site("*", h="hidden"))
class TransposedOnce(nn.Module):
    """The weight of a layer is turned round before the loop: the parameter has one user, the turned one has many."""

    def __init__(self) -> None:
        super().__init__()
        self.to_gates, self.h_proj, self.out = nn.Linear(FEATURES, 2 * H), nn.Linear(H, H, bias=False), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        gates, candidates = self.to_gates(x).chunk(2, -1)
        weight, h = self.h_proj.weight.t(), torch.zeros(len(x), H).to(x)
        for t in range(x.shape[1]):
            keep = torch.sigmoid(gates[:, t] + torch.mm(h, weight))
            h = keep * h + candidates[:, t]
            note(h=h)
        return self.out(h)


@case(site("h2h", h="hidden"))
class OutputBeforeTheUpdate(TwoLinears):
    """What is read is the state before this step; of the last state nothing becomes, though much looks like it."""

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            outputs.append(0.5 * torch.tanh(h))
            h = 0.9 * torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
        return self.out(torch.stack(outputs, 1))


@case(site("h2h", h="hidden|state", trace="cell|state|absent"))
class TraceOfTheState(TwoLinears):
    """A moving average of past states is taken at the beginning of a step, before any weight is used.

    The graph cannot tell that from the end of the step before: there the last one is missing, or it is left out.
    """

    def forward(self, x: Tensor) -> Tensor:
        h = trace = torch.zeros(len(x), H).to(x)
        for t, x_t in enumerate(x.unbind(1)):
            trace = 0.8 * trace + 0.2 * h
            if t > 0:
                note(trace=trace)
            h = torch.tanh(self.i2h(x_t) + self.h2h(h) + trace)
            note(h=h)
        note(trace=torch.zeros_like(trace))
        return self.out(h)


@case(site("h2h", h="hidden", before="hidden|cell|state|absent"))
class TwoStepsBack(TwoLinears):
    """A state depends on the two before it."""

    def forward(self, x: Tensor) -> Tensor:
        h = before = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h, before = torch.tanh(self.i2h(x_t) + self.h2h(h) - 0.5 * before), h
            note(h=h, before=before)
        return self.out(h)


@case(site("h2h", h="hidden"))
class OldAndNewAreRead(TwoLinears):
    """The output is made of the states before and after a step."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2 * H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            new = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=new)
            outputs.append(self.out(torch.cat((h, new), 1)))
            h = new
        return torch.stack(outputs)


@case(site("h2h", h="hidden"))
class SmoothStates(TwoLinears):
    """Temporal activation regularisation (Merity et al. 2017): neighbouring states should not differ much."""

    def forward(self, x: Tensor) -> Tensor:
        states = [torch.zeros(len(x), H).to(x)]
        for x_t in x.unbind(1):
            states.append(torch.tanh(self.i2h(x_t) + self.h2h(states[-1])))
            note(h=states[-1])
        steps = pairwise(states)
        penalty = sum((new - old).pow(2).mean() for old, new in steps)
        return self.out(states[-1]) + penalty


@case(site("*", states={"h|middle": "hidden"}))
class DeepTransition(nn.Module):
    """Two layers from one state to the next (Pascanu et al. 2014), the output taken between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(FEATURES + H, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            middle = torch.tanh(self.first(torch.cat((x_t, h), 1)))
            outputs.append(self.out(middle))
            h = torch.tanh(self.second(middle))
            note(middle=middle, h=h)
        return torch.stack(outputs)


@case(site("*", s="hidden"))
class OutputOfTheStateBefore(nn.Module):
    """The textbook's y_k = c s_k + d u_k, s_k+1 = a s_k + b u_k: output and update are made by the same operations."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(FEATURES, H)
        self.a, self.b, self.c, self.d = self.coefficients()

    def coefficients(self) -> tuple[Any, ...]:
        return tuple(nn.Parameter(0.5 + torch.rand(H) / 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        s, outputs = torch.zeros(len(x), H).to(x), []
        for u in self.enter(x).unbind(1):
            outputs.append(self.c * s + self.d * u)
            s = self.a * s + self.b * u
            note(s=s)
        return torch.stack(outputs, 1)


@case(site("*", s="hidden"), refusal="match")
class FilterWithAnOutputOfTheStateBefore(OutputOfTheStateBefore):
    """The same with fixed numbers: nothing but its place tells the last output from a state."""

    def coefficients(self) -> tuple[Any, ...]:
        return 0.9, 0.1, 0.7, 0.3


@case(site("*", states={"h|middle": "hidden"}))
class DeepTransitionOfTheSameOperations(DeepTransition):
    """Both layers are given the input, so that one looks like the other."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm = nn.Linear(FEATURES + H, H), nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), H).to(x), []
        for x_t in x.unbind(1):
            middle = self.norm(self.first(torch.cat((x_t, h), 1)))
            outputs.append(self.out(middle))
            h = self.second(torch.cat((x_t, middle), 1))
            note(middle=middle, h=h)
        return torch.stack(outputs)


@case(site("h2h", h="hidden"))
class EinsteinSum(TwoLinears):
    """The weight stands first, as in the formula."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + torch.einsum("ij,bj->bi", self.h2h.weight, h))
            note(h=h)
        return self.out(h)


@case(site("h2h", h="hidden"), batch_axis=1)
class StatesAsColumns(TwoLinears):
    """A state is (H, B), so that the weight can stand before it."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(H, len(x)).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h.weight @ x_t.T + self.h2h.weight @ h)
            note(h=h)
        return self.out(h.T)


@case(site("h2h", h="hidden"))
class GraphConvolution(TwoLinears):
    """Nodes are the rows; a constant matrix mixes them before the weight does."""

    def forward(self, x: Tensor) -> Tensor:
        neighbours = torch.softmax(torch.arange(len(x) ** 2).view(len(x), -1).to(x), 1)
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(neighbours @ h))
            note(h=h)
        return self.out(h)


@case(site("h2h", "y2h", "out", h="hidden"))
class ScheduledSampling(TwoLinears):
    """A decoder that is given the truth at times: there its own output goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.y2h = nn.Linear(2, H)

    def forward(self, x: Tensor) -> Tensor:
        h, y, outputs = self.i2h(x[:, 0]), torch.zeros(len(x), 2).to(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.y2h(y) + self.h2h(h))
            note(h=h)
            outputs.append(self.out(h))
            y = x[:, t, :2] if t in (1, 2, 5) else outputs[-1]
        return torch.stack(outputs)


@case(site("*", fast="hidden|state", slow="cell|state|absent"), refusal="match|marked|step")
class Clockwork(nn.Module):
    """One part is updated at every other step only (Koutník et al. 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow = nn.Linear(FEATURES + 2 * H, H), nn.Linear(FEATURES + 2 * H, H)

    def forward(self, x: Tensor) -> Tensor:
        fast = slow = torch.zeros(len(x), H).to(x)
        for t, x_t in enumerate(x.unbind(1)):
            both = torch.cat((x_t, fast, slow), 1)
            fast = torch.tanh(self.fast(both))
            if t % 2 == 0:
                slow = torch.tanh(self.slow(both))
            note(fast=fast, slow=slow)
        return fast + slow


@case(site("h2h", h="hidden"))
class AttentionToThePast(TwoLinears):
    """Every step looks at all states so far (Cheng et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        states = [torch.zeros(len(x), H).to(x)]
        for x_t in x.unbind(1):
            memory = torch.stack(states, 1)
            weights = torch.softmax((memory @ states[-1].unsqueeze(2)).squeeze(2), 1)
            states.append(torch.tanh(self.i2h(x_t) + self.h2h((weights.unsqueeze(1) @ memory).squeeze(1))))
            note(h=states[-1])
        return self.out(states[-1])


@case(site("*", q="hidden"), shape=(B, FEATURES))
class Hopfield(nn.Module):
    """Retrieval by the same patterns twice in each round (Ramsauer et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.patterns = nn.Linear(FEATURES, H), nn.Parameter(torch.randn(7, H))

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x)
        for _ in range(T):
            q = torch.softmax(q @ self.patterns.T, 1) @ self.patterns
            note(q=q)
        return q


@case(site("*", h="hidden"), refusal="frozen|require|trained")
class FrozenLoop(TwoLinears):
    """Only what is below the loop is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, FEATURES)
        self.i2h.requires_grad_(False)
        self.h2h.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.embed(x))


@case(site("*", h="hidden"))
class SelectiveScan(nn.Module):
    """Mamba (Gu & Dao 2023), step by step: three things are cut from one projection, none of them a time."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.project, self.step = nn.Linear(FEATURES, H), nn.Linear(H, 2 + 3 + 3), nn.Linear(2, H)
        self.log_a, self.d, self.out = nn.Parameter(torch.rand(H, 3)), nn.Parameter(torch.ones(H)), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        delta, b, c = torch.split(self.project(x), [2, 3, 3], dim=-1)
        delta = nn.functional.softplus(self.step(delta)).unsqueeze(-1)
        decay, entering = torch.exp(-delta * self.log_a.exp()), delta * b.unsqueeze(2) * x.unsqueeze(-1)
        h, states = torch.zeros(len(x), H, 3).to(x), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + entering[:, t]
            note(h=h)
            states.append(h)
        return self.out((torch.stack(states, 1) @ c.unsqueeze(-1)).squeeze(3) + self.d * x)


@case(site("*", h="hidden"), shape=(H + 3, T, FEATURES))
class SparseRecurrence(TwoLinears):
    """Weights are masked anew at every step: what is made of a weight and a constant does not enter, it is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask_i", (torch.rand(H, FEATURES) < 0.8).float())
        self.register_buffer("mask_h", (torch.rand(H, H) < 0.7).float())

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), H).to(x)
        for x_t in x.unbind(1):
            entering = nn.functional.linear(x_t, self.i2h.weight * self.mask_i, self.i2h.bias)
            h = torch.tanh(entering + nn.functional.linear(h, self.h2h.weight * self.mask_h))
            note(h=h)
        return self.out(h)


class Scan(nn.Module):
    """A gated sum over time, without a recurrent weight."""

    def __init__(self, name: str, inputs: int) -> None:
        super().__init__()
        self.project, self.name = nn.Linear(inputs, 2 * H), name

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.project(x).chunk(2, -1)
        gate, h, states = torch.sigmoid(gate), torch.zeros(len(x), H).to(x), []
        for t in range(x.shape[1]):
            h = gate[:, t] * h + (1 - gate[:, t]) * value[:, t]
            note(**{self.name: h})
            states.append(h)
        return torch.stack(states, 1)


@case(site("*", below="hidden"), site("*", above="hidden"))
class TwoScans(nn.Module):
    """One after the other over the whole sequence, as the blocks of a state-space model are."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = Scan("below", FEATURES), Scan("above", H)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.below(x))


class _BelowLayer(nn.Module):
    """A loop of one's own makes what a layer of torch reads, whole or one step a call."""

    def __init__(self, above: type[nn.Module], stepped: bool = False) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 2)
        self.above, self.stepped = above(H, H, batch_first=True), stepped

    def forward(self, x: Tensor) -> Tensor:
        h, below, outputs, state = x.new_zeros(len(x), H), [], [], None
        for x_t in x.unbind(1):
            h = torch.tanh(self.i2h(x_t) + self.h2h(h))
            note(h=h)
            below.append(h)
            if self.stepped:
                output, state = self.above(h.unsqueeze(1), state)
                outputs.append(output)
        return self.out(torch.cat(outputs, 1) if self.stepped else self.above(torch.stack(below, 1))[0])


def _below(above: type[nn.Module], stepped: bool) -> Callable[[], nn.Module]:
    return lambda: _BelowLayer(above, stepped)


for _above in (nn.RNN, nn.GRU, nn.LSTM):
    for _stepped in (False, True):
        _states = {"above/l0.h": "hidden"} | ({"above/l0.c": "cell"} if _above is nn.LSTM else {})
        _name = f"LoopBelow{'Stepped' if _stepped else ''}{_above.__name__}"
        CASES[_name] = Case(
            _name, _below(_above, _stepped), (site("h2h", h="hidden"), site("above/l0", states=_states, known=True))
        )
