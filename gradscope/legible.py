"""Names that may be anybody's as text that steers no terminal, is no formula in a CSV, and can name a file."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet takes for the beginning of a formula, in its wide forms too.
_FORMULA = re.compile("[=+\\-@＝＋－＠]")
_GUARDED = re.compile("'[=+\\-@＝＋－＠]")
#: Most bytes of a part of a path; disks take 255, and something may be put behind it.
_MOST_BYTES = 200


def legible(text: object) -> str:
    """Text with what cannot be seen written as an escape: control characters, those that turn the direction of what
    follows, halves of characters.

    Examples
    --------
    >>> legible("lstm\\x1b[2J")
    'lstm\\\\x1b[2J'
    """
    text = str(text)
    return text if text.isprintable() else "".join(c if _seen(c) else _escape(c) for c in text)


def _seen(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def cell(text: str) -> str:
    """Text as a cell of a CSV: what a program would take for a formula has an apostrophe in front."""
    shown = legible(text)
    return f"'{shown}" if _FORMULA.match(shown) and not _is_number(shown) else shown


def from_cell(text: str) -> str:
    """What :func:`cell` was given, but for escapes."""
    return text[1:] if _GUARDED.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts, and names of columns, are safe in a CSV."""
    changed: dict[Any, Any] = {}
    for position in range(frame.shape[1]):
        column = frame.iloc[:, position]
        if column.dtype == "category":
            if any(cell(str(name)) != str(name) for name in column.cat.categories):
                changed[position] = column.astype(object)
        elif column.dtype.kind not in "biufcmM":
            changed[position] = column
    safe = frame.copy(deep=False) if changed else frame
    for position, column in changed.items():
        texts = {value: cell(value) for value in column.unique() if isinstance(value, str)}
        safe.isetitem(position, column.map(lambda value, texts=texts: texts.get(value, value)))
    names = [cell(name) if isinstance(name, str) else name for name in frame.columns]
    return safe if names == list(frame.columns) else safe.set_axis(names, axis=1)


def file_name(part: str) -> str:
    """A part of a path: no character that cannot be seen, and no longer than a disk takes.

    A shortened name ends in a digest of the whole, so that two stay two.
    """
    seen = re.sub(r"[^\x20-\x7e]", lambda c: c[0] if _seen(c[0]) else _percent(c[0]), part)
    if len(seen.encode("utf-8", "surrogatepass")) <= _MOST_BYTES:
        return seen
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{seen.encode()[: _MOST_BYTES - 17].decode(errors='ignore')}~{digest}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
