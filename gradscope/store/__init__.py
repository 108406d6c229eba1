"""The run on disk: a crash-safe journal while it grows, sealed HDF5 segments, and their reader."""

from gradscope.store.describing import describe
from gradscope.store.exporting import export, table
from gradscope.store.packing import pack
from gradscope.store.repairing import RepairReport, repair
from gradscope.store.run import Run, open_run
from gradscope.store.validation import validate
from gradscope.store.writer import RunWriter

__all__ = ["RepairReport", "Run", "RunWriter", "describe", "export", "open_run", "pack", "repair", "table", "validate"]
