"""What reading a run may cost: one budget a run, in proportion to its size on disk, spent before anything is allocated.

What gradscope writes stays far below; a file made to cost much does not. Every limit is a free amount and so much for
each byte on disk, so that a large run may take what it needs and a small file cannot.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradscope.errors import SettingError, UnsafeFileError
from gradscope.store.paths import stored_bytes

#: Multiplies every limit, for runs one trusts.
VARIABLE = "GRADSCOPE_BUDGET"


@dataclass(frozen=True)
class Limit:
    """So much of ``what``, and ``per_byte`` more for each byte on disk."""

    what: str
    free: float
    per_byte: float


LIMITS = {
    # Padding compresses well, numbers do not: a run of ragged sequences comes to 10, deflate can do 1032.
    "bytes": Limit("bytes of arrays", 64 << 20, 24),
    "chunks": Limit("chunks of arrays", 100_000, 1 / 1024),
    "objects": Limit("groups and arrays", 20_000, 1 / 512),
    # Beside a record of numbers, at least four bytes each; what has faded to zeros compresses to nothing.
    "timesteps": Limit("timesteps of sites", 100_000, 1 / 2),
    # Each has some 26 arrays, of which writing takes a millisecond.
    "sites": Limit("sites", 250, 1 / (32 << 10)),
    "attributes": Limit("attributes", 200_000, 1 / 128),
    "characters": Limit("characters of JSON", 4 << 20, 2),
    "items": Limit("values in JSON", 500_000, 1 / 10),
    "rows": Limit("rows of tables", 200_000, 1 / 8),
    "names": Limit("names of scalars and parameters", 5_000, 1 / 256),
    "lines": Limit("lines of CSV", 2_000_000, 1),
    "files": Limit("files", 1_000, 1 / 4096),
}
#: How many times what its parts take one array of all of them may take.
_MOST_PADDED = 16
#: Of this thread's own processor time: another program's load does not count.
SECONDS = Limit("seconds", 10, 1 / (8 << 20))


class Budget:
    """What one run may still cost.

    Parameters
    ----------
    size : int
        Of the run on disk, bytes.
    factor : float, optional
        Times the ordinary limits; by default the environment variable ``GRADSCOPE_BUDGET``, else 1.

    Raises
    ------
    SettingError
        The factor is no positive number.
    """

    def __init__(self, size: int, factor: float | None = None) -> None:
        self.size, self.factor = size, _factor() if factor is None else _positive(factor, "budget")
        self._taken = dict.fromkeys(LIMITS, 0.0)
        self._began = time.thread_time()

    @classmethod
    def of(cls, files: Iterable[Path], factor: float | None = None) -> Budget:
        """For these files together."""
        sizes = [stored_bytes(path) for path in files]
        budget = cls(sum(sizes), factor)
        if sizes:
            budget.take("files", len(sizes), "the run")
        return budget

    def limit(self, kind: str) -> float:
        """How much of a kind there is in all."""
        return self.factor * (LIMITS[kind].free + LIMITS[kind].per_byte * self.size)

    def take(self, kind: str, amount: float, path: Path | str) -> None:
        """Spend from it, before what it is for is allocated.

        Raises
        ------
        UnsafeFileError
            It is used up. Names the file, the limit and how to raise it.
        """
        self._taken[kind] += amount
        if self._taken[kind] > (limit := self.limit(kind)):
            raise UnsafeFileError(
                f"{str(path)!r} brings the run to {self._taken[kind]:,.0f} {LIMITS[kind].what}; {self.size:,} bytes on "
                f"disk may hold {math.floor(limit):,}. {_remedy(self.factor)}"
            )

    @property
    def late(self) -> bool:
        """Whether opening the run has taken too long."""
        return time.thread_time() - self._began > self._seconds

    @property
    def _seconds(self) -> float:
        return self.factor * (SECONDS.free + SECONDS.per_byte * self.size)

    def tick(self, path: Path | str) -> None:
        """Look at the clock.

        Raises
        ------
        UnsafeFileError
            Opening the run has taken too long.
        """
        if self.late:
            raise UnsafeFileError(f"{str(path)!r} takes over {self._seconds:.0f} s to open. {_remedy(self.factor)}")


def check_padding(total: int, held: int, path: Path | str) -> None:
    """Refuse to stack parts to far more than they hold, which was paid for when they were opened.

    Raises
    ------
    UnsafeFileError
    """
    factor = _factor()
    if total > factor * (LIMITS["bytes"].free + _MOST_PADDED * held):
        raise UnsafeFileError(
            f"{str(path)!r}: its parts differ so much that together they take {total:,} bytes for {held:,}. "
            f"{_remedy(factor)}"
        )


def _remedy(factor: float) -> str:
    return f"If you know whom the run is from, read it with {VARIABLE}={8 * factor:g} in the environment."


def _factor() -> float:
    return _positive(os.environ.get(VARIABLE, "").strip() or 1.0, VARIABLE)


def _positive(value: float | str, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise SettingError(f"{name} must be a positive number, times the ordinary limits, not {value!r}.")
    return number
