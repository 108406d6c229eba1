"""Forecast the monthly sunspot number one year ahead from the ten years before."""

import argparse
import csv
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DEFAULT_DATA = Path(__file__).resolve().parent.parent / "data" / "sunspots.csv"


class Forecaster(nn.Module):
    def __init__(self, hidden_size, horizon):
        super().__init__()
        self.gru = nn.GRU(input_size=1, hidden_size=hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, horizon)

    def forward(self, x):
        _, h_n = self.gru(x)
        return self.head(h_n[-1])


def read(path):
    with open(path, newline="") as file:
        return torch.tensor([float(row["sunspots"]) for row in csv.DictReader(file)])


def windows(series, history, horizon):
    pieces = series.unfold(0, history + horizon, 1)
    return TensorDataset(pieces[:, :history].unsqueeze(-1), pieces[:, history:])


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    error, count = 0.0, 0
    for x, y in loader:
        error += (model(x) - y).square().sum().item()
        count += y.numel()
    return (error / count) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--history", type=int, default=120, help="months shown")
    parser.add_argument("--horizon", type=int, default=12, help="months to forecast")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    series = read(args.data)
    split = int(0.8 * len(series))
    scale = series[:split].std()
    series = series / scale
    train_set = windows(series[:split], args.history, args.horizon)
    test_set = windows(series[split - args.history :], args.history, args.horizon)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_set, batch_size=256)

    model = Forecaster(args.hidden, args.horizon)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    criterion = nn.MSELoss()
    for epoch in range(args.epochs):
        model.train()
        running = 0.0
        for x, y in train_loader:
            loss = criterion(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_norm)
            optimizer.step()
            running += loss.item()
        rmse = evaluate(model, test_loader) * scale.item()
        print(f"epoch {epoch + 1}: train mse {running / len(train_loader):.4f}, test rmse {rmse:.2f} sunspots")

    persistence = [(y - x[:, -1]).square().mean().item() for x, y in test_loader]
    print(f"for comparison, repeating the last month: about {(sum(persistence) / len(persistence)) ** 0.5 * scale:.2f}")


if __name__ == "__main__":
    main()
