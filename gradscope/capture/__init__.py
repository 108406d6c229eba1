"""Attach to a model, watch its recurrent layers, and record what the gradient does in them."""

from gradscope.capture.calls.marks import state
from gradscope.capture.layers.adapters import check_adapter, register_adapter
from gradscope.capture.probes.clip_whatif import ClipWhatIf, clip_whatif
from gradscope.capture.probes.remedies import remedies
from gradscope.capture.probes.snapshot import SiteSnapshot, Snapshot, snapshot
from gradscope.capture.probes.source_target import SourceTarget, source_target
from gradscope.capture.probes.spectrum import Spectrum, spectrum
from gradscope.capture.probes.tried import Remedies
from gradscope.capture.training.recorder import Recorder
from gradscope.capture.training.recording import record
from gradscope.capture.training.telling import GradscopeWarning

__all__ = [
    "ClipWhatIf",
    "GradscopeWarning",
    "Recorder",
    "Remedies",
    "SiteSnapshot",
    "Snapshot",
    "SourceTarget",
    "Spectrum",
    "check_adapter",
    "clip_whatif",
    "record",
    "register_adapter",
    "remedies",
    "snapshot",
    "source_target",
    "spectrum",
    "state",
]
