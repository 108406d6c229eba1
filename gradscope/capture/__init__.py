"""Attach to a model, watch its recurrent layers, and record what the gradient does in them."""

from gradscope.capture.snapshot import SiteSnapshot, Snapshot, snapshot

__all__ = ["SiteSnapshot", "Snapshot", "snapshot"]
