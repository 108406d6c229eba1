"""One file of a run directory, to share."""

from __future__ import annotations

from pathlib import Path

from gradscope.errors import RunError
from gradscope.store import segment
from gradscope.store.placing import new_file
from gradscope.store.run import open_run
from gradscope.store.steady import Steady


def pack(path: str | Path, out: str | Path) -> Path:
    """Write a run as one HDF5 file: every attempt and rank, what is still in a journal included.

    Parameters
    ----------
    path : str or Path
        A run directory or a packed file.
    out : str or Path
        The file to write. It appears complete, or not at all; of the arrays a few MiB are in memory at a time.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    RunExistsError
        There is something at ``out``.
    RunError
        The run cannot be read, or the disk refuses.

    See Also
    --------
    open_run : Reads either.
    """
    out = Path(out)
    with open_run(path) as run, run.opened():
        try:
            with new_file(out) as file:
                steady = Steady(file)
                segment.write(steady, run.parts, run.header, check=steady.check)
                steady.check()
        except OSError as error:
            raise RunError(f"cannot write {str(out)!r}: {error.strerror or error}. Nothing was left there.") from error
    return out
