"""Encoder-decoder that rewrites dates ("March 7, 1953" -> "1953-03-07"), with packed batches and teacher forcing."""

import argparse
import datetime
import random

import torch
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

PAD, START = 0, 1
SOURCE = {c: i + 2 for i, c in enumerate(" ,./0123456789ADFJMNOSabceghilmnoprstuvy")}
TARGET = {c: i + 2 for i, c in enumerate("0123456789-")}
LETTERS = {i: c for c, i in TARGET.items()}
FORMATS = ["%B %d, %Y", "%d %b %Y", "%d.%m.%Y", "%m/%d/%Y"]


class Dates(Dataset):
    def __init__(self, count, seed):
        rng = random.Random(seed)
        first = datetime.date(1900, 1, 1).toordinal()
        self.pairs = []
        for _ in range(count):
            day = datetime.date.fromordinal(first + rng.randrange(45000))
            self.pairs.append((day.strftime(rng.choice(FORMATS)), day.isoformat()))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        source, target = self.pairs[i]
        return torch.tensor([SOURCE[c] for c in source]), torch.tensor([START] + [TARGET[c] for c in target])


def collate(items):
    sources, targets = zip(*items, strict=True)
    lengths = torch.tensor([len(s) for s in sources])
    return pad_sequence(sources, batch_first=True), lengths, torch.stack(targets)


class Encoder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.embed = nn.Embedding(len(SOURCE) + 2, 24, padding_idx=PAD)
        self.rnn = nn.GRU(24, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)

    def forward(self, source, lengths):
        packed = pack_padded_sequence(self.embed(source), lengths, batch_first=True, enforce_sorted=False)
        _, h_n = self.rnn(packed)
        return torch.tanh(self.bridge(torch.cat([h_n[0], h_n[1]], dim=-1)))


class Decoder(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.embed = nn.Embedding(len(TARGET) + 2, 24)
        self.cell = nn.GRUCell(24, hidden)
        self.out = nn.Linear(hidden, len(TARGET) + 2)

    def forward(self, state, target, forcing):
        token, logits = target[:, 0], []
        for t in range(1, target.shape[1]):
            state = self.cell(self.embed(token), state)
            logits.append(self.out(state))
            use_truth = random.random() < forcing
            token = target[:, t] if use_truth else logits[-1].argmax(-1)
        return torch.stack(logits, dim=1)


class Seq2Seq(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.encoder = Encoder(hidden)
        self.decoder = Decoder(hidden)

    def forward(self, source, lengths, target, forcing=0.0):
        return self.decoder(self.encoder(source, lengths), target, forcing)


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    right, count = 0, 0
    for source, lengths, target in loader:
        answer = model(source, lengths, target).argmax(-1)
        right += (answer == target[:, 1:]).sum().item()
        count += answer.numel()
    return right / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--teacher-forcing", type=float, default=0.7)
    parser.add_argument("--clip-value", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)
    train_loader = DataLoader(Dates(args.pairs, 1), args.batch_size, shuffle=True, collate_fn=collate)
    test_set = Dates(400, 2)
    test_loader = DataLoader(test_set, 100, collate_fn=collate)
    model = Seq2Seq(args.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    criterion = nn.CrossEntropyLoss()

    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for source, lengths, target in train_loader:
            optimizer.zero_grad()
            logits = model(source, lengths, target, args.teacher_forcing)
            loss = criterion(logits.transpose(1, 2), target[:, 1:])
            loss.backward()
            clip_grad_value_(model.parameters(), args.clip_value)
            optimizer.step()
            total += loss.item()
        right = accuracy(model, test_loader)
        print(f"epoch {epoch}: loss {total / len(train_loader):.4f}, characters right {right:.1%}")

    source, lengths, target = collate([test_set[i] for i in range(3)])
    with torch.no_grad():
        answers = model(source, lengths, target).argmax(-1).tolist()
    for (text, _), answer in zip(test_set.pairs, answers, strict=False):
        print(f"{text!r} -> {''.join(LETTERS.get(i, '?') for i in answer)!r}")


if __name__ == "__main__":
    main()
