"""Whether the unrelated package that the index calls ``gradscope`` was installed over this one.

Both write into one folder and have one command: files of the one replace those of the other, in silence.
"""

from __future__ import annotations

import os
import warnings


def check(package: str | os.PathLike[str]) -> None:
    """Warn where that package is installed beside ``package``, the folder of this one.

    A listing of the folder, since importlib.metadata would take longer to import than all of this package.
    """
    site = os.path.dirname(os.fspath(package))
    try:
        beside = [name for name in os.listdir(site) if name.lower().startswith("gradscope-")]
    except OSError:  # a zipped installation
        return
    if any(name.endswith((".dist-info", ".egg-info")) for name in beside):
        warnings.warn(
            f"{site} holds gradscope-rnn and the unrelated package gradscope, which replace each other's files. "
            "Remove both with: pip uninstall gradscope gradscope-rnn, then: pip install gradscope-rnn",
            UserWarning,
            stacklevel=3,
        )
