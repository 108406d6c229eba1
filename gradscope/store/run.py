"""Reading a run, sealed or growing, from one process or many. Never needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.errors import EmptyRunError, NotRecordedError, UnknownNameError
from gradscope.schema import (
    CLIPS_GROUP,
    DATASETS,
    PARAMETERS_GROUP,
    QUANTITIES,
    STEPS_GROUP,
    Coverage,
    RunMeta,
    SiteInfo,
    in_order,
)
from gradscope.store import codec, frames, guard
from gradscope.store.budget import Budget, check_padding
from gradscope.store.codec import CorruptEntryError, Entry, dtype_of
from gradscope.store.header import merge
from gradscope.store.journal import Row
from gradscope.store.layout import RankDirectory, rank_directories
from gradscope.store.nearby import no_run
from gradscope.store.part import SEQUENCE_COLUMNS, Block, Header, Part, blocks, check_size, pay_for_stacking
from gradscope.store.paths import begins_as_hdf5, check_file, present
from gradscope.store.roles import RoleView
from gradscope.store.sealed import MAX_OPEN_FILES, Held, SealedPart

if TYPE_CHECKING:
    import pandas as pd


def open_run(path: str | Path, *, budget: float | None = None) -> Run:
    """Open a run to read it: a run directory, also while it grows, or a packed ``.h5`` file.

    What is read is the run at this moment; open it again to see what came later.

    Parameters
    ----------
    path : str or Path
        What was passed to ``gradscope.record``, or the file that ``gradscope pack`` wrote.
    budget : float, optional
        How many times what a stranger's run may cost this one may, for its size on disk; by default the environment
        variable ``GRADSCOPE_BUDGET``, else 1.

    Raises
    ------
    RunNotFoundError
        There is no run.
    RunDamagedError
        A file is truncated, corrupt or not a gradscope file.
    SchemaVersionError
        It was written by a newer major version.
    UnsafeFileError
        It asks for something that is refused.

    See Also
    --------
    gradscope.store.pack : One file of a directory.
    """
    return load_run(path, budget=budget)


def load_run(path: str | Path, *, budget: float | None = None, held: Held | None = None) -> Run:
    """:func:`open_run`; its files stay open in ``held``, for who reads them next."""
    path = Path(path)
    if path.is_dir():
        ranks = rank_directories(path)
        whole = Budget.of((file for rank in ranks for file in rank.files()), budget)
        loaded = [load_rank(rank, whole, held) for rank in ranks]
        parts = [part for _, rank_parts, _ in loaded for part in rank_parts]
        return Run(path, merge(header for header, _, _ in loaded), parts, sealed=all(done for _, _, done in loaded))
    if not path.exists():
        raise no_run(path)
    file = path.resolve()  # a link to a file is the user's own choice
    check_file(file)
    if file.suffix != ".h5" and not begins_as_hdf5(file):
        raise no_run(
            path,
            f"{str(path)!r} is no run: give the directory that was passed to gradscope.record, or a packed .h5 file.",
        )
    part = SealedPart(file, Budget.of([file], budget), held)
    return Run(path, part.header, [part], sealed=True)


def load_rank(rank: RankDirectory, budget: Budget, held: Held | None = None) -> tuple[Header, list[Part], bool]:
    """What one process wrote: the newest header, the parts, and whether it is sealed.

    The journal is read before the segments are listed, so that rows which the writer seals meanwhile are seen twice
    and counted once, not missed.
    """
    content = None
    if present(rank.journal):
        try:
            content = guard.load_journal(rank.journal, budget)
        except FileNotFoundError:
            content = None
    sealed: list[SealedPart] = []
    for segment in rank.segments():
        sealed.append(SealedPart(segment, budget, held))
        if len(sealed) > 1 and sealed[-1].header.first_id <= sealed[-2].header.last_id:
            raise guard.damaged(segment, "it holds entries that the segment before it holds too")
    last = sealed[-1].header if sealed else Header()
    if content is None:
        return last, list(sealed), last.closing
    if last.closing:
        return last, list(sealed), True
    if content.first_id > last.last_id + 1:
        raise guard.damaged(rank.journal, f"the entries before {content.first_id} are missing")
    rows = [row for row in content.rows if row[0] > last.last_id]
    header = replace(content.header, first_id=last.last_id + 1, last_id=rows[-1][0] if rows else last.last_id)
    return header, [*sealed, *journal_parts(rank, rows, content.header, budget)], False


def journal_parts(rank: RankDirectory, rows: Sequence[Row], header: Header, budget: Budget) -> list[Part]:
    """Rows of a journal, as parts.

    Raises
    ------
    RunDamagedError, UnsafeFileError
    """
    entries = _decoded(rows, rank.journal, budget)
    gates = {site: info.gates for site, info in header.sites.items()}
    return [Block(entries[a:b], rank.attempt, rank.rank, gates) for a, b in blocks(entries)]


def _decoded(rows: Sequence[Row], path: Path, budget: Budget) -> list[Entry]:
    budget.take("rows", len(rows), path)
    entries: list[Entry] = []
    for row in rows:
        budget.take("items", codec.items_of(row[2]), path)
        if len(entries) % 1000 == 0:
            budget.tick(path)
        try:
            entries.append(codec.decode(row[1], row[2]))
        except CorruptEntryError as error:
            raise guard.damaged(path, error) from error
    pay_for_stacking(entries, budget, path)
    return entries


class Run:
    """Records of one training, as `open_run` returns them.

    Attributes
    ----------
    path : Path
    name : str
        Last part of the path, without ``.h5``.
    metas : tuple of RunMeta
        One for each attempt and rank.
    coverage : list of Coverage
        Which sites were seen, and why one was not.
    lost : dict of str to int
        What could not be recorded: reason to count.
    sealed : bool
        Whether the recorder has closed the run (or it was packed or repaired).
    apart : Run
        The same run's passes that fed no update: dropped, of another loss, further evaluations of a closure.
    """

    def __init__(self, path: Path, header: Header, parts: Sequence[Part], *, sealed: bool, apart: bool = False) -> None:
        self.path = path
        self.name = path.resolve().name.removesuffix(".h5")
        self.header = header
        self.parts = tuple(parts)
        self.sealed = sealed
        self._shown = tuple(RoleView(part, apart) for part in self.parts)
        #: What readers keep with the run, until it is closed.
        self.held: dict[Any, Any] = {}

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        counted = (f"{count} {what}{'s' * (count != 1)}" for count, what in self._sizes())
        return f"<Run {self.name!r}: {' at '.join(counted)}, {state}>"

    def _sizes(self) -> tuple[tuple[int, str], ...]:
        return (self.n_records, "record"), (len(self.sites), "site")

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was read; files are only ever open during a read."""
        self.parts = self._shown = ()
        self.held = {}

    @property
    def apart(self) -> Run:
        return Run(self.path, self.header, self.parts, sealed=self.sealed, apart=True)

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Keep the run's files open while much is read of them; each is otherwise opened for every array."""
        with ExitStack() as stack:
            for part in self.parts[:MAX_OPEN_FILES]:
                if isinstance(part, SealedPart):
                    stack.enter_context(part.opened())
            yield self

    # --- what the run says of itself ---------------------------------------------------------------------------------

    @property
    def metas(self) -> tuple[RunMeta, ...]:
        return self.header.metas

    @property
    def meta(self) -> RunMeta:
        """Of the first attempt."""
        return self.metas[0] if self.metas else RunMeta("", "", "", {}, {})

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of ``record``."""
        return self.meta.settings

    @property
    def model(self) -> dict[str, Any]:
        """Class, parameter count and text of the model."""
        return self.meta.model

    @property
    def coverage(self) -> list[Coverage]:
        return list(self.header.coverage)

    @property
    def lost(self) -> dict[str, int]:
        return dict(self.header.lost)

    @property
    def n_records(self) -> int:
        return sum(part.n_records for part in self._shown)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Sites with at least one record, in the model's order."""
        found = dict.fromkeys(site for part in self._shown for site in part.sites())
        known = [site for site in self.header.sites if site in found]
        return tuple(in_order(dict.fromkeys([*known, *found])))

    def site(self, site: str) -> SiteInfo:
        """What is known of a site.

        Raises
        ------
        UnknownNameError
        """
        if site in self.header.sites:
            return self.header.sites[site]
        if site in self.sites:
            return SiteInfo(site, site.rpartition("/")[0], "", "")
        raise UnknownNameError("site", site, {*self.sites, *self.header.sites})

    def quantities(self, site: str) -> tuple[str, ...]:
        """Quantities with anything recorded at the site, in the order of ``schema.QUANTITIES``."""
        present = set(self.datasets(site))
        return tuple(
            name
            for name, quantity in QUANTITIES.items()
            if present & {*quantity.datasets, *([f"{name}_tensor"] if quantity.tensor else ())}
        )

    def datasets(self, site: str) -> tuple[str, ...]:
        """Datasets with anything recorded at the site, in the order of ``schema.DATASETS``."""
        present = {name for part in self._at(site) for name in part.datasets(site)}
        return tuple(name for name in DATASETS if name in present)

    def nbytes(self, site: str, dataset: str) -> int:
        """Size of :meth:`array` in memory, without reading it."""
        extents = [part.extent(site) for part in self._at(site)]
        size = sum(extent["step"] for extent in extents) * dtype_of(dataset).itemsize
        for dim in DATASETS[dataset]:
            size *= max(extent.get(dim, 1) for extent in extents)
        return size

    def require_records(self) -> Run:
        """The run itself, if there is anything to look at.

        Raises
        ------
        EmptyRunError
        """
        if not any(part.n_records for part in self._shown):
            lost = "; ".join(f"{count} lost: {reason}" for reason, count in self.lost.items())
            raise EmptyRunError(
                f"the run {str(self.path)!r} holds no record{f' ({lost})' if lost else ''}. {self._why_empty()}"
                f"{self._said_of_apart()}"
            )
        return self

    def _why_empty(self) -> str:
        known = [f"{line.site}: {line.reason}." for line in self.coverage if line.status != "recorded" and line.reason]
        return " ".join(known[:3]) or (
            "A record is written when backward has run on a loss that reaches a recorded layer, and an update has used "
            "its gradient."
        )

    def _said_of_apart(self) -> str:
        count = sum(part.n_records for part in self.parts)
        if count == 1:
            return " 1 record of a pass that fed no update is in run.apart."
        return f" {count} records of passes that fed no update are in run.apart." if count else ""

    # --- arrays ------------------------------------------------------------------------------------------------------

    def array(self, site: str, dataset: str) -> np.ndarray:
        """One dataset of every record at a site.

        Parameters
        ----------
        site : str
        dataset : str
            A key of ``schema.DATASETS``: ``"hidden"``, ``"gate_mean"``, ``"cell_tensor"``.

        Returns
        -------
        ndarray, shape (record, \\*DATASETS[dataset])
            Records in the order of attempt, rank and time; NaN beyond a sequence's length.

        Raises
        ------
        UnknownNameError, NotRecordedError
        """
        parts = self._with(site, dataset)
        return self._stack(
            site,
            ("step", *DATASETS[dataset]),
            dtype_of(dataset),
            np.nan,
            [part.array(site, dataset) if dataset in part.datasets(site) else None for part in parts],
        )

    def lengths(self, site: str) -> np.ndarray:
        """Length of each sequence, int (record, sequence); 0 where a record has no such sequence."""
        return self._sequence_column(site, "length")

    def rows(self, site: str) -> np.ndarray:
        """Batch row of each sequence, int (record, sequence); -1 where a record has no such sequence."""
        return self._sequence_column(site, "row")

    def _sequence_column(self, site: str, name: str) -> np.ndarray:
        values = [part.column(site, name) for part in self._at(site)]
        return self._stack(site, ("step", "sequence"), np.dtype("<i4"), SEQUENCE_COLUMNS[name], values)

    def _stack(
        self, site: str, dims: tuple[str, ...], dtype: np.dtype[Any], fill: float, pieces: Sequence[np.ndarray | None]
    ) -> np.ndarray:
        extents = [part.extent(site) for part in self._at(site)]
        total = sum(extent["step"] for extent in extents)
        shape = (total, *(max(extent.get(dim, 1) for extent in extents) for dim in dims[1:]))
        check_padding(math.prod(shape) * dtype.itemsize, sum(p.nbytes for p in pieces if p is not None), self.path)
        whole = np.full(check_size(shape, dtype, f"{self.path} {site}"), fill, dtype)
        start = 0
        for extent, piece in zip(extents, pieces, strict=True):
            if piece is not None:
                whole[(slice(start, start + len(piece)), *map(slice, piece.shape[1:]))] = piece
            start += extent["step"]
        return whole

    def _at(self, site: str) -> list[RoleView]:
        """Parts with records of the site."""
        parts = [part for part in self._shown if part.holds(site)]
        if not parts:
            info = self.site(site)
            raise NotRecordedError(f"nothing was recorded at {info.site!r}; run.coverage says why.")
        return parts

    def _with(self, site: str, dataset: str) -> list[RoleView]:
        """Parts with records of the site, at least one of which has the dataset."""
        if dataset not in DATASETS:
            raise UnknownNameError("dataset", dataset, DATASETS)
        parts = self._at(site)
        present = {name for part in parts for name in part.datasets(site)}
        if dataset not in present:
            known = ", ".join(name for name in DATASETS if name in present) or "nothing"
            quantity = next(
                name for name, q in QUANTITIES.items() if dataset in q.datasets or dataset == f"{name}_tensor"
            )
            extra = ", tensors=True" if dataset.endswith("_tensor") else ""
            advice = f"Record it with gradscope.record(..., quantities=[{quantity!r}, ...]{extra})."
            if lacks := self.site(site).lacks(quantity):
                advice = f"No recording can hold it there: {lacks}."
            raise NotRecordedError(
                f"{dataset!r} was not recorded at {site!r} of {str(self.path)!r} (there is: {known}). {advice}"
            )
        return parts

    # --- tables ------------------------------------------------------------------------------------------------------

    def records(self, site: str) -> pd.DataFrame:
        """One row per record at the site: step, micro, attempt, rank, loss scale, skipped, non-finite, carried, role.

        Passes that fed no update are not among them: ``run.apart.records(site)`` has these.
        """
        if site not in self.sites and site in self.header.sites:
            return frames.records([], site)
        return frames.records(self._at(site), site)

    def norms(self, site: str, quantity: str) -> pd.DataFrame:
        """Norms as a tidy table, one row per value.

        Parameters
        ----------
        site : str
        quantity : str
            A quantity with one dataset (``"cell"``, ``"gates"``, ``"weight"``), or a dataset's own name.

        Returns
        -------
        DataFrame
            ``step``, the dataset's axes (``sequence``, ``lag``; ``gate``; ``time``), ``norm``, ``micro``, ``attempt``,
            ``rank`` and ``flag``: empty, ``zero`` (exactly), ``below-normal`` (precision was lost) or
            ``non-finite``. What lies beyond a sequence's length has no row.

        Raises
        ------
        UnknownNameError, NotRecordedError
        """
        datasets = tuple(QUANTITIES[quantity].datasets) if quantity in QUANTITIES else (quantity,)
        if len(datasets) > 1:
            raise UnknownNameError("dataset", quantity, datasets)
        if quantity not in QUANTITIES and quantity not in DATASETS:
            raise UnknownNameError("quantity", quantity, {*QUANTITIES, *DATASETS})
        return frames.norms(self._with(site, datasets[0]), site, datasets[0])

    def norms_in_pieces(self, site: str, dataset: str, most: int = 1 << 20) -> Iterator[pd.DataFrame]:
        """The rows of :meth:`norms` of one dataset, a table for every ``most`` bytes of it: for runs beyond memory."""
        return frames.norms_in_pieces(self._with(site, dataset), site, dataset, most)

    def steps(self) -> pd.DataFrame:
        """Scalars of every optimizer step: step, attempt, rank, time, and one column per logged name."""
        return frames.table(self._shown, STEPS_GROUP, self.path)

    def clips(self) -> pd.DataFrame:
        """One row per clipping call: attempt, rank and the fields of `ClipEvent`."""
        return frames.table(self._shown, CLIPS_GROUP, self.path)

    def parameters(self) -> pd.DataFrame:
        """Gradient 2-norm of each parameter: step, micro, attempt, rank, and one column per parameter."""
        return frames.table(self._shown, PARAMETERS_GROUP, self.path)
