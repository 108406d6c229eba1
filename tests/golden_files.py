"""Reference networks and their adjoints (see tests/golden/README.md)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

HERE = Path(__file__).parent / "golden"
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def golden_files() -> list[Path]:
    found = {path.name: path for path in HERE.glob("*.npz")}
    for folder in (os.environ.get("GRADSCOPE_GOLDEN"), HERE.parents[2] / "shared" / "golden"):
        if folder and Path(folder).is_dir():
            found |= {path.name: path for path in Path(folder).glob("*.npz")}
    return [found[name] for name in sorted(found)]


@dataclass
class Golden:
    data: Any
    meta: dict[str, Any]
    dtype: torch.dtype

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype = torch.float64) -> Golden:
        data = dict(np.load(path))
        return cls(data, json.loads(data["meta"].item()), dtype)

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.data[name])).to(self.dtype)

    def module(self, batch_first: bool = False) -> nn.RNNBase:
        mode, meta = self.meta["mode"], self.meta
        common = {
            "num_layers": meta["layers"],
            "bidirectional": meta["bidirectional"],
            "bias": meta["bias"],
            "batch_first": batch_first,
        }
        if mode.startswith("RNN"):
            module = nn.RNN(meta["I"], meta["H"], nonlinearity=mode.split("_")[1].lower(), **common)
        elif mode == "GRU":
            module = nn.GRU(meta["I"], meta["H"], **common)
        else:
            module = nn.LSTM(meta["I"], meta["H"], proj_size=meta["proj_size"], **common)
        module = module.to(self.dtype)
        module.load_state_dict({name: self.tensor(name) for name in module.state_dict()})
        return module

    def loss(self, module: nn.RNNBase, unsorted: bool = False) -> torch.Tensor:
        """Run the module on the reference input; ``unsorted`` permutes a packed batch beforehand."""
        rows = torch.tensor([1, 2, 0]) if unsorted else torch.arange(self.meta["B"])
        x, out_weight = self.tensor("x")[:, rows], self.tensor("R_out")[:, rows]
        state: Any = self.tensor("h0")[:, rows]
        if "c0" in self.data:
            state = (state, self.tensor("c0")[:, rows])
        lengths = torch.from_numpy(self.data["lengths"])[rows]
        if module.batch_first:
            x = x.transpose(0, 1)
        if self.meta["packed"]:
            x = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=not unsorted)
        output, final = module(x, state)
        if isinstance(output, PackedSequence):
            output, _ = pad_packed_sequence(output, module.batch_first, total_length=self.meta["T"])
        if module.batch_first:
            output = output.transpose(0, 1)
        h_n, c_n = final if isinstance(final, tuple) else (final, None)
        loss = (output * out_weight).sum() + (h_n * self.tensor("R_hn")[:, rows]).sum()
        return loss if c_n is None else loss + (c_n * self.tensor("R_cn")[:, rows]).sum()

    @property
    def suffixes(self) -> list[str]:
        directions = ("", "_reverse")[: 1 + self.meta["bidirectional"]]
        return [f"l{layer}{direction}" for layer in range(self.meta["layers"]) for direction in directions]
