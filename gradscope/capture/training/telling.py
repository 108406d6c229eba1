"""Tell the user, at the line of the script, without ever stopping it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import torch


class GradscopeWarning(UserWarning):
    """Something could not be recorded; training goes on untouched."""


def warn(message: str) -> None:
    """Warn, or print where that is not to be had."""
    try:
        warnings.warn(message, GradscopeWarning, stacklevel=_stacklevel())
    except Exception:  # warnings turned into errors, or shown by code that fails, must not stop the training either
        with contextlib.suppress(Exception):
            print(message, file=sys.stderr)


def _stacklevel() -> int:
    """Return the level of the script's own line: what warns runs below torch's hooks and the engine."""
    own = (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent))
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(own):
        frame, level = frame.f_back, level + 1
    return level
