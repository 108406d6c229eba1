"""What is wrong with a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gradscope.errors import RunError, RunNotFoundError
from gradscope.schema import DATASETS
from gradscope.store import guard
from gradscope.store.codec import CorruptEntryError, decode
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.locking import is_being_written
from gradscope.store.part import RECORD_COLUMNS, TABLES, stretches
from gradscope.store.sealed import SealedPart
from gradscope.store.segment import checksum_path


def validate(path: str | Path) -> list[str]:
    """Read everything of a run and compare it with what it says of itself.

    Parameters
    ----------
    path : str or Path
        A run directory or a packed file.

    Returns
    -------
    list of str
        One sentence per problem, naming the file; empty when there is none. A run that is still growing, or whose
        process died, is no problem in itself.

    Raises
    ------
    RunNotFoundError
    """
    path = Path(path)
    if path.is_dir():
        return [problem for rank in rank_directories(path) for problem in _rank_problems(rank, path)]
    if not path.exists():
        raise RunNotFoundError(f"there is no run at {str(path)!r}.")
    return [*checksum_problems(path, required=False), *segment_problems(path, path.resolve().parent)[0]]


def _rank_problems(rank: RankDirectory, root: Path) -> Iterator[str]:
    last, closed = 0, False
    growing = is_being_written(rank.path)
    for segment in rank.segments():
        yield from checksum_problems(segment, required=True)
        problems, part = segment_problems(segment, root)
        yield from problems
        if part is not None:
            if part.header.first_id > last + 1:
                yield f"{str(segment)!r}: entries {last + 1} to {part.header.first_id - 1} before it are missing."
            last, closed = part.header.last_id, part.header.closing
    if rank.journal.exists() or rank.journal.is_symlink():
        yield from _journal_problems(rank.journal, root)
    elif not closed and not growing:
        yield f"{str(rank.path)!r}: the end of the run is missing (neither a journal nor a closing segment)."
    for left in [] if growing else sorted(rank.path.glob(".*.tmp")):
        yield f"{str(left)!r} was left behind by an interrupted write; `gradscope repair` removes it."


def checksum_problems(path: Path, *, required: bool) -> list[str]:
    """Compare a file with the SHA-256 beside it."""
    beside = checksum_path(path)
    if not beside.is_file():
        return [f"{str(path)!r} has no checksum beside it ({beside.name})."] if required else []
    try:
        with open(path, "rb") as file:
            digest = _sha256(file)
        stated = beside.read_bytes()[:64].decode("ascii", "replace")
    except OSError as error:
        return [f"{str(path)!r} cannot be read: {error.strerror}."]
    return [] if digest == stated else [f"{str(path)!r} differs from its checksum: it was changed or damaged."]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def segment_problems(path: Path, root: Path) -> tuple[list[str], SealedPart | None]:
    """Problems of one HDF5 file, and the file as a part if it can be opened."""
    try:
        guard.check_path(path, root)
        part = SealedPart(path)
        with part.opened():
            return _problems_within(part, path), part
    except RunError as error:
        return [str(error)], None


def _problems_within(part: SealedPart, path: Path) -> list[str]:
    problems = []
    for site in part.sites():
        try:
            problems += [f"{str(path)!r}: site {site!r}: {what}" for what in _site_problems(part, site)]
        except RunError as error:
            problems.append(f"{error} (site {site!r})")
    for group in TABLES:
        try:
            part.table(group)
        except RunError as error:
            problems.append(f"{error} (group {group!r})")
    return problems


def _site_problems(part: SealedPart, site: str) -> Iterator[str]:
    for name in RECORD_COLUMNS:
        part.column(site, name)
    lengths, rows = part.column(site, "length"), part.column(site, "row")
    sizes = part.extent(site)
    if (lengths < 0).any() or ((lengths > max(sizes.get("lag", 0), sizes.get("time", 0), 0)).any() and "lag" in sizes):
        yield "a sequence is longer than its axis."
    if ((rows < 0) & (lengths > 0)).any():
        yield "a sequence has no batch row."
    for dataset in part.datasets(site):
        recorded, wrong = part.recorded(site, dataset), set()
        for records in stretches(part, site, dataset):
            wrong |= _array_problems(part.array(site, dataset, records), dataset, lengths[records], recorded[records])
        yield from sorted(wrong)


def _array_problems(values: np.ndarray, dataset: str, lengths: np.ndarray, recorded: np.ndarray) -> set[str]:
    found = set()
    if DATASETS[dataset][:2] == ("sequence", "lag"):
        beyond = np.arange(values.shape[2]) >= lengths[:, :, None]
        if not np.isnan(values[beyond]).all():
            found.add(f"{dataset} has numbers beyond the end of a sequence.")
    if not np.isnan(values[~recorded]).all():
        found.add(f"{dataset} has numbers in a record that says it has none.")
    return found


def _journal_problems(path: Path, root: Path) -> Iterator[str]:
    try:
        guard.check_path(path, root)
        content = guard.load_journal(path)
    except FileNotFoundError:
        return  # sealed meanwhile
    except RunError as error:
        yield str(error)
        return
    bad = 0
    for _, kind, payload in content.rows:
        try:
            decode(kind, payload)
        except CorruptEntryError:
            bad += 1
    if bad:
        yield f"{str(path)!r}: {bad} of {len(content.rows)} entries cannot be read; `gradscope repair` keeps the rest."
