"""What is wrong with a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gradscope.errors import RunError
from gradscope.schema import DATASETS
from gradscope.store import guard
from gradscope.store.budget import Budget
from gradscope.store.codec import CorruptEntryError, decode, items_of
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.locking import is_being_written
from gradscope.store.nearby import no_run
from gradscope.store.part import RECORD_COLUMNS, TABLES, stretches
from gradscope.store.paths import open_file, present
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
        ranks = rank_directories(path)
        budget = Budget.of(file for rank in ranks for file in rank.files())
        return [problem for rank in ranks for problem in _rank_problems(rank, budget)]
    if not path.exists():
        raise no_run(path)
    file = path.resolve()  # a link to a file is the user's own choice
    return [*checksum_problems(file, required=False), *segment_problems(file, Budget.of([file]))[0]]


def _rank_problems(rank: RankDirectory, budget: Budget) -> Iterator[str]:
    last, closed = 0, False
    growing = is_being_written(rank.path)
    for segment in rank.segments():
        yield from checksum_problems(segment, required=True)
        problems, part = segment_problems(segment, budget)
        yield from problems
        if part is not None:
            if part.header.first_id > last + 1:
                yield f"{str(segment)!r}: entries {last + 1} to {part.header.first_id - 1} before it are missing."
            elif part.header.first_id <= last:
                yield f"{str(segment)!r} repeats entries of the segment before it; `gradscope repair` sets it aside."
            last, closed = part.header.last_id, part.header.closing
    if present(rank.journal):
        yield from _journal_problems(rank.journal, budget, last, closed)
    elif not closed and not growing:
        yield f"{str(rank.path)!r}: the end of the run is missing (neither a journal nor a closing segment)."
    for left in [] if growing else rank.left_behind():
        yield f"{str(left)!r} was left behind by an interrupted write; `gradscope repair` removes it."


def checksum_problems(path: Path, *, required: bool) -> list[str]:
    """Compare a file with the SHA-256 beside it."""
    beside = checksum_path(path)
    if not present(beside):
        return [f"{str(path)!r} has no checksum beside it ({beside.name})."] if required else []
    try:
        with open_file(beside) as file:
            stated = file.read(64).decode("ascii", "replace")
        with open_file(path) as file:
            digest = _sha256(file)
    except RunError as error:
        return [str(error)]
    except OSError as error:
        return [f"{str(path)!r} cannot be read: {error.strerror}."]
    return [] if digest == stated else [f"{str(path)!r} differs from its checksum: it was changed or damaged."]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def segment_problems(path: Path, budget: Budget) -> tuple[list[str], SealedPart | None]:
    """Problems of one HDF5 file, and the file as a part if it can be opened."""
    try:
        part = SealedPart(path, budget)
    except RunError as error:
        return [str(error)], None
    return problems_within(part), part


def problems_within(part: SealedPart) -> list[str]:
    """Problems of an HDF5 file that was opened, everything in it read once."""
    problems = []
    try:
        with part.opened():
            for site in part.sites():
                try:
                    problems += [f"{str(part.path)!r}: site {site!r}: {what}" for what in _site_problems(part, site)]
                except RunError as error:
                    problems.append(f"{error} (site {site!r})")
            for group in TABLES:
                try:
                    part.table(group)
                except RunError as error:
                    problems.append(f"{error} (group {group!r})")
    except RunError as error:
        problems.append(str(error))
    return problems


def _site_problems(part: SealedPart, site: str) -> Iterator[str]:
    for name in RECORD_COLUMNS:
        part.column(site, name)
    lengths, rows = part.column(site, "length"), part.column(site, "row")
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


def _journal_problems(path: Path, budget: Budget, last: int, closed: bool) -> Iterator[str]:
    try:
        content = guard.load_journal(path, budget)
    except FileNotFoundError:
        return  # sealed meanwhile
    except RunError as error:
        yield str(error)
        return
    if content.first_id > last + 1 and not closed:
        yield f"{str(path)!r}: entries {last + 1} to {content.first_id - 1} before it are missing."
    bad = 0
    for _, kind, payload in content.rows:
        budget.take("items", items_of(payload), path)
        try:
            decode(kind, payload)
        except CorruptEntryError:
            bad += 1
    if bad:
        yield f"{str(path)!r}: {bad} of {len(content.rows)} entries cannot be read; `gradscope repair` keeps the rest."
