"""One file of a run directory, to share."""

from __future__ import annotations

from pathlib import Path

from gradscope.errors import RunError
from gradscope.store.exporting import already_there, refuse_existing
from gradscope.store.run import open_run
from gradscope.store.segment import build, write_durably


def pack(path: str | Path, out: str | Path) -> Path:
    """Write a run as one HDF5 file: every attempt and rank, what is still in a journal included.

    Parameters
    ----------
    path : str or Path
        A run directory or a packed file.
    out : str or Path
        The file to write. It appears complete, or not at all.

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
    refuse_existing(out)
    with open_run(path) as run:
        content = build(run.parts, run.header)
    try:
        write_durably(out, content, exclusive=True)
    except FileExistsError:
        raise already_there(out) from None
    except OSError as error:
        raise RunError(f"cannot write {str(out)!r}: {error.strerror or error}. Nothing was left there.") from error
    return out
