"""A run file may come from a stranger: nothing outside it is opened, no plug-in runs, sizes are checked before reading.

Every file of a run is opened here and nowhere else.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from gradscope.errors import GradscopeError, RunDamagedError, RunError, UnsafeFileError
from gradscope.store.budget import Budget
from gradscope.store.journal import BESIDE, EARLIER_STATEMENTS, STATEMENTS, JournalContent, read_content
from gradscope.store.part import MAX_ARRAY_BYTES
from gradscope.store.paths import check_file, open_file, present

MAX_DEPTH = 8
#: gradscope writes chunks of up to 1 MiB.
MAX_CHUNK_BYTES = 32 << 20
MAX_NAME_BYTES = 4096
MAX_ATTRIBUTE_BYTES = 64 << 20
MAX_ROW_BYTES = 1 << 30
#: Ends a rollback journal that belongs to a transaction over several files.
_ROLLBACK_MAGIC = bytes.fromhex("d9d505f920a163d7")
#: What h5py and numpy raise of a damaged file.
_FAULTS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
_ALLOWED_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def damaged(path: Path, what: object) -> RunDamagedError:
    """The error for a file that cannot be read, with its remedy."""
    text = " ".join(str(what).split())
    return RunDamagedError(
        f"{str(path)!r} is truncated, corrupt or not a gradscope file ({text}). "
        "`gradscope validate` lists what is wrong; `gradscope repair` keeps what can be read of a run directory."
    )


# --- HDF5 ------------------------------------------------------------------------------------------------------------


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever fails inside the block is reported as damage of this file.

    Raises
    ------
    RunDamagedError
    """
    with naming_damage(path), _raw_hdf5(path) as file:
        yield file


@contextmanager
def hold_hdf5(path: Path) -> Iterator[h5py.File]:
    """:func:`open_hdf5` for several reads: what fails inside the block need not be this file's fault.

    Each read names damage by :func:`naming_damage`.
    """
    with ExitStack() as stack:
        with naming_damage(path):
            file = stack.enter_context(_raw_hdf5(path))
        yield file


@contextmanager
def _raw_hdf5(path: Path) -> Iterator[h5py.File]:
    # Through a Python file: HDF5's own multi-file drivers, which take file names from the file, stay out.
    with open_file(path) as raw, h5py.File(raw, "r") as file:
        yield file


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Report whatever fails inside the block as damage of this file.

    Raises
    ------
    RunDamagedError
    """
    try:
        yield
    except GradscopeError:
        raise
    except PermissionError as error:
        raise RunError(f"may not read {str(path)!r}: {error.strerror}.") from error
    except (
        OSError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise damaged(path, error) from error


class Stored(NamedTuple):
    """What an array in a file is, known without reading it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Group(NamedTuple):
    """A group in a file: its arrays by name, and whether it holds a site."""

    arrays: dict[str, Stored]
    is_site: bool


def survey(file: h5py.File, path: Path, budget: Budget) -> dict[str, Group]:
    """Walk the whole file once, reading no data: every group by its path, and refuse what no run contains.

    Raises
    ------
    UnsafeFileError
    """
    walk = _Walk(path, budget)
    try:
        walk.group(file.id, "", 0)
    except UnsafeFileError as error:
        if str(path) in str(error):
            raise
        raise UnsafeFileError(f"{str(path)!r}: {error} It was not read.") from None
    if walk.stored > path.stat().st_size:
        raise UnsafeFileError(f"{str(path)!r}: its arrays lie on each other. It was not read.")
    return walk.groups


class _Walk:
    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self.budget, self.stored = path, budget, 0
        self.seen: set[int] = set()
        self.groups: dict[str, Group] = {}

    def group(self, group: h5py.h5g.GroupID, name: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise UnsafeFileError(f"group {name!r} is nested too deep.")
        self.budget.take("objects", group.get_num_objs(), self.path)
        self.budget.tick(self.path)
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda link, info: links.append((link, info.type)), info=True)
        arrays: dict[str, Stored] = {}
        is_site = h5py.h5a.exists(group, b"site")
        self.budget.take("sites", is_site, self.path)
        self.groups[name] = Group(arrays, is_site)
        for link, kind in links:
            if len(link) > MAX_NAME_BYTES:
                raise UnsafeFileError("a name is unreasonably long.")
            child = f"{name}/{link.decode('utf-8', 'surrogateescape')}".removeprefix("/")
            if kind != h5py.h5l.TYPE_HARD:
                raise UnsafeFileError(f"{child!r} is a link to elsewhere.")
            found = h5py.h5o.open(group, link)
            self._count(found, child)
            if isinstance(found, h5py.h5g.GroupID):
                self.group(found, child, depth + 1)
            elif isinstance(found, h5py.h5d.DatasetID):
                arrays[link.decode("utf-8", "surrogateescape")] = self.array(found, child)
            else:
                raise UnsafeFileError(f"{child!r} is neither a group nor a dataset.")
        if is_site:
            self.budget.take(
                "timesteps", max((max(a.shape[1:], default=0) for a in arrays.values()), default=0), self.path
            )

    def _count(self, found: h5py.h5g.ObjectID, name: str) -> None:
        info = h5py.h5o.get_info(found)
        self.budget.take("attributes", info.num_attrs, self.path)
        if info.addr in self.seen:
            raise UnsafeFileError(f"{name!r} is a second link to the same object.")
        self.seen.add(info.addr)

    def array(self, dataset: h5py.h5d.DatasetID, name: str) -> Stored:
        """Refuse a dataset that lives elsewhere, needs a plug-in, or is unreasonably large."""
        plist = dataset.get_create_plist()
        if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
            raise UnsafeFileError(f"the data of {name!r} lie in another file.")
        if not {plist.get_filter(index)[0] for index in range(plist.get_nfilters())} <= _ALLOWED_FILTERS:
            raise UnsafeFileError(f"{name!r} uses a filter other than deflate, shuffle and fletcher32.")
        kind = dataset.get_type()
        if not isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID)):
            raise UnsafeFileError(f"{name!r} holds neither numbers nor fixed-length text.")
        if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
            raise UnsafeFileError(f"{name!r} holds variable-length text.")
        if dataset.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            raise UnsafeFileError(f"{name!r} has no extent.")
        shape = tuple(map(int, dataset.shape))
        chunk = tuple(map(int, plist.get_chunk())) if plist.get_layout() == h5py.h5d.CHUNKED else None
        self._spend(name, shape, kind.get_size(), chunk)
        self.stored += dataset.get_storage_size()
        return Stored(shape, dataset.dtype)

    def _spend(self, name: str, shape: tuple[int, ...], itemsize: int, chunk: tuple[int, ...] | None) -> None:
        size = math.prod(shape) * itemsize
        if chunk is not None:
            if math.prod(chunk) * itemsize > MAX_CHUNK_BYTES:
                raise UnsafeFileError(f"{name!r} is cut into unreasonable chunks.")
            count = math.prod(-(-extent // along) for extent, along in zip(shape, chunk, strict=True))
            self.budget.take("chunks", count, self.path)
            size = max(size, min(count, 2) * math.prod(chunk) * itemsize)
        if size > MAX_ARRAY_BYTES:
            raise UnsafeFileError(f"{name!r} announces {size / 2**30:.1f} GiB, more than the limit.")
        self.budget.take("bytes", size, self.path)


def read_text(owner: h5py.Group, name: str, most: int = MAX_ATTRIBUTE_BYTES) -> str:
    """A fixed-length text attribute of bounded size.

    Raises
    ------
    ValueError, UnsafeFileError
        It is not there, or is something else.
    """
    attribute = _attribute(owner, name, most)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        raise UnsafeFileError(f"attribute {name!r} is not fixed-length text.")
    return bytes(owner.attrs[name]).decode("utf-8")


def read_integer(owner: h5py.Group, name: str) -> int:
    """An integer attribute.

    Raises
    ------
    ValueError, UnsafeFileError
    """
    attribute = _attribute(owner, name)
    if not isinstance(attribute.get_type(), h5py.h5t.TypeIntegerID):
        raise UnsafeFileError(f"attribute {name!r} is not an integer.")
    return int(owner.attrs[name])


def _attribute(owner: h5py.Group, name: str, most: int = 8) -> h5py.h5a.AttrID:
    if name not in owner.attrs:
        raise ValueError(f"attribute {name!r} is missing")
    attribute = h5py.h5a.open(owner.id, name.encode())
    if attribute.shape != () or attribute.get_type().get_size() > most:
        raise UnsafeFileError(f"attribute {name!r} is unreasonably large.")
    return attribute


# --- SQLite ----------------------------------------------------------------------------------------------------------


def load_journal(path: Path, budget: Budget | None = None, after: int = 0) -> JournalContent:
    """Read a journal, also one that another process is writing, or one on a disk that cannot be written.

    Of its rows those beyond ``after``.

    Raises
    ------
    FileNotFoundError
        It is gone: the writer has sealed it meanwhile.
    RunDamagedError, UnsafeFileError, SchemaVersionError
    """
    check_file(path)
    budget = budget or Budget.of([path])
    try:
        return _load(path, budget, after)
    except sqlite3.OperationalError as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        if "locked" in str(error):
            raise RunError(f"{str(path)!r} is locked by another process; try again.") from error
        return _load_copy(path, error, budget, after)
    except (sqlite3.Error, ValueError, OverflowError, RecursionError) as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        raise damaged(path, error) from error


def _load(path: Path, budget: Budget, after: int, name: Path | None = None) -> JournalContent:
    name = name or path
    with closing(connect(path)) as connection:
        connection.set_progress_handler(lambda: budget.late, 1_000_000)
        try:
            _check_sizes(connection, name)
            return read_content(connection, name, budget, after)
        except sqlite3.OperationalError:
            budget.tick(name)
            raise


def _load_copy(path: Path, cause: Exception, budget: Budget, after: int) -> JournalContent:
    """SQLite must undo what a crash left half written, and write beside an old journal; here it does so in a copy.

    Only ever after `connect` failed: opening and closing a journal by other means would drop the locks that SQLite
    holds on it in this process.
    """
    with copied(path, cause) as copy:
        try:
            return _load(copy, budget, after, path)
        except (OSError, sqlite3.Error, ValueError, OverflowError, RecursionError):
            raise damaged(path, cause) from cause


@contextmanager
def copied(path: Path, cause: Exception) -> Iterator[Path]:
    """A copy of a journal in which the half of a transaction that a crash has left is undone, and which keeps no log.

    Raises
    ------
    RunDamagedError, UnsafeFileError
    """
    with tempfile.TemporaryDirectory(prefix="gradscope-") as scratch:
        copy = Path(scratch) / path.name
        try:
            for suffix in ("", "-journal", "-wal"):
                source = path.with_name(path.name + suffix)
                if present(source):
                    with open_file(source) as whole, open(copy.with_name(copy.name + suffix), "wb") as target:
                        shutil.copyfileobj(whole, target)
            _check_rollback(copy.with_name(copy.name + "-journal"), path)
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                connection.execute("PRAGMA trusted_schema=OFF")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        except (OSError, sqlite3.Error):
            raise damaged(path, cause) from cause
        yield copy


def _check_rollback(journal: Path, path: Path) -> None:
    """Refuse a rollback journal that names another file: SQLite would open it, and may delete it."""
    if journal.exists() and journal.read_bytes()[-8:] == _ROLLBACK_MAGIC:
        raise UnsafeFileError(f"{str(path)!r} has a rollback journal that leads to another file. It was not read.")


def connect(path: Path) -> sqlite3.Connection:
    """Connection to a journal, read-only, that is known to contain nothing but our tables.

    Raises
    ------
    sqlite3.Error
    UnsafeFileError
    """
    for suffix in BESIDE:
        beside = path.with_name(path.name + suffix)
        if present(beside):
            check_file(beside)
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
    try:
        for pragma in ("trusted_schema=OFF", "query_only=ON", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}")
        if hasattr(connection, "setlimit"):  # Python 3.11
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
        # Without the right to write SQLite opens no write-ahead log so: it would put its index beside it, and map it.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        _check_schema(connection, path)
        connection.execute("PRAGMA locking_mode=NORMAL")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # only this lets go of the lock
    except BaseException:
        connection.close()
        raise
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute(
        "SELECT substr(sql, 1, 500) FROM sqlite_master WHERE sql IS NOT NULL LIMIT 10"
    ).fetchall()
    if {sql for (sql,) in found} not in (set(STATEMENTS), set(EARLIER_STATEMENTS)):
        raise UnsafeFileError(f"{str(path)!r} is not a gradscope journal: it has tables of its own. It was not read.")


def _check_sizes(connection: sqlite3.Connection, path: Path) -> None:
    """Before any row is loaded. A row's size stands at its beginning: rows may share what they claim to be made of."""
    total, longest = connection.execute("SELECT sum(length(payload)), max(length(payload)) FROM entries").fetchone()
    texts, text = connection.execute("SELECT sum(length(value)), max(length(value)) FROM info").fetchone()
    if (total or 0) + (texts or 0) > _database_bytes(connection):
        raise UnsafeFileError(f"{str(path)!r} announces more than it holds. It was not read.")
    if (longest or 0) > MAX_ROW_BYTES or (text or 0) > MAX_ATTRIBUTE_BYTES:
        raise UnsafeFileError(f"{str(path)!r} has an unreasonably large row. It was not read.")


def _database_bytes(connection: sqlite3.Connection) -> int:
    (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages * size)
