"""Word-level language model: truncated back-propagation, gradient clipping and a plain update without an optimizer."""

import argparse
import math
import re
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TEXTS = [
    ROOT / "README.md",
    ROOT / "LICENSE",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


class Corpus:
    """Words of some files, numbered; rare ones share a number."""

    def __init__(self, paths, least=2):
        texts = [re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", p.read_text(encoding="utf-8").lower()) for p in paths]
        counts = {}
        for word in (word for text in texts for word in text):
            counts[word] = counts.get(word, 0) + 1
        self.words = ["<unk>", *sorted(word for word, count in counts.items() if count >= least)]
        number = {word: i for i, word in enumerate(self.words)}
        train, valid = [], []
        for text in texts:
            tokens = [number.get(word, 0) for word in text]
            split = int(0.9 * len(tokens))
            train += tokens[:split]
            valid += tokens[split:]
        self.train, self.valid = torch.tensor(train), torch.tensor(valid)


def batchify(tokens, batch_size):
    steps = len(tokens) // batch_size
    return tokens[: steps * batch_size].view(batch_size, steps).t().contiguous()


def get_batch(source, i, bptt):
    length = min(bptt, len(source) - 1 - i)
    return source[i : i + length], source[i + 1 : i + 1 + length].view(-1)


def repackage_hidden(hidden):
    """Cut the state from its history."""
    if isinstance(hidden, torch.Tensor):
        return hidden.detach()
    return tuple(repackage_hidden(h) for h in hidden)


class RNNModel(nn.Module):
    def __init__(self, rnn_type, vocabulary, size, layers, dropout):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocabulary, size)
        self.rnn = getattr(nn, rnn_type)(size, size, layers, dropout=dropout)
        self.decoder = nn.Linear(size, vocabulary)
        self.decoder.weight = self.encoder.weight  # tied
        self.rnn_type, self.layers, self.size = rnn_type, layers, size
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        return self.decoder(self.drop(output)).flatten(0, 1), hidden

    def init_hidden(self, batch_size):
        weight = next(self.parameters())
        zeros = weight.new_zeros(self.layers, batch_size, self.size)
        return (zeros, zeros) if self.rnn_type == "LSTM" else zeros


@torch.no_grad()
def evaluate(model, source, bptt, criterion):
    model.eval()
    total, hidden = 0.0, model.init_hidden(source.shape[1])
    for i in range(0, len(source) - 1, bptt):
        data, targets = get_batch(source, i, bptt)
        output, hidden = model(data, hidden)
        total += len(data) * criterion(output, targets).item()
    return total / (len(source) - 1)


def train(model, source, args, lr, criterion):
    model.train()
    total, hidden = 0.0, model.init_hidden(args.batch_size)
    for i in range(0, len(source) - 1, args.bptt):
        data, targets = get_batch(source, i, args.bptt)
        model.zero_grad()
        hidden = repackage_hidden(hidden)
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-lr)
        total += len(data) * loss.item()
    return total / (len(source) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, nargs="+", default=DEFAULT_TEXTS)
    parser.add_argument("--model", default="LSTM", choices=["LSTM", "GRU", "RNN"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=5.0)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bptt", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    corpus = Corpus(args.text)
    train_data, valid_data = batchify(corpus.train, args.batch_size), batchify(corpus.valid, 4)
    model = RNNModel(args.model, len(corpus.words), args.size, args.layers, args.dropout)
    criterion = nn.CrossEntropyLoss()
    lr, best = args.lr, math.inf
    for epoch in range(1, args.epochs + 1):
        loss = train(model, train_data, args, lr, criterion)
        valid = evaluate(model, valid_data, args.bptt, criterion)
        print(
            f"epoch {epoch:2d}  lr {lr:6.3f}  perplexity {math.exp(loss):8.1f}, of text not seen {math.exp(valid):8.1f}"
        )
        if valid < best:
            best = valid
        else:
            lr /= 4.0


if __name__ == "__main__":
    main()
