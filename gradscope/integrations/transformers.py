"""Record a training of the Hugging Face Trainer: ``Trainer(..., callbacks=[GradscopeCallback("runs/lstm")])``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradscope.integrations.attaching import Attachment
from gradscope.integrations.needing import needing

with needing("transformers"):
    from transformers import TrainerCallback


class GradscopeCallback(TrainerCallback):
    """Record the adjoints of every k-th step of a Trainer's training.

    Parameters
    ----------
    run_dir : path
        Directory of the run. It must not exist, unless the training goes on from a checkpoint, which is a new attempt
        in it. Every rank writes its own part.
    **settings
        As for :func:`gradscope.record`: ``every``, ``samples``, ``quantities`` ...

    Notes
    -----
    Losses are logged as often as the Trainer logs them (``logging_steps``).
    """

    def __init__(self, run_dir: str | Path, **settings: Any) -> None:
        self._attachment = Attachment(run_dir, **settings)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resumed = state.global_step > 0
        self._attachment.begin(kwargs["model"], kwargs.get("optimizer"), state.global_step, resumed)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._attachment.log(loss=logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attachment.end()
