"""Every error gradscope raises on purpose.

::

    GradscopeError                      exit code 1
    ├── UsageError (ValueError)         exit code 2: the call or command was wrong
    │   ├── SettingError                an argument out of its range
    │   ├── UnknownNameError            a site, quantity, plot ... that does not exist
    │   ├── NothingToRecordError        the model has no recurrent layer
    │   └── RunExistsError              the run directory or output exists already
    ├── RunError                        exit code 1: the data or run is bad
    │   ├── RunNotFoundError            no run at that path
    │   ├── RunDamagedError             truncated, corrupt, or not a gradscope file
    │   ├── SchemaVersionError          written by a newer major version
    │   ├── UnsafeFileError             a link, a filter or a size that is refused
    │   ├── EmptyRunError               a run without a single record
    │   └── NotRecordedError            that quantity was not recorded there
    ├── AdapterError                    a custom layer's adapter disagrees with autograd
    └── InternalError                   a fault of gradscope's own, to be reported

A message says what was wrong, with which file, site or option, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GradscopeError(Exception):
    """Base of all errors raised by gradscope; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(GradscopeError, ValueError):
    """The call or command was wrong."""

    exit_code = 2


class SettingError(UsageError):
    """An argument is out of its range."""


class UnknownNameError(UsageError):
    """A name that does not exist, with the nearest ones that do.

    Parameters
    ----------
    kind : str
        What was looked up: ``"site"``, ``"quantity"``, ``"plot"``.
    name : str
    known : iterable of str
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        listed = ", ".join(known) if known else "none"
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {listed}.")
        self.kind, self.name, self.known = kind, name, known


class NothingToRecordError(UsageError):
    """The model has no recurrent layer that gradscope knows how to record."""


class RunExistsError(UsageError):
    """The run directory or output exists already; nothing is overwritten."""


class RunError(GradscopeError):
    """The data or run is bad."""


class RunNotFoundError(RunError):
    """There is no run at that path."""


class RunDamagedError(RunError):
    """A file is truncated, corrupt, or not a gradscope run."""


class SchemaVersionError(RunError):
    """The run was written by a newer major version of the format."""


class UnsafeFileError(RunError):
    """The file asks for something that is refused: an external link, a filter plug-in, an unreasonable size."""


class EmptyRunError(RunError):
    """The run holds no record."""


class NotRecordedError(RunError):
    """The quantity was not recorded at that site."""


class AdapterError(GradscopeError):
    """A custom layer's adapter disagrees with autograd, or cannot be used."""


class InternalError(GradscopeError):
    """A fault of gradscope's own: please report it, with the traceback."""
