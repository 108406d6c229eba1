"""Record a training of Lightning's Trainer: ``Trainer(callbacks=[GradscopeCallback("runs/lstm")])``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradscope.integrations.attaching import Attachment
from gradscope.integrations.needing import needing

if TYPE_CHECKING:
    from lightning.pytorch import Callback
elif "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    with needing("lightning"):
        try:
            from lightning.pytorch import Callback
        except ImportError as error:
            try:
                from pytorch_lightning import Callback  # installed under its older name only
            except ImportError:
                raise error from None


class GradscopeCallback(Callback):
    """Record the adjoints of every k-th step of a Lightning training.

    Parameters
    ----------
    run_dir : path
        Directory of the run. It must not exist, unless the training goes on from a checkpoint (``ckpt_path``), which
        is a new attempt in it. Every rank writes its own part.
    **settings
        As for :func:`gradscope.record`: ``every``, ``samples``, ``quantities`` ...

    Notes
    -----
    The loss that ``training_step`` returns is logged with each step, summed over accumulated batches (Lightning
    divides by their number).
    """

    def __init__(self, run_dir: str | Path, **settings: Any) -> None:
        self._attachment = Attachment(run_dir, **settings)
        self._loss: Any = None
        self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._step, self._loss = trainer.global_step, None
        resumed = getattr(trainer, "ckpt_path", None) is not None
        self._attachment.begin(pl_module, list(trainer.optimizers), self._step, resumed)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None and getattr(loss, "numel", lambda: 0)() == 1:
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if trainer.global_step != self._step:
            if self._loss is not None:
                self._attachment.log(loss=self._loss)
            self._step, self._loss = trainer.global_step, None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._attachment.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._attachment.end()
