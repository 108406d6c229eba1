"""Published experiments, measured again: ``gradscope lab replicate``.

Each module has ``replicate(quick=False)``, which returns a :class:`~gradscope.lab.replications.telling.Replication`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from gradscope.errors import UnknownNameError

if TYPE_CHECKING:
    from gradscope.lab.replications.telling import Replication

#: Name to the module that does it, and one line of what is measured.
PAPERS: dict[str, tuple[str, str]] = {
    "chen": ("gradscope.lab.replications.chen", "Chen 2018: mean-field theory of the Jacobian's singular values"),
    "engelken": ("gradscope.lab.replications.engelken", "Engelken 2023: onset of chaos, dimension of its attractor"),
    "le": (
        "gradscope.lab.replications.le",
        "Le 2015: rectified linear units from the identity, adding problem by length",
    ),
    "pascanu": (
        "gradscope.lab.replications.pascanu",
        "Pascanu 2013: clipping and regulariser on the temporal order problem, by length",
    ),
    "saxe": ("gradscope.lab.replications.saxe", "Saxe 2014: orthogonal deep linear networks, learning time by depth"),
    "tallec": ("gradscope.lab.replications.tallec", "Tallec & Ollivier 2018: chrono initialisation against length"),
}


def named(name: str) -> Callable[..., Replication]:
    """The function that replicates a paper.

    Raises
    ------
    UnknownNameError
        If there is no such paper.
    """
    if name not in PAPERS:
        raise UnknownNameError("replication", name, PAPERS)
    replicate: Callable[..., Replication] = importlib.import_module(PAPERS[name][0]).replicate
    return replicate
