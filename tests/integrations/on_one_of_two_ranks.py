"""A training on one of two ranks, to be run as a script: on_one_of_two_ranks.py TRAINER RUN."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import gradscope
from tests.integrations.test_transformers import Data, GradscopeCallback, Model, _trainer


def with_the_trainer(run: Path) -> None:
    _trainer(run.parent, GradscopeCallback(run, every=1), Model(), ddp_backend="gloo").train()


def with_accelerate(run: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    made = Model()
    optimizer = torch.optim.AdamW(made.parameters(), 1e-2, weight_decay=0.0)
    model, optimizer, data = accelerator.prepare(made, optimizer, DataLoader(Data(), batch_size=4))
    with gradscope.record(model, run, optimizer=optimizer, every=1):
        for batch in data:
            accelerator.backward(model(**batch)["loss"])
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    {"transformers": with_the_trainer, "accelerate": with_accelerate}[sys.argv[1]](Path(sys.argv[2]))
    torch.distributed.destroy_process_group()
