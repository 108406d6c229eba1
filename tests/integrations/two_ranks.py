"""A Lightning training on two processes, to be run as a script: two_ranks.py RUN."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradscope.integrations.lightning import GradscopeCallback


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 1)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return (self.out(self.rnn(batch[0])[0][:, -1]) - batch[1]).pow(2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-2)


if __name__ == "__main__":
    x = torch.randn(24, 7, 2, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(x, x.sum((1, 2))[:, None]), batch_size=4)
    run = Path(sys.argv[1])
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        callbacks=[GradscopeCallback(run, every=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        gradient_clip_val=0.1,
        default_root_dir=run.parent,
    )
    trainer.fit(Module(), data)
