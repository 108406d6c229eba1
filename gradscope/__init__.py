"""How far back does the gradient reach, and what did clipping do to it?

gradscope attaches to an unmodified recurrent PyTorch model, records the exact per-timestep gradient of the loss
with respect to its hidden states, cell states and inputs, and turns it into decay curves and numbers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradscope import _mixed
from gradscope._version import __version__

if TYPE_CHECKING:
    from gradscope.capture import (
        ClipWhatIf,
        Recorder,
        Remedies,
        Snapshot,
        SourceTarget,
        Spectrum,
        check_adapter,
        clip_whatif,
        record,
        register_adapter,
        remedies,
        snapshot,
        source_target,
        spectrum,
        state,
    )
    from gradscope.diagnostics import DecayFit, fit_decay
    from gradscope.face import Run, compare, open_run

_mixed.check(__path__[0])

# Loaded on first use, so that `import gradscope` and the reading commands never pay for torch.
_HOME = {
    "ClipWhatIf": "gradscope.capture",
    "DecayFit": "gradscope.diagnostics",
    "Recorder": "gradscope.capture",
    "Remedies": "gradscope.capture",
    "Run": "gradscope.face",
    "Snapshot": "gradscope.capture",
    "SourceTarget": "gradscope.capture",
    "Spectrum": "gradscope.capture",
    "check_adapter": "gradscope.capture",
    "clip_whatif": "gradscope.capture",
    "compare": "gradscope.face",
    "fit_decay": "gradscope.diagnostics",
    "open_run": "gradscope.face",
    "record": "gradscope.capture",
    "register_adapter": "gradscope.capture",
    "remedies": "gradscope.capture",
    "snapshot": "gradscope.capture",
    "source_target": "gradscope.capture",
    "spectrum": "gradscope.capture",
    "state": "gradscope.capture",
}

__all__ = [
    "ClipWhatIf",
    "DecayFit",
    "Recorder",
    "Remedies",
    "Run",
    "Snapshot",
    "SourceTarget",
    "Spectrum",
    "__version__",
    "check_adapter",
    "clip_whatif",
    "compare",
    "fit_decay",
    "open_run",
    "record",
    "register_adapter",
    "remedies",
    "snapshot",
    "source_target",
    "spectrum",
    "state",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
