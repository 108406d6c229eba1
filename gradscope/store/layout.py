"""Where things are in a run directory, and how a site is called inside a file.

::

    run/attempt-1/rank-0/journal.sqlite          the open part, while it grows
                         segment-00001.h5        a sealed part, never touched again
                         segment-00001.h5.sha256
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from gradscope.errors import RunError
from gradscope.schema import SITES_GROUP
from gradscope.store import paths
from gradscope.store.part import SITE_NAMES

JOURNAL = "journal.sqlite"
_SEGMENT = re.compile(r"segment-([0-9]{5,9})\.h5")
_TEMPORARY = re.compile(r"\.(journal\.sqlite|segment-[0-9]{5,9}\.h5(\.sha256)?\.[0-9]+)\.tmp(-journal)?")
_ATTEMPT = re.compile(r"attempt-(0|[1-9][0-9]{0,5})")
_RANK = re.compile(r"rank-(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, order=True)
class RankDirectory:
    """What one process wrote in one attempt."""

    attempt: int
    rank: int
    path: Path

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    def segments(self) -> list[Path]:
        """Sealed segments in the order they were written."""
        found = ((_SEGMENT.fullmatch(name), name) for name in paths.entries(self.path))
        return [self.path / name for _, name in sorted((int(match[1]), name) for match, name in found if match)]

    def files(self) -> list[Path]:
        """Everything of it that is read."""
        journal = [self.journal] if paths.present(self.journal) else []
        return [*journal, *self.segments()]

    def left_behind(self) -> list[Path]:
        """Files that an interrupted write has left here: only names that gradscope gives, and no links."""
        found = [self.path / name for name in paths.entries(self.path) if _TEMPORARY.fullmatch(name)]
        return [path for path in found if paths.is_file(path)]

    def next_segment(self) -> Path:
        """Name of the segment to be written next."""
        segments = self.segments()
        last = _SEGMENT.fullmatch(segments[-1].name) if segments else None
        return self.path / f"segment-{int(last[1]) + 1 if last else 1:05d}.h5"


def attempts(run_dir: Path) -> list[int]:
    """Numbers of the attempts under ``run_dir``, ascending."""
    return sorted(number for number, _ in _numbered(run_dir, _ATTEMPT))


def looks_like_run(path: Path) -> bool:
    """Whether a path is called as a run's directory or packed file would be; nothing is opened."""
    if path.suffix == ".h5":
        return path.is_file() and not _SEGMENT.fullmatch(path.name)
    try:
        return any(_ATTEMPT.fullmatch(entry) for entry in os.listdir(path)) if path.is_dir() else False
    except OSError:  # may not be read
        return False


def rank_directories(path: Path) -> list[RankDirectory]:
    """Every rank's directory of a run; ``path`` may also be one attempt's or one rank's directory.

    Raises
    ------
    RunNotFoundError
        There is nothing of a run in ``path``.
    UnsafeFileError
        A directory of it is a link.
    """
    if not os.access(path, os.R_OK | os.X_OK):
        raise RunError(f"may not read the directory {str(path)!r}: permission denied.")
    if attempt_dirs := _numbered(path, _ATTEMPT):
        found = [RankDirectory(a, r, d) for a, folder in attempt_dirs for r, d in _numbered(folder, _RANK)]
    elif rank_dirs := _numbered(path, _RANK):
        found = [RankDirectory(_number(path, _ATTEMPT, 1), rank, folder) for rank, folder in rank_dirs]
    else:
        found = [RankDirectory(_number(path.parent, _ATTEMPT, 1), _number(path, _RANK, 0), path)]
    # A rank killed while it began leaves a directory with nothing in it.
    begun = sorted(rank for rank in found if rank.files())
    if not begun:
        from gradscope.store.nearby import no_run  # only a wrong path needs it; it stands on this module

        raise no_run(
            path,
            f"no gradscope run in {str(path)!r}: it holds neither a sealed segment nor a journal. "
            "Give the directory that was passed to gradscope.record, or a packed .h5 file.",
        )
    return begun


def _numbered(path: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    found = []
    for entry in paths.entries(path):
        if match := pattern.fullmatch(entry):
            if not paths.is_directory(path / entry):
                continue
            found.append((int(match[1]), path / entry))
    return sorted(found)


def _number(path: Path, pattern: re.Pattern[str], default: int) -> int:
    match = pattern.fullmatch(path.name)
    return int(match[1]) if match else default


# --- site names as HDF5 paths ----------------------------------------------------------------------------------------


def escape(part: str) -> str:
    """Write any string as one HDF5 link name; the inverse of `unescape`.

    HDF5 gives ``/``, ``.`` and the empty name a meaning of their own and ends a name at NUL; other characters stay
    as they are, so that ``sites/encoder.lstm/l0`` is what a user of xarray would guess.
    """
    if part == "":
        return "%"
    if part in {".", ".."}:
        return part.replace(".", "%2E")
    return re.sub(r"[%/\x00-\x1f\x7f\ud800-\udfff]", _percent, part)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def unescape(name: str) -> str:
    """Inverse of `escape`."""
    return "" if name == "%" else unquote_to_bytes(name).decode("utf-8", "surrogatepass")


def group_of(site: str) -> str:
    """HDF5 group of a site: ``encoder.lstm/l0`` is at ``sites/encoder.lstm/l0``."""
    module, *suffix = map(escape, site.rsplit("/", 1))
    # The site "cell" has its arrays where the site "cell/step" would have its group.
    return "/".join([SITES_GROUP, module, *(f"%{ord(s[0]):02X}{s[1:]}" if s in SITE_NAMES else s for s in suffix)])


def site_of(group: str) -> str:
    """Inverse of `group_of`."""
    return "/".join(map(unescape, group.split("/")[1:]))
