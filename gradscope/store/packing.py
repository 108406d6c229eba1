"""One file of a run directory, to share."""

from __future__ import annotations

from pathlib import Path

from gradscope.errors import RunExistsError, RunNotFoundError
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
        The run cannot be read.

    See Also
    --------
    open_run : Reads either.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise _exists(out)
    if not out.absolute().parent.is_dir():
        raise RunNotFoundError(f"there is no directory {str(out.parent)!r} to write {out.name!r} in.")
    with open_run(path) as run:
        content = build(run.parts, run.header)
    try:
        write_durably(out, content, exclusive=True)
    except FileExistsError:
        raise _exists(out) from None
    return out


def _exists(out: Path) -> RunExistsError:
    return RunExistsError(f"{str(out)!r} exists already and is never overwritten. Choose another name or remove it.")
