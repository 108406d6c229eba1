"""Tell from its characters which file a line is from: a recurrent network written with two linear layers, one line at
a time, and a plain update without an optimizer."""

import argparse
import random
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_FILES = [ROOT / "LICENSE", ROOT / "data" / "README.md", ROOT / "data" / "sunspots.csv", ROOT / "setup.cfg"]


class RNN(nn.Module):
    """One character at a time; whoever calls it keeps the hidden state."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.i2h = nn.Linear(input_size, hidden_size)
        self.h2h = nn.Linear(hidden_size, hidden_size)
        self.h2o = nn.Linear(hidden_size, output_size)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, character, hidden):
        hidden = torch.tanh(self.i2h(character) + self.h2h(hidden))
        return self.softmax(self.h2o(hidden)), hidden

    def init_hidden(self):
        return torch.zeros(1, self.hidden_size)


def read(paths, longest):
    """Lines of each file, without the empty ones."""
    lines = {}
    for path in paths:
        found = [line.strip()[:longest] for line in path.read_text(encoding="utf-8").splitlines()]
        lines[path.name] = [line for line in found if len(line) > 3]
    return lines


def line_to_tensor(line, characters):
    """One-hot vectors (character, 1, alphabet)."""
    return F.one_hot(torch.tensor([characters[c] for c in line]), len(characters)).float().unsqueeze(1)


def train(rnn, category, line, criterion, lr):
    hidden = rnn.init_hidden()
    rnn.zero_grad()
    for i in range(line.size(0)):
        output, hidden = rnn(line[i], hidden)
    loss = criterion(output, category)
    loss.backward()
    nn.utils.clip_grad_norm_(rnn.parameters(), 1.0)
    for p in rnn.parameters():
        p.data.add_(p.grad.data, alpha=-lr)
    return output, loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path, nargs="+", default=DEFAULT_FILES)
    parser.add_argument("--lines", type=int, default=3000, help="lines to train on, drawn at random")
    parser.add_argument("--longest", type=int, default=40, help="characters of a line that are looked at")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)
    lines = read(args.files, args.longest)
    names = list(lines)
    characters = {c: i for i, c in enumerate(sorted({c for some in lines.values() for line in some for c in line}))}
    rnn = RNN(len(characters), args.hidden, len(names))
    criterion = nn.NLLLoss()

    total, right, report = 0.0, 0, max(args.lines // 6, 1)
    for i in range(1, args.lines + 1):
        name = random.choice(names)
        line = random.choice(lines[name])
        category = torch.tensor([names.index(name)])
        output, loss = train(rnn, category, line_to_tensor(line, characters), criterion, args.lr)
        total, right = total + loss, right + (output.argmax().item() == category.item())
        if i % report == 0:
            print(f"{i:6d} lines: loss {total / report:.3f}, right {right / report:.0%}; {line!r} is from {name}")
            total, right = 0.0, 0


if __name__ == "__main__":
    main()
