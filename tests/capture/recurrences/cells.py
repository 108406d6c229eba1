"""Cells of people's own, in all the ways in which a state is handed from one call to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.recurrences.cases import FEATURES, B, H, T, case, site
from tests.capture.recurrences.truth import note

LSTM = site("cell", h="hidden", c="cell")
RNN = site("cell", h="hidden")


def zeros(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(len(x), *(shape or (H,)), dtype=x.dtype)


class Gated(nn.Module):
    """What all LSTM cells here compute."""

    def __init__(self, inputs: int = FEATURES) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + H, 4 * H)

    def new(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat((x, h), 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        note(h=h, c=c)
        return h, c


class Plain(nn.Module):
    """What all simple cells here compute."""

    def __init__(self, inputs: int = FEATURES) -> None:
        super().__init__()
        self.mix = nn.Linear(inputs + H, H)

    def new(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.cat((x, h), 1)))
        note(h=h)
        return h


class Host(nn.Module):
    """A model around a cell; subclasses say how it is called."""

    cell_class: type[nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = self.cell_class(), nn.Linear(H, 2)


# -- LSTM cells ------------------------------------------------------------------------------------------------------


class ThreeArguments(Gated):
    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.new(x, h, c)


@case(LSTM)
class HandsOnHAndC(Host):
    cell_class = ThreeArguments

    def forward(self, x: Tensor) -> Tensor:
        h = c = zeros(x)
        for x_t in x.unbind(1):
            h, c = self.cell(x_t, h, c)
        return self.out(h)


@case(LSTM)
class CalledByKeyword(Host):
    cell_class = ThreeArguments

    def forward(self, x: Tensor) -> Tensor:
        h = c = zeros(x)
        for x_t in x.unbind(1):
            h, c = self.cell(c=c, h=h, x=x_t)
        return self.out(h)


class Pair(Gated):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.new(x, *state)


@case(LSTM)
class HandsOnAPair(Host):
    cell_class = Pair

    def forward(self, x: Tensor) -> Tensor:
        state = zeros(x), zeros(x)
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        return self.out(state[0])


class CellStateFirst(Gated):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        c, h = state
        h, c = self.new(x, h, c)
        return c, h


@case(LSTM)
class HandsOnCBeforeH(Host):
    cell_class = CellStateFirst

    def forward(self, x: Tensor) -> Tensor:
        state = zeros(x), zeros(x)
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        return self.out(state[1])


class WithAttention(Gated):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h, c = self.new(x, *state)
        return (h, c), torch.softmax(h, 1)


@case(LSTM)
class HandsOnAPairInAPair(Host):
    cell_class = WithAttention

    def forward(self, x: Tensor) -> Tensor:
        state, weights = (zeros(x), zeros(x)), []
        for x_t in x.unbind(1):
            state, attention = self.cell(x_t, state)
            weights.append(attention)
        return self.out(state[0]) + torch.stack(weights).mean(0)[:, :2]


@dataclass
class State:
    h: Tensor
    c: Tensor


class OfDataclass(Gated):
    def forward(self, x: Tensor, state: State) -> State:
        return State(*self.new(x, state.h, state.c))


@case(LSTM)
class HandsOnADataclass(Host):
    cell_class = OfDataclass

    def forward(self, x: Tensor) -> Tensor:
        state = State(zeros(x), zeros(x))
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        return self.out(state.h)


class OneTensor(Gated):
    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.stack(self.new(x, *state.unbind()))


@case(LSTM)
class HandsOnBothInOneTensor(Host):
    """h and c stacked: the stack only rearranges them."""

    cell_class = OneTensor

    def forward(self, x: Tensor) -> Tensor:
        state = torch.stack((zeros(x), zeros(x)))
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
        return self.out(state[0])


class Peephole(nn.Module):
    """Gers & Schmidhuber 2000: the gates see the cell state too."""

    def __init__(self) -> None:
        super().__init__()
        self.x2g, self.h2g = nn.Linear(FEATURES, 4 * H), nn.Linear(H, 4 * H, bias=False)
        self.peep = nn.Parameter(torch.randn(3, H) / 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.x2g(x) + self.h2g(h)).chunk(4, 1)
        i, f = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c)
        note(h=h, c=c)
        return h, c


@case(site("cell", h="hidden|state", c="cell|state"))
class HasPeepholes(HandsOnAPair):
    cell_class = Peephole  # type: ignore[assignment]


class Normalised(nn.Module):
    """Ba et al. 2016: layer normalisation in an LSTM cell."""

    def __init__(self) -> None:
        super().__init__()
        self.x2g, self.h2g = nn.Linear(FEATURES, 4 * H, bias=False), nn.Linear(H, 4 * H, bias=False)
        self.ln_x, self.ln_h, self.ln_c = nn.LayerNorm(4 * H), nn.LayerNorm(4 * H), nn.LayerNorm(H)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.ln_x(self.x2g(x)) + self.ln_h(self.h2g(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.ln_c(c))
        note(h=h, c=c)
        return h, c


@case(LSTM)
class HasLayerNorm(HandsOnAPair):
    cell_class = Normalised  # type: ignore[assignment]


# -- simple cells ----------------------------------------------------------------------------------------------------


class WithOutput(Plain):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.new(x, h)
        return h, 2 * h


@case(RNN)
class ReturnsHAndY(Host):
    cell_class = WithOutput

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = zeros(x), []
        for x_t in x.unbind(1):
            h, y = self.cell(x_t, h)
            outputs.append(y)
        return self.out(torch.stack(outputs, 1))


class StateFirst(Plain):
    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.new(x, h)


@case(RNN)
class GivesTheStateFirst(Host):
    cell_class = StateFirst

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t in x.unbind(1):
            h = self.cell(h, x_t)
        return self.out(h)


class KeepsItsState(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.h = self.new(x, self.h)
        return self.h


@case(RNN)
class TheCellKeepsTheState(Host):
    cell_class = KeepsItsState

    def forward(self, x: Tensor) -> Tensor:
        self.cell.h = zeros(x)
        for x_t in x.unbind(1):
            y = self.cell(x_t)
        del self.cell.h
        return self.out(y)


class OfDict(Plain):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = self.new(x, state["h"])
        return h * 2, {"h": h}


@case(RNN)
class HandsOnADict(Host):
    cell_class = OfDict

    def forward(self, x: Tensor) -> Tensor:
        state = {"h": zeros(x)}
        for x_t in x.unbind(1):
            y, state = self.cell(x_t, state)
        return self.out(y)


class Masked(Plain):
    def forward(self, x: Tensor, mask: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.cat((x, h), 1))) * mask + h * (1 - mask)
        note(h=h)
        return h


def ragged_mask(x: Tensor) -> list[Tensor]:
    lengths = torch.tensor([T, T - 2, T - 5, 3])
    return [(lengths > t).to(x)[:, None] for t in range(T)]


@case(RNN)
class MaskIsTheSecondArgument(Host):
    cell_class = Masked

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t, mask in zip(x.unbind(1), ragged_mask(x), strict=True):
            h = self.cell(x_t, mask, h)
        return self.out(h)


class OneState(Plain):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.new(x, h)


@case(site("cell", states={"h|kept": "hidden"}))
class MaskBetweenCalls(Host):
    """What goes on is a mixture of the new state and the old one; both are states."""

    cell_class = OneState

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t, mask in zip(x.unbind(1), ragged_mask(x), strict=True):
            h = self.cell(x_t, h) * mask + h * (1 - mask)
            note(kept=h)
        return self.out(h)


@case(site("cell", states={"h|deep": "hidden"}))
class MuchBetweenCalls(Host):
    """Forty operations between one call and the next."""

    cell_class = OneState

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            for _ in range(40):
                h = h + 0.01 * h.tanh()
            note(deep=h)
        return self.out(h)


@case(site("cell", "cell.mix", h="hidden"))
class ForwardCalledDirectly(Host):
    """Past the hooks."""

    cell_class = OneState

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for x_t in x.unbind(1):
            h = self.cell.forward(x_t, h)
        return self.out(h)


class HandGRU(nn.Module):
    """Cho et al. 2014, with the reset gate before the product."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.candidate = nn.Linear(FEATURES + H, 2 * H), nn.Linear(FEATURES + H, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z = torch.sigmoid(self.gates(torch.cat((x, h), 1))).chunk(2, 1)
        h = (1 - z) * h + z * torch.tanh(self.candidate(torch.cat((x, r * h), 1)))
        note(h=h)
        return h


@case(RNN)
class HandGRUWithLearnedStart(Host):
    cell_class = HandGRU

    def __init__(self) -> None:
        super().__init__()
        self.h_0 = nn.Parameter(torch.randn(1, H))

    def forward(self, x: Tensor) -> Tensor:
        h = self.h_0.expand(len(x), H)
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return self.out(h)


class Policy(nn.Module):
    """A step that nobody calls a cell: observation, memory -> action values, memory."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.update, self.value = nn.Linear(FEATURES, H), HandGRUStep(), nn.Linear(H, 2)

    def forward(self, observation: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.update(torch.relu(self.encode(observation)), memory)
        return self.value(memory), memory


class HandGRUStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(H, 3 * H), nn.Linear(H, 3 * H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        (xr, xz, xn), (hr, hz, hn) = self.x(x).chunk(3, 1), self.h(h).chunk(3, 1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        h = (1 - z) * torch.tanh(xn + r * hn) + z * h
        note(h=h)
        return h


@case(site("policy", h="hidden"))
class Rollout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy()

    def forward(self, x: Tensor) -> Tensor:
        memory, values = zeros(x), []
        for x_t in x.unbind(1):
            value, memory = self.policy(x_t, memory)
            values.append(value)
        return torch.stack(values, 1)


# -- several cells ---------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """A simple cell that notes its state under a name of its own."""

    def __init__(self, name: str, inputs: int = FEATURES) -> None:
        super().__init__()
        self.mix, self.name = nn.Linear(inputs + H, H), name

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(self.mix(torch.cat((x, h), 1)))
        note(**{self.name: h})
        return h


@case(site("forwards", f="hidden"), site("backwards", b="hidden"))
class BidirectionalByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards, self.out = Named("f"), Named("b"), nn.Linear(2 * H, 1)

    def forward(self, x: Tensor) -> Tensor:
        ahead, back = [zeros(x)], [zeros(x)]
        for t in range(T):
            ahead.append(self.forwards(x[:, t], ahead[-1]))
        for t in reversed(range(T)):
            back.append(self.backwards(x[:, t], back[-1]))
        return self.out(torch.cat((torch.stack(ahead[1:], 1), torch.stack(back[:0:-1], 1)), 2))


@case(site("cell", a="hidden"), site("cell#2", b="hidden"))
class Siamese(nn.Module):
    """One cell over two sequences, which never meet before the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Named("a")

    def run(self, x: Tensor, name: str) -> Tensor:
        h, self.cell.name = zeros(x), name
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return (self.run(x, "a") - self.run(x.flip(1)[:, :7], "b")).abs()


@case(site("cells.0", h0="hidden", c0="cell"), site("cells.1", h1="hidden", c1="cell"))
class TwoLevelsInLists(nn.Module):
    """The deep LSTM of many repositories: lists of states, one entry a level."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([ThreeArgumentsUnnoted(FEATURES), ThreeArgumentsUnnoted(H)])
        self.out = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, c = [zeros(x), zeros(x)], [zeros(x), zeros(x)]
        for t in range(x.size(1)):
            inputs = x[:, t]
            for level, cell in enumerate(self.cells):
                h[level], c[level] = cell(inputs, h[level], c[level])
                note(**{f"h{level}": h[level], f"c{level}": c[level]})
                inputs = h[level]
        return self.out(h[-1])


class ThreeArgumentsUnnoted(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + H, 4 * H)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat((x, h), 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@case(site("cells.0", h0="hidden"), site("cells.1", h1="hidden"))
class StackedStateOfHandGRUs(nn.Module):
    """The state of all levels is one tensor (L, B, H)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.ModuleList([Named("h0"), Named("h1", H)]), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(2, len(x), H)
        for x_t in x.unbind(1):
            new = []
            for cell, h in zip(self.cells, state, strict=True):
                x_t = cell(x_t, h)
                new.append(x_t)
            state = torch.stack(new)
        return self.out(state[-1])


@case(site("cells.0", known=True, h0="hidden"), site("cells.1", known=True, h1="hidden"))
class StackedStateOfGRUCells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.ModuleList([nn.GRUCell(FEATURES, H), nn.GRUCell(H, H)]), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(2, len(x), H)
        for x_t in x.unbind(1):
            new = []
            for level, (cell, h) in enumerate(zip(self.cells, state, strict=True)):
                x_t = cell(x_t, h)
                note(**{f"h{level}": x_t})
                new.append(x_t)
            state = torch.stack(new)
        return self.out(state[-1])


@case(site("*", a="state", b="state"))
class CoupledLevels(nn.Module):
    """Each level sees what the other was a step ago: one recurrence with two states."""

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow, self.out = nn.Linear(FEATURES + 2 * H, H), nn.Linear(2 * H, H), nn.Linear(2 * H, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = b = zeros(x)
        for x_t in x.unbind(1):
            a, b = torch.tanh(self.fast(torch.cat((x_t, a, b), 1))), torch.tanh(self.slow(torch.cat((a, b), 1)))
            note(a=a, b=b)
        return self.out(torch.cat((a, b), 1))


# -- states that are not (B, H) --------------------------------------------------------------------------------------


class ConvLSTM(nn.Module):
    """Shi et al. 2015."""

    def __init__(self, channels: int = 2, name: str = "") -> None:
        super().__init__()
        self.conv, self.name = nn.Conv2d(channels + 3, 12, 3, padding=1), name

    def forward(self, frame: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat((frame, h), 1)), 3, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        note(**{f"h{self.name}": h, f"c{self.name}": c})
        return h, c


@case(LSTM, shape=(B, 7, 2, 4, 4))
class Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = ConvLSTM(), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = zeros(x, 3, 4, 4), zeros(x, 3, 4, 4)
        for frame in x.unbind(1):
            state = self.cell(frame, state)
        return self.out(state[0])


class MatrixMemory(nn.Module):
    """mLSTM of Beck et al. 2024, with sigmoid gates: C is (B, N, D, D), its normaliser (B, N, D)."""

    heads, size = 2, 3

    def __init__(self) -> None:
        super().__init__()
        inner = self.heads * self.size
        self.qkv, self.gates, self.out = (
            nn.Linear(FEATURES, 3 * inner),
            nn.Linear(FEATURES, 2 * self.heads),
            nn.Linear(inner, H),
        )

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        memory, normaliser = state
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, self.size).unbind(1)
        i, f = torch.sigmoid(self.gates(x)).view(len(x), 2, self.heads).unbind(1)
        memory = f[..., None, None] * memory + i[..., None, None] * v.unsqueeze(3) * k.unsqueeze(2)
        normaliser = f[..., None] * normaliser + i[..., None] * k
        note(memory=memory, normaliser=normaliser)
        read = (memory @ q.unsqueeze(3)).squeeze(3) / ((normaliser * q).sum(2, keepdim=True).abs() + 1)
        return self.out(read.flatten(1)), (memory, normaliser)


@case(site("*", memory="state", normaliser="state"))
class MatrixMemoryModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = MatrixMemory()

    def forward(self, x: Tensor) -> Tensor:
        state: Any = (zeros(x, 2, 3, 3), zeros(x, 2, 3))
        for x_t in x.unbind(1):
            y, state = self.cell(x_t, state)
        return y


class StabilisedSLSTM(nn.Module):
    """sLSTM of Beck et al. 2024: four states of a step in one tensor, the gates in log space."""

    def __init__(self) -> None:
        super().__init__()
        self.wx, self.r = nn.Linear(FEATURES, 4 * H), nn.Parameter(torch.randn(H, 4 * H) / 3)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        y, c, n, m = states.unbind(0)
        i, f, z, o = (self.wx(x) + y @ self.r).chunk(4, 1)
        kept = m + nn.functional.logsigmoid(f)
        m = torch.max(i, kept)
        i, f = torch.exp(i - m), torch.exp(kept - m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        y = torch.sigmoid(o) * c / (n + 1)
        note(y=y, c=c, n=n, m=m)
        return torch.stack((y, c, n, m))


@case(site("cell", y="hidden|state", c="state", n="state", m="state"))
class FourStatesInOneTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = StabilisedSLSTM(), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, outputs = x.new_zeros(4, len(x), H), []
        for x_t in x.unbind(1):
            states = self.cell(x_t, states)
            outputs.append(states[0])
        return self.out(torch.stack(outputs, 1))


class TwoWays(nn.Module):
    """An LSTM cell with two memories beside each other, as a package has it: ``cell(x, h, (upper, lower))``."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("uf", "ui", "uc", "uo", "lf", "li", "lc", "lo"):
            setattr(self, f"W_{name}", nn.Parameter(torch.randn(FEATURES + H, H) / 3))

    def forward(self, x: Tensor, h: Tensor, memories: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        upper, lower = memories
        both = torch.cat((h, x), 1)
        upper = torch.sigmoid(both @ self.W_uf) * upper + torch.sigmoid(both @ self.W_ui) * torch.tanh(both @ self.W_uc)
        lower = torch.sigmoid(both @ self.W_lf) * lower + torch.sigmoid(both @ self.W_li) * torch.tanh(both @ self.W_lc)
        h = torch.sigmoid(both @ self.W_uo) * torch.tanh(upper) + torch.sigmoid(both @ self.W_lo) * torch.tanh(lower)
        note(h=h, upper=upper, lower=lower)
        return h, (upper, lower)


@case(site("cell", h="hidden|state", upper="state", lower="state"))
class TwoMemories(Host):
    cell_class = TwoWays

    def forward(self, x: Tensor) -> Tensor:
        h, memories = zeros(x), (zeros(x), zeros(x))
        for x_t in x.unbind(1):
            h, memories = self.cell(x_t, h, memories)
        return self.out(h)


@case(site("*", states={"h|between": "hidden|state", "c": "cell|state"}))
class MixedMemory(nn.Module):
    """Two cells in turn: what leaves one is what the other is given, and the LSTM's c goes past both."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.rnn_cell, self.out = ThreeArgumentsUnnoted(FEATURES), Named("h"), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, c, outputs = zeros(x), zeros(x), []
        for x_t in x.unbind(1):
            h, c = self.lstm(x_t, h, c)
            note(between=h, c=c)
            h = self.rnn_cell.forward(x_t, h)
            outputs.append(self.out(h))
        return torch.stack(outputs, 1)


# -- stacks and starts -----------------------------------------------------------------------------------------------


class TwoLayerLSTM(nn.Module):
    """x and h have a layer each."""

    def __init__(self, inputs: int = FEATURES) -> None:
        super().__init__()
        self.x2g, self.h2g = nn.Linear(inputs, 4 * H), nn.Linear(H, 4 * H, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.x2g(x) + self.h2g(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        note(h=h, c=c)
        return h, c


@case(LSTM)
class LSTMWithLearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.h_0, self.out = TwoLayerLSTM(), nn.Parameter(torch.randn(H)), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.h_0.expand(len(x), H), zeros(x)
        for x_t in x.unbind(1):
            h, c = self.cell(x_t, h, c)
        return self.out(h)


@case(site("step", "*", h="hidden"))
class GRUWithLearnedStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step, self.out = nn.Linear(FEATURES, H), HandGRUStep(), nn.Linear(H, 1)
        self.h_0 = nn.Parameter(torch.randn(H))

    def forward(self, x: Tensor) -> Tensor:
        h = self.h_0.expand(len(x), H)
        for x_t in self.enter(x).unbind(1):
            h = self.step(x_t, h)
        return self.out(h)


@case(site("cells.0", h="hidden", c="cell"), site("cells.1", "cells.1.*", top="hidden"))
class TwoDifferentLevels(nn.Module):
    """An LSTM cell with a simple one above it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.ModuleList([TwoLayerLSTM(), Named("top", H)]), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = top = zeros(x)
        for x_t in x.unbind(1):
            h, c = self.cells[0](x_t, h, c)
            top = self.cells[1](h, top)
        return self.out(top)


@case(site("below", "below.*", h="hidden"), site("*", above="hidden"))
class LeakyAboveRNN(nn.Module):
    """An integrator reads what a simple recurrent layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.enter, self.out = Named("h"), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = above = zeros(x)
        for x_t in x.unbind(1):
            h = self.below(x_t, h)
            above = 0.9 * above + self.enter(h)
            note(above=above)
        return self.out(above)


class Summed(nn.Module):
    """x and h have a layer each."""

    def __init__(self, name: str, inputs: int = FEATURES) -> None:
        super().__init__()
        self.x, self.h, self.name = nn.Linear(inputs, H), nn.Linear(H, H), name

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.relu(self.x(x) + self.h(h))
        note(**{self.name: h})
        return h


@case(site("cells.0", a="hidden"), site("cells.1", b="hidden"), site("cells.2", c="hidden"))
class OneStartForThreeLevels(nn.Module):
    """The first state of every level is the same parameter: three uses above each other, and no recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([Summed("a"), Summed("b", H), Summed("c", H)])
        self.start, self.out = nn.Parameter(torch.randn(H)), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = [self.start.expand(len(x), H)] * 3
        for value in x.unbind(1):
            for level, cell in enumerate(self.cells):
                states[level] = value = cell(value, states[level])
        return self.out(value)


@case(site("cells.0", h="hidden", c="cell"), site("cells.1", h1="hidden", c1="cell"), shape=(B, 7, 2, 4, 4))
class LayerByLayer(nn.Module):
    """The second layer reads the whole sequence that the first has made, from a start of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([ConvLSTM(), ConvLSTM(3, "1")])

    def forward(self, x: Tensor) -> Tensor:
        frames = list(x.unbind(1))
        for cell in self.cells:
            state, outputs = (zeros(x, 3, 4, 4), zeros(x, 3, 4, 4)), []
            for frame in frames:
                state = cell(frame, state)
                outputs.append(state[0])
            frames = outputs
        return frames[-1]


@case(site("layers.0", "layers.0.*", a="hidden"), site("layers.1", "layers.1.*", b="hidden"))
class WiredLayers(nn.Module):
    """The states of layers of different sizes are one tensor between the steps (Lechner et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(FEATURES + H, H), nn.Linear(H + 2, 2)]), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = zeros(x, H + 2), []
        for x_t in x.unbind(1):
            a, b = torch.split(state, [H, 2], dim=1)
            a = torch.tanh(self.layers[0](torch.cat((x_t, a), 1)))
            b = torch.tanh(self.layers[1](torch.cat((a, b), 1)))
            note(a=a, b=b)
            outputs.append(self.out(b))
            state = torch.cat((a, b), 1)
        return torch.stack(outputs)
