"""What a run says of the model and the machine it came from."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import torch
from torch import nn

from gradscope._version import __version__
from gradscope.capture.training.settings import Settings
from gradscope.schema import RunMeta

# The printed model is for reading; a network of thousands of layers need not be written out.
_TEXT_LIMIT = 20_000


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return class, parameter count and text of a model."""
    text = str(model)
    return {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "text": text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}\n... (shortened)",
    }


def run_meta(model: dict[str, Any], settings: Settings) -> RunMeta:
    """Return what is written once when the run begins."""
    return RunMeta(
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        gradscope_version=__version__,
        torch_version=torch.__version__,
        settings=settings.to_json(),
        model=model,
        environment={"python": platform.python_version(), "system": platform.system()},
        rank=settings.rank,
        world_size=settings.world_size,
    )
