"""Attach to a model, watch its recurrent layers, and record what the gradient does in them."""

from gradscope.capture.recorder import GradscopeWarning, Recorder, record
from gradscope.capture.snapshot import SiteSnapshot, Snapshot, snapshot

__all__ = ["GradscopeWarning", "Recorder", "SiteSnapshot", "Snapshot", "record", "snapshot"]
