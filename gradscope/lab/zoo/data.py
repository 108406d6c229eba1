"""The small real data sets that come with gradscope. Origin and licence: ``data/README.md``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gradscope.errors import GradscopeError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


class Digits(NamedTuple):
    """1,797 handwritten digits (Alpaydin & Kaynak 1998): ``images`` (1797, 8, 8) of 0-16 and ``labels`` (1797,)."""

    images: np.ndarray
    labels: np.ndarray


class Sunspots(NamedTuple):
    """Monthly mean sunspot number, 1749-1983: ``months`` (2820,) datetime64[M] and ``numbers`` (2820,)."""

    months: np.ndarray
    numbers: np.ndarray


def data_file(name: str) -> Traversable:
    """Find a file of the ``data`` directory, in an installed package or in a clone.

    Raises
    ------
    GradscopeError
        If the installation lacks it.
    """
    package = resources.files("gradscope")
    # A clone keeps data/ beside the package, a wheel inside it.
    for folder in (package / "data", Path(str(package)).parent / "data"):
        if (folder / name).is_file():
            return folder / name
    raise GradscopeError(f"the data file {name!r} is not part of this installation of gradscope; install it again.")


def load_digits() -> Digits:
    """Load the digits, in the order of the original file (shuffle before splitting)."""
    import gzip

    text = gzip.decompress(data_file("digits.csv.gz").read_bytes()).decode("ascii")
    table = np.loadtxt(text.splitlines(), delimiter=",", skiprows=1, dtype=np.int64)
    return Digits(table[:, :64].reshape(-1, 8, 8), table[:, 64])


def load_sunspots() -> Sunspots:
    """Load the monthly sunspot numbers."""
    lines = data_file("sunspots.csv").read_text(encoding="ascii").splitlines()[1:]
    months, numbers = zip(*(line.split(",") for line in lines), strict=True)
    return Sunspots(np.array(months, dtype="datetime64[M]"), np.array(numbers, dtype=np.float64))
