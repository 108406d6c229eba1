"""Attach to a model, watch its recurrent layers, and record what the gradient does in them."""

from gradscope.capture.adapters import check_adapter, register_adapter
from gradscope.capture.clip_whatif import ClipWhatIf, clip_whatif
from gradscope.capture.recorder import GradscopeWarning, Recorder, record
from gradscope.capture.snapshot import SiteSnapshot, Snapshot, snapshot
from gradscope.capture.source_target import SourceTarget, source_target
from gradscope.capture.spectrum import Spectrum, spectrum

__all__ = [
    "ClipWhatIf",
    "GradscopeWarning",
    "Recorder",
    "SiteSnapshot",
    "Snapshot",
    "SourceTarget",
    "Spectrum",
    "check_adapter",
    "clip_whatif",
    "record",
    "register_adapter",
    "snapshot",
    "source_target",
    "spectrum",
]
