"""Attach to a model, watch its recurrent layers, and record what the gradient does in them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.capture.recorder import GradscopeWarning, Recorder, record
    from gradscope.capture.snapshot import SiteSnapshot, Snapshot, snapshot

# Loaded on first use: the launcher must leave the first import of torch to the script, which may prepare for it
# (number of threads, visible devices).
_HOME = {
    "GradscopeWarning": "recorder",
    "Recorder": "recorder",
    "SiteSnapshot": "snapshot",
    "Snapshot": "snapshot",
    "record": "recorder",
    "snapshot": "snapshot",
}

__all__ = ["GradscopeWarning", "Recorder", "SiteSnapshot", "Snapshot", "record", "snapshot"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # `snapshot` is also the name of a submodule, which importing it has put here
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
