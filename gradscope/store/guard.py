"""A run file may come from a stranger: nothing outside it is opened, no plug-in runs, sizes are checked before reading.

Every file of a run is opened here and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import h5py

from gradscope.errors import GradscopeError, RunDamagedError, RunError, RunNotFoundError, UnsafeFileError
from gradscope.store.journal import BESIDE, STATEMENTS, JournalContent, read_content
from gradscope.store.part import MAX_ARRAY_BYTES

MAX_OBJECTS = 200_000
MAX_DEPTH = 8
MAX_CHUNKS = 1 << 20
MAX_CHUNK_BYTES = 256 << 20
MAX_ATTRIBUTE_BYTES = 64 << 20
MAX_ROW_BYTES = 1 << 30
#: Deflate cannot do better than 1032:1; what announces more is made of data that was never written.
_MAX_RATIO = 1100
_FREE_BYTES = 64 << 20
#: Ends a rollback journal that belongs to a transaction over several files.
_ROLLBACK_MAGIC = bytes.fromhex("d9d505f920a163d7")
_ALLOWED_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


def check_path(path: Path, root: Path) -> None:
    """Refuse what is not an ordinary file, or a link that leads out of ``root``.

    Raises
    ------
    RunNotFoundError, UnsafeFileError
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise RunNotFoundError(f"cannot open {str(path)!r}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UnsafeFileError(f"{str(path)!r} is not an ordinary file; it was not opened.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnsafeFileError(
            f"{str(path)!r} is a link that leads out of {str(root)!r}; it was not opened. Replace it by the file."
        )


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
    with open(path, "rb", buffering=0) as raw, h5py.File(raw, "r") as file:
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
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, UnicodeError) as error:
        raise damaged(path, error) from error


def check_hdf5(file: h5py.File, path: Path) -> None:
    """Walk the whole file once, reading no data, and refuse what no run contains.

    Raises
    ------
    UnsafeFileError
    """
    try:
        _Walk().group(file, 0)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{str(path)!r}: {error} It was not read.") from None


class _Walk:
    def __init__(self) -> None:
        self.objects = 0
        self.seen: set[int] = set()

    def group(self, group: h5py.Group, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise UnsafeFileError(f"group {group.name!r} is nested too deep.")
        for name in _link_names(group):
            self.objects += 1
            if self.objects > MAX_OBJECTS:
                raise UnsafeFileError("it holds too many objects.")
            if group.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise UnsafeFileError(f"{name!r} is a link to elsewhere.")
            address = h5py.h5o.get_info(group.id, name).addr
            if address in self.seen:
                raise UnsafeFileError(f"{name!r} is a second link to the same object.")
            self.seen.add(address)
            child = group[name.decode("utf-8", "surrogateescape")]
            if isinstance(child, h5py.Group):
                self.group(child, depth + 1)
            elif isinstance(child, h5py.Dataset):
                check_dataset(child)
            else:
                raise UnsafeFileError(f"{name!r} is neither a group nor a dataset.")


def _link_names(group: h5py.Group) -> list[bytes]:
    if len(group) > MAX_OBJECTS:
        raise UnsafeFileError("it holds too many objects.")
    return list(group.id)


def check_dataset(dataset: h5py.Dataset) -> None:
    """Refuse a dataset that lives elsewhere, needs a plug-in, or is unreasonably large.

    Raises
    ------
    UnsafeFileError
    """
    name, plist = dataset.name, dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
        raise UnsafeFileError(f"the data of {name!r} lie in another file.")
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if set(filters) - _ALLOWED_FILTERS:
        raise UnsafeFileError(f"{name!r} uses a filter other than deflate, shuffle and fletcher32.")
    kind = dataset.id.get_type()
    if not isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID)):
        raise UnsafeFileError(f"{name!r} holds neither numbers nor fixed-length text.")
    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        raise UnsafeFileError(f"{name!r} holds variable-length text.")
    _check_extent(dataset, kind.get_size())


def _check_extent(dataset: h5py.Dataset, itemsize: int) -> None:
    name, shape, chunks = dataset.name, dataset.shape, dataset.chunks
    if shape is None:
        raise UnsafeFileError(f"{name!r} has no extent.")
    size = _volume(shape) * itemsize
    if size > MAX_ARRAY_BYTES:
        raise UnsafeFileError(f"{name!r} announces {size / 2**30:.1f} GiB, more than the limit.")
    if size > _FREE_BYTES + _MAX_RATIO * dataset.id.get_storage_size():
        raise UnsafeFileError(f"{name!r} announces far more data than the file holds.")
    if chunks is not None:
        count = _volume(tuple(-(-extent // chunk) for extent, chunk in zip(shape, chunks, strict=True)))
        if count > MAX_CHUNKS or _volume(chunks) * itemsize > MAX_CHUNK_BYTES:
            raise UnsafeFileError(f"{name!r} is cut into unreasonable chunks.")


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for extent in shape:
        volume *= int(extent)
    return volume


def read_text(owner: h5py.Group, name: str) -> str:
    """A fixed-length text attribute of bounded size.

    Raises
    ------
    ValueError, UnsafeFileError
        It is not there, or is something else.
    """
    attribute = _attribute(owner, name)
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


def _attribute(owner: h5py.Group, name: str) -> h5py.h5a.AttrID:
    if name not in owner.attrs:
        raise ValueError(f"attribute {name!r} is missing")
    attribute = h5py.h5a.open(owner.id, name.encode())
    if attribute.shape != () or attribute.get_type().get_size() > MAX_ATTRIBUTE_BYTES:
        raise UnsafeFileError(f"attribute {name!r} is unreasonably large.")
    return attribute


# --- SQLite ----------------------------------------------------------------------------------------------------------


def load_journal(path: Path) -> JournalContent:
    """Read a journal, also one that another process is writing, or one on a disk that cannot be written.

    Raises
    ------
    FileNotFoundError
        It is gone: the writer has sealed it meanwhile.
    RunDamagedError, UnsafeFileError, SchemaVersionError
    """
    try:
        return _load(path)
    except sqlite3.OperationalError as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        if "locked" in str(error):
            raise RunError(f"{str(path)!r} is locked by another process; try again.") from error
        return _load_copy(path, error)
    except (sqlite3.Error, ValueError, OverflowError, RecursionError) as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        raise damaged(path, error) from error


def _load(path: Path) -> JournalContent:
    with closing(connect(path)) as connection:
        _check_sizes(connection, path)
        return read_content(connection, path)


def _load_copy(path: Path, cause: Exception) -> JournalContent:
    """SQLite must undo what a crash left half written, and write beside an old journal; here it does so in a copy.

    Only ever after `connect` failed: opening and closing a journal by other means would drop the locks that SQLite
    holds on it in this process.
    """
    with copied(path, cause) as copy:
        try:
            return _load(copy)
        except (OSError, sqlite3.Error, ValueError, OverflowError, RecursionError):
            raise damaged(path, cause) from cause


@contextmanager
def copied(path: Path, cause: Exception) -> Iterator[Path]:
    """A copy of a journal in which the half of a transaction that a crash has left is undone.

    Raises
    ------
    RunDamagedError, UnsafeFileError
    """
    with tempfile.TemporaryDirectory(prefix="gradscope-") as scratch:
        copy = Path(scratch) / path.name
        try:
            for suffix in ("", "-journal", "-wal"):
                source = path.with_name(path.name + suffix)
                if source.exists():
                    check_path(source, path.parent)
                    shutil.copyfile(source, copy.with_name(copy.name + suffix))
            _check_rollback(copy.with_name(copy.name + "-journal"), path)
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                connection.execute("PRAGMA trusted_schema=OFF")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
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
        if beside.is_symlink() or (beside.exists() and not beside.is_file()):
            raise UnsafeFileError(f"{str(beside)!r} is not an ordinary file; the journal was not opened.")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
    try:
        for pragma in ("trusted_schema=OFF", "query_only=ON", "cell_size_check=ON", "mmap_size=0"):
            connection.execute(f"PRAGMA {pragma}")
        if hasattr(connection, "setlimit"):  # Python 3.11
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
        _check_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute(
        "SELECT substr(sql, 1, 500) FROM sqlite_master WHERE sql IS NOT NULL LIMIT 10"
    ).fetchall()
    if {sql for (sql,) in found} != set(STATEMENTS):
        raise UnsafeFileError(f"{str(path)!r} is not a gradscope journal: it has tables of its own. It was not read.")


def _check_sizes(connection: sqlite3.Connection, path: Path) -> None:
    (longest,) = connection.execute("SELECT max(length(payload)) FROM entries").fetchone()
    (text,) = connection.execute("SELECT max(length(CAST(value AS BLOB))) FROM info").fetchone()
    if (longest or 0) > MAX_ROW_BYTES or (text or 0) > MAX_ATTRIBUTE_BYTES:
        raise UnsafeFileError(f"{str(path)!r} has an unreasonably large row. It was not read.")
