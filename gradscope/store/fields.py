"""Values from JSON that may be anybody's: its size is checked before it is read, its types and ranges after."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradscope.store.budget import Budget

#: Deeper than anything gradscope writes, and than what is safe to walk.
MAX_DEPTH = 32
#: Longer than any name or reason.
MAX_TEXT = 100_000
#: Integers up to here are exact in every program that reads them.
MOST = 2**53

Check = Callable[[Any], bool]

# Of a pair of surrogates JSON makes one character; one alone is none, and nothing can print or store it.
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """A name as it can be printed and stored: what stands for half a character is written as an escape."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def read_json(text: str, budget: Budget, path: Path) -> Any:
    """Parse JSON of bounded size and depth.

    Raises
    ------
    UnsafeFileError
        The budget is used up.
    ValueError
        It is no JSON, or nested too deep.
    """
    budget.take("characters", len(text), path)
    budget.take("items", count_items(text), path)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON is nested too deep") from error
    return _checked(value, 0, "\\ud" in text.lower())


def count_items(text: str) -> int:
    """About how many values JSON holds, never less."""
    return text.count(",") + text.count("[") + text.count("{") + text.count(":")


def _checked(value: Any, depth: int, suspicious: bool) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("JSON is nested too deep")
    if isinstance(value, dict):
        found = {name: _checked(one, depth + 1, suspicious) for name, one in value.items()}
        return {clean(name): one for name, one in found.items()} if suspicious else found
    if isinstance(value, list):
        return [_checked(one, depth + 1, suspicious) for one in value]
    return clean(value) if suspicious and isinstance(value, str) else value


# --- checks of one value ---------------------------------------------------------------------------------------------


def is_text(value: Any) -> bool:
    """Text of a reasonable length."""
    return isinstance(value, str) and len(value) <= MAX_TEXT


def is_texts(value: Any) -> bool:
    """A list of such."""
    return isinstance(value, list | tuple) and all(map(is_text, value))


def is_flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    """An integer or a float, which may be NaN or infinite; no truth value."""
    return isinstance(value, float) or (is_whole(value) and abs(value) <= MOST)


def is_whole(value: Any) -> bool:
    """An integer; no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def within(low: int, high: int = MOST) -> Check:
    """An integer from ``low`` to ``high``."""
    return lambda value: is_whole(value) and low <= value <= high


def is_object(value: Any) -> bool:
    """An object."""
    return isinstance(value, dict)


def typed(checks: Mapping[str, Check], entry: Any, what: str) -> dict[str, Any]:
    """The fields of an object that are known, each checked; others, of a newer minor version, are left out.

    Raises
    ------
    ValueError
        Names the field.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{what} is no object")
    for name, check in checks.items():
        if name in entry and not check(entry[name]):
            raise ValueError(f"{name!r} of {what} is {_shown(entry[name])}")
    return {name: entry[name] for name in checks if name in entry}


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
