"""Layers of torch.nn, and the kernels beneath them, called in other ways than once a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.recurrences.cases import FEATURES, B, Case, H, T, case, site
from tests.capture.recurrences.cells import OneState, zeros
from tests.capture.recurrences.truth import chunked, note, noting

LSTM = site("rnn/l0", states={"rnn/l0.h": "hidden", "rnn/l0.c": "cell"}, known=True)
GRU = site("rnn/l0", states={"rnn/l0.h": "hidden"}, known=True)
SECOND = site("rnn/l1", states={"rnn/l1.h": "hidden", "rnn/l1.c": "cell"}, known=True)


class Layer(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn, self.out = kind(FEATURES, H, **options), nn.Linear(H, 1)


@case(LSTM)
class OneStepLSTM(Layer):
    def forward(self, x: Tensor) -> Tensor:
        state = None
        for x_t in x.unbind(1):
            output, state = self.rnn(x_t.unsqueeze(0), state)
        return self.out(output[0])


@case(LSTM)
class OneStepLSTMReadFromItsOutputs(Layer):
    def forward(self, x: Tensor) -> Tensor:
        state, outputs = (x.new_zeros(1, len(x), H), x.new_zeros(1, len(x), H)), []
        for t in range(x.size(1)):
            output, state = self.rnn(x[:, t].unsqueeze(0), state)
            outputs.append(output)
        return self.out(torch.cat(outputs))


@case(LSTM, SECOND)
class OneStepLSTMOfTwoLayers(OneStepLSTM):
    def __init__(self) -> None:
        super().__init__(num_layers=2)


@case(GRU)
class OneStepGRU(OneStepLSTM):
    def __init__(self) -> None:
        super().__init__(nn.GRU)


@case(GRU)
class OneStepGRUBatchFirst(Layer):
    """The decoder of many seq2seq scripts."""

    def __init__(self) -> None:
        super().__init__(nn.GRU, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden, outputs = x.new_zeros(1, len(x), H), []
        for t in range(x.size(1)):
            output, hidden = self.rnn(torch.relu(x[:, t : t + 1]), hidden)
            outputs.append(self.out(output))
        return torch.cat(outputs, 1)


@case(GRU)
class OneStepRNN(OneStepLSTM):
    def __init__(self) -> None:
        super().__init__(nn.RNN)


@case(LSTM)
class Windows(Layer):
    """Three windows, the state handed on with its gradient."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for window in x.split(3, 1):
            output, state = self.rnn(window, state)
            outputs.append(output)
        return self.out(outputs[0][:, 0] + outputs[-1][:, -1])


@case(LSTM)
class DetachedWindows(Layer):
    """Three windows, the state handed on without its gradient, one loss for all."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for window in x.split(3, 1):
            output, state = self.rnn(window, state)
            state = tuple(s.detach() for s in state)
            outputs.append(self.out(output[:, -1]))
        return torch.cat(outputs)


@case(LSTM)
class EpisodesThatBegin(Layer):
    """Recurrent policies: where an episode begins, the state is multiplied by 0 between two calls."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = (x.new_zeros(1, len(x), H), x.new_zeros(1, len(x), H)), []
        begins = torch.zeros(T, len(x)).to(x)
        begins[4, 1] = begins[6, 0] = begins[6, 2] = 1
        for features, begin in zip(x.unbind(1), begins, strict=True):
            h, c = ((1.0 - begin).view(1, -1, 1) * s for s in state)
            output, state = self.rnn(features.unsqueeze(0), (h, c))
            outputs.append(output)
        return self.out(torch.cat(outputs))


class OutputOnly(nn.LSTM):
    def forward(self, *args: Any) -> Tensor:  # type: ignore[override]
        return super().forward(*args)[0]


@case(LSTM, refusal="data flow|kernel|output|state")
class SubclassThatReturnsItsOutputOnly(Layer):
    def __init__(self) -> None:
        super().__init__(OutputOnly, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[:, -1])


class WeightDrop(nn.Module):
    """As AWD-LSTM's wrapper: ``forward`` of the wrapped module, past its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module.forward(*args)


@case(
    site("rnn.module/l0", states={"rnn.module/l0.h": "hidden", "rnn.module/l0.c": "cell"}, known=True),
    refusal="forward|hooks",
)
class LayerForwardCalledDirectly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = WeightDrop(nn.LSTM(FEATURES, H, batch_first=True)), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


# -- functional kernels ----------------------------------------------------------------------------------------------


class Weights(nn.Module):
    def __init__(self, gates: int = 4) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.randn(gates * H, FEATURES) / 2)
        self.weight_hh_l0 = nn.Parameter(torch.randn(gates * H, H) / 2)
        self.bias_ih_l0 = nn.Parameter(torch.randn(gates * H) / 2)
        self.bias_hh_l0 = nn.Parameter(torch.randn(gates * H) / 2)


@case(site("*", h="hidden", c="cell"))
class FunctionalLSTMCell(Weights):
    def forward(self, x: Tensor) -> Tensor:
        h = c = zeros(x)
        for x_t in x.unbind(1):
            h, c = torch.lstm_cell(x_t, (h, c), *self.parameters())
            note(h=h, c=c)
        return h


@case(site("*", h="hidden", c="cell"))
class PrivateFunctionalLSTMCell(Weights):
    def forward(self, x: Tensor) -> Tensor:
        h = c = zeros(x)
        for x_t in x.unbind(1):
            h, c = torch._VF.lstm_cell(x_t, (h, c), *self.parameters())
            note(h=h, c=c)
        return h


@case(site("*", h="hidden"))
class FunctionalGRUCell(Weights):
    def __init__(self) -> None:
        super().__init__(3)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = zeros(x), []
        for x_t in x.unbind(1):
            h = torch.gru_cell(x_t, h, *self.parameters())
            note(h=h)
            outputs.append(h)
        return torch.stack(outputs)


@case(site("*", states={"weight_hh_l0.h": "hidden", "weight_hh_l0.c": "cell"}), refusal="kernel|functional|torch.lstm")
class FunctionalWholeSequence(Weights):
    """The kernel beneath ``nn.LSTM``, called by the user."""

    def forward(self, x: Tensor) -> Tensor:
        start = zeros(x).unsqueeze(0)
        arguments = (start, start), list(self.parameters()), True, 1, 0.0, True, False, True
        return torch._VF.lstm(x, *arguments)[0][:, -1]


# -- checkpointed chunks ---------------------------------------------------------------------------------------------


class ChunkedLoop(nn.Module):
    reentrant = False

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = OneState(), nn.Linear(H, 1)

    def chunk(self, x: Tensor, h: Tensor) -> Tensor:
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x).requires_grad_()
        for part in x.split(3, 1):
            h = chunked(self.chunk, part, h, reentrant=self.reentrant)
        return self.out(h)


class ChunkedLayer(Layer):
    reentrant = False

    def __init__(self) -> None:
        super().__init__(batch_first=True)

    def chunk(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.rnn(x, (h, c))[1]

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(1, len(x), H, requires_grad=True)
        for part in x.split(3, 1):
            h, c = chunked(self.chunk, part, h, c, reentrant=self.reentrant)
        return self.out(h[0])


@case(site("cell", h="hidden"))
class CheckpointedLoop(ChunkedLoop): ...


@case(site("cell", "cell.mix", h="hidden"), refusal="checkpoint")
class ReentrantlyCheckpointedLoop(ChunkedLoop):
    reentrant = True


@case(LSTM)
class CheckpointedLayer(ChunkedLayer): ...


@case(LSTM, refusal="checkpoint")
class ReentrantlyCheckpointedLayer(ChunkedLayer):
    reentrant = True


# -- a loop in TorchScript -------------------------------------------------------------------------------------------


class ScriptedLoop(nn.Module):
    """From its third call on, its executor hides the loop (see test_nothing)."""

    def __init__(self) -> None:
        super().__init__()
        self.w_ih, self.w_hh = nn.Parameter(torch.randn(H, FEATURES) / 2), nn.Parameter(torch.randn(H, H) / 2)

        def run(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor) -> list[Tensor]:
            states: list[Tensor] = []
            for t in range(x.size(1)):
                h = torch.tanh(torch.matmul(x[:, t], w_ih.t()) + torch.matmul(h, w_hh.t()))
                states.append(h)
            return states

        self.plain, self.scripted = run, torch.jit.script(run)

    def forward(self, x: Tensor) -> Tensor:
        states = (self.plain if noting() else self.scripted)(x, zeros(x), self.w_ih, self.w_hh)
        for h in states:
            note(h=h)
        return states[-1]


SCRIPTED = Case("ScriptedLoop", ScriptedLoop, (site("*", h="hidden"),))


# -- batches that change ---------------------------------------------------------------------------------------------

LENGTHS = (T, T - 2, T - 2, 4)


def running(t: int) -> int:
    return sum(length > t for length in LENGTHS)


class Shrinking(nn.Module):
    """Sorted by length, a sequence leaves when it ends: packing by hand."""

    def advance(self, x: Tensor, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h, finals = zeros(x), []
        for t in range(T):
            h = self.advance(x[: running(t), t], h[: running(t)])
            note(h=h)
            finals.append(h[running(t + 1) :])
        return self.out(torch.cat(finals[::-1]))


class ShrinkingGRUCell(Shrinking):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(FEATURES, H), nn.Linear(H, 1)

    def advance(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, h)


class ShrinkingLinears(Shrinking):
    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.out = nn.Linear(FEATURES, H), nn.Linear(H, H), nn.Linear(H, 1)

    def advance(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.i2h(x) + self.h2h(h))


class Reordered(nn.Module):
    """Rows change places between steps, as beams do."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(FEATURES, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = zeros(x)
        for t in range(T):
            h = self.cell(x[:, t], h)
            note(h=h)
            h = h[self.order(t)]
        return self.out(h) * torch.arange(1, B + 1).to(x)[:, None]

    @staticmethod
    def order(t: int) -> Tensor:
        return torch.randperm(B, generator=torch.Generator().manual_seed(t))


class ReorderedLoop(Reordered):
    def __init__(self) -> None:
        super().__init__()
        self.cell = OneStateUnnoted()


class OneStateUnnoted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(FEATURES + H, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.cat((x, h), 1)))
