"""Character-level language model trained with truncated back-propagation through time."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

DEFAULT_TEXT = Path(__file__).resolve().parent.parent / "LICENSE"


class CharLM(nn.Module):
    def __init__(self, vocabulary, embedding=32, hidden=128, layers=2, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=layers, dropout=dropout)
        self.decode = nn.Linear(hidden, vocabulary)

    def forward(self, tokens, state=None):
        output, state = self.lstm(self.embed(tokens), state)
        return self.decode(output), state


def detach(state):
    return tuple(s.detach() for s in state)


def columns(tokens, batch):
    """Cut the text into `batch` parallel streams: (time, batch)."""
    steps = len(tokens) // batch
    return tokens[: steps * batch].view(batch, steps).t().contiguous()


@torch.no_grad()
def sample(model, chars, prompt, length):
    model.eval()
    index = {c: i for i, c in enumerate(chars)}
    tokens = torch.tensor([index[c] for c in prompt]).unsqueeze(1)
    logits, state = model(tokens)
    text = prompt
    for _ in range(length):
        token = logits[-1, 0].argmax()
        text += chars[token]
        logits, state = model(token.view(1, 1), state)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=DEFAULT_TEXT)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bptt", type=int, default=24, help="timesteps per truncated window")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    text = args.text.read_text(encoding="utf-8")
    chars = sorted(set(text))
    index = {c: i for i, c in enumerate(chars)}
    data = columns(torch.tensor([index[c] for c in text]), args.batch_size)

    model = CharLM(len(chars), hidden=args.hidden)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    for epoch in range(1, args.epochs + 1):
        model.train()
        state, total, windows = None, 0.0, 0
        for start in range(0, len(data) - 1, args.bptt):
            x = data[start : start + args.bptt]
            y = data[start + 1 : start + 1 + args.bptt]
            x = x[: len(y)]
            if state is not None:
                state = detach(state)
            optimizer.zero_grad()
            logits, state = model(x, state)
            loss = criterion(logits.flatten(0, 1), y.flatten())
            loss.backward()
            clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            total, windows = total + loss.item(), windows + 1
        if epoch % 5 == 0 or epoch == args.epochs:
            print(f"epoch {epoch:3d}  loss {total / windows:.4f}")
    print(repr(sample(model, chars, text[:4], 60)))


if __name__ == "__main__":
    main()
