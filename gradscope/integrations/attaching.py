"""What the callbacks of all trainers share: opening a recorder when training begins, and closing it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.recording import record
from gradscope.capture.training.telling import GradscopeWarning
from gradscope.errors import NothingToRecordError


class Attachment:
    """The recorder of a trainer's training.

    Parameters
    ----------
    run_dir : path
    **settings
        As for :func:`gradscope.record`.

    Attributes
    ----------
    recorder : Recorder or None
        None before training, and where the model has nothing to record.
    """

    def __init__(self, run_dir: str | Path, **settings: Any) -> None:
        self.run_dir, self.settings = Path(run_dir), settings
        self.recorder: Recorder | None = None
        self._begun = False

    def begin(self, model: nn.Module, optimizers: Any, step: int, resumed: bool) -> None:
        """Begin to record; a training that goes on from a checkpoint is a new attempt from ``step`` on.

        Raises
        ------
        SettingError, UnknownNameError, RunExistsError
            Before the first step. A model without recurrent layers is only warned of: the training is what counts.
        """
        self.end()
        settings = {"restart": (self._begun or resumed) and self.run_dir.exists(), "first_step": step, **self.settings}
        try:
            self.recorder = record(model, self.run_dir, optimizer=optimizers, **settings)
            self._begun = True
        except NothingToRecordError as error:
            warnings.warn(f"gradscope records nothing of this training: {error}", GradscopeWarning, stacklevel=3)

    def log(self, **scalars: Any) -> None:
        """Log scalars with the step that just ended."""
        if self.recorder is not None:
            self.recorder.log(**scalars)

    def end(self) -> None:
        """Seal the run."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
