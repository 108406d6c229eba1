"""Forecast sunspots month by month: an encoder, an attention decoder called once a step, and an optimizer for each."""

import argparse
import csv
import random
from pathlib import Path

import torch
from torch import nn, optim
from torch.nn import functional as F

DEFAULT_DATA = Path(__file__).resolve().parent.parent / "data" / "sunspots.csv"


class Encoder(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.embed = nn.Linear(1, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, months):
        return self.gru(torch.tanh(self.embed(months)))


class BahdanauAttention(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, query, keys):
        scores = self.score(torch.tanh(self.query(query) + self.key(keys)))
        weights = F.softmax(scores.squeeze(2).unsqueeze(1), dim=-1)
        return torch.bmm(weights, keys), weights


class AttentionDecoder(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.embed = nn.Linear(1, hidden_size)
        self.attention = BahdanauAttention(hidden_size)
        self.gru = nn.GRU(2 * hidden_size, hidden_size, batch_first=True)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, month, hidden, encoded):
        context, weights = self.attention(hidden.permute(1, 0, 2), encoded)
        output, hidden = self.gru(torch.cat((torch.tanh(self.embed(month)), context), dim=2), hidden)
        return month + self.out(output), hidden, weights


def forecast(encoder, decoder, history, horizon, target=None, forcing=0.0):
    encoded, hidden = encoder(history)
    month, months = history[:, -1:], []
    for t in range(horizon):
        prediction, hidden, _ = decoder(month, hidden, encoded)
        months.append(prediction)
        month = target[:, t : t + 1] if random.random() < forcing else prediction
    return torch.cat(months, dim=1)


def read(path):
    with open(path, newline="") as file:
        return torch.tensor([float(row["sunspots"]) for row in csv.DictReader(file)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--history", type=int, default=60, help="months shown")
    parser.add_argument("--horizon", type=int, default=18, help="months to forecast")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--forcing", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)
    series = read(args.data)
    series = series / series.std()
    pieces = series.unfold(0, args.history + args.horizon, 1).unsqueeze(-1)
    split = int(0.8 * len(pieces))
    train, test = pieces[: split - args.horizon], pieces[split:]

    encoder, decoder = Encoder(args.hidden), AttentionDecoder(args.hidden)
    encoder_optimizer = optim.Adam(encoder.parameters(), lr=args.lr)
    decoder_optimizer = optim.Adam(decoder.parameters(), lr=args.lr)
    criterion = nn.MSELoss()
    for epoch in range(1, args.epochs + 1):
        total, batches = 0.0, torch.randperm(len(train)).split(args.batch_size)
        for rows in batches:
            history, target = train[rows].split((args.history, args.horizon), dim=1)
            encoder_optimizer.zero_grad()
            decoder_optimizer.zero_grad()
            loss = criterion(forecast(encoder, decoder, history, args.horizon, target, args.forcing), target)
            loss.backward()
            encoder_optimizer.step()
            decoder_optimizer.step()
            total += loss.item()
        with torch.no_grad():
            history, target = test.split((args.history, args.horizon), dim=1)
            error = criterion(forecast(encoder, decoder, history, args.horizon), target).item()
            last = criterion(history[:, -1:].expand_as(target), target).item()
        print(f"epoch {epoch}: loss {total / len(batches):.4f}, test {error:.4f}; repeating the last month: {last:.4f}")


if __name__ == "__main__":
    main()
