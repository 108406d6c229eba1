"""Encoders and decoders: attention, fed-back output, one sequence that goes on in another module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.capture.recurrences.cases import FEATURES, H, case, site
from tests.capture.recurrences.cells import Named, zeros
from tests.capture.recurrences.truth import note

OUT = 7  # decoded steps


def attend(query: Tensor, memory: Tensor) -> Tensor:
    weights = torch.softmax((memory @ query.unsqueeze(2)).squeeze(2), 1)
    return (weights.unsqueeze(1) @ memory).squeeze(1)


@case(
    site("encoder/l0", states={"encoder/l0.h": "hidden"}, after=OUT, known=True),
    site("decoder", "decoder.cell", known=True, h="hidden"),
)
class AttentionGRUCell(nn.Module):
    """The output of each step is the next step's input, beside what it attends to."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(FEATURES, H, batch_first=True), nn.GRUCell(2 + H, H)
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        memory, h = self.encoder(x)
        h, y, outputs = h[0], zeros(x, 2), []
        for _ in range(OUT):
            h = self.decoder(torch.cat((y, attend(h, memory)), 1), h)
            note(h=h)
            y = self.out(h)
            outputs.append(y)
        return torch.stack(outputs, 1)


class BahdanauDecoder(nn.Module):
    """One call makes one output, as in the PyTorch tutorial; the recurrent layer inside is hand-written."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.score = nn.Linear(H, H), nn.Linear(H, 1)
        self.step, self.out = nn.Linear(2 + H + H, H), nn.Linear(H, 2)

    def forward(self, y: Tensor, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = torch.softmax(self.score(torch.tanh(self.query(h).unsqueeze(1) + memory)), 1)
        context = (weights * memory).sum(1)
        h = torch.tanh(self.step(torch.cat((y, context, h), 1)))
        note(h=h)
        return self.out(h), h, weights


@case(site("decoder", h="hidden"))
class AttentionByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(FEATURES, H), BahdanauDecoder()

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.tanh(self.encoder(x))
        h, y, outputs = memory.mean(1), zeros(x, 2), []
        for _ in range(OUT):
            y, h, _ = self.decoder(y, h, memory)
            outputs.append(y)
        return torch.stack(outputs, 1)


@case(
    site("encoder/l0", states={"encoder/l0.h": "hidden"}, after=OUT, known=True),
    site("h2h", "y2h", "out", states={"h|y": "hidden"}),
)
class GRUThenLoop(nn.Module):
    """A known layer hands its state to a loop of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, H, batch_first=True)
        self.y2h, self.h2h, self.out = nn.Linear(1, H), nn.Linear(H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        h, y = self.encoder(x)[1][0], zeros(x, 1)
        for _ in range(OUT):
            h = torch.tanh(self.y2h(y) + self.h2h(h))
            y = self.out(h)
            note(h=h, y=y)
        return y


@case(site("encoder", e="hidden", after=OUT), site("decoder", "decoder.mix", d="hidden"))
class CellThenCell(nn.Module):
    """Two cells of one's own; the second goes on where the first ended."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.out = Named("e"), Named("d", 2), nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, y, outputs = zeros(x), zeros(x, 2), []
        for x_t in x.unbind(1):
            h = self.encoder(x_t, h)
        for _ in range(OUT):
            h = self.decoder(y, h)
            y = self.out(h)
            outputs.append(y)
        return torch.stack(outputs, 1)


@case(site("encoder", e="hidden", after=OUT), site("decoder", h="hidden"), shape=(2, 250, FEATURES))
class LongEncoder(nn.Module):
    """More graph lies before the second loop than a stack of calls is deep."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Named("e"), BahdanauDecoder()

    def forward(self, x: Tensor) -> Tensor:
        h, states = zeros(x), []
        for x_t in x.unbind(1):
            h = self.encoder(x_t, h)
            states.append(h)
        memory, y = torch.stack(states, 1), zeros(x, 2)
        for _ in range(OUT):
            y, h, _ = self.decoder(y, h, memory)
        return y


@case(
    site("encoder/l0", states={"encoder/l0.h": "hidden", "encoder/l0.c": "cell"}, after=OUT, known=True),
    site("decoder/l0", states={"decoder/l0.h": "hidden", "decoder/l0.c": "cell"}, known=True),
)
class LSTMSteppedDecoder(nn.Module):
    """The commonest seq2seq: ``nn.LSTM`` reads at once, another one is called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(FEATURES, H, batch_first=True), nn.LSTM(2, H, batch_first=True)
        self.out = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        y, outputs = zeros(x, 1, 2), []
        for _ in range(OUT):
            output, state = self.decoder(y, state)
            y = self.out(output)
            outputs.append(y)
        return torch.cat(outputs, 1)


@case(
    site("encoder.rnn/l0", states={"encoder.rnn/l0.h": "hidden", "encoder.rnn/l0.c": "cell"}, after=OUT, known=True),
    site("decoder.rnn/l0", states={"decoder.rnn/l0.h": "hidden", "decoder.rnn/l0.c": "cell"}, known=True),
)
class ModulesWithinModules(nn.Module):
    """A widely copied translator: outputs are written into a tensor made beforehand, and truth is fed at times."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Reader(), Writer()

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell = self.encoder(x)
        outputs, y = torch.zeros(OUT, len(x), 2).to(x), zeros(x, 2)
        for t in range(OUT):
            y, hidden, cell = self.decoder(y, hidden, cell)
            outputs[t] = y
            y = x[:, t, :2] if t % 3 == 0 else y
        return outputs


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, H)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(x.transpose(0, 1))[1]


class Writer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(2, H), nn.Linear(H, 2)

    def forward(self, y: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (hidden, cell) = self.rnn(y.unsqueeze(0), (hidden, cell))
        return self.out(output.squeeze(0)), hidden, cell
