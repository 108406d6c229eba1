"""Names a user chose, made safe to draw: no accidental mathematics, no control characters, no missing glyphs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

from gradscope.schema import QUANTITIES

#: Longest name drawn in full; longer ones lose their middle (the data behind the figure keeps them whole).
MAX_NAME = 32


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """Code points of the fallback font that ships with matplotlib."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(FT2Font(str(path)).get_charmap())


def visible(name: str) -> str:
    """``name`` with everything that cannot be seen or drawn written as an escape (``\\n``, ``\\x07``, ``\\u4e2d``).

    A control character could break the file, a bidirectional override could reorder the label, and a missing glyph
    would draw as an empty box that hides which name was meant.
    """
    return "".join(c if _drawable(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name))


def _drawable(character: str) -> bool:
    if character == " " or (character.isascii() and character.isprintable()):
        return True
    return unicodedata.category(character)[0] not in "CZ" and ord(character) in _glyphs()


def shorten(name: str, limit: int = MAX_NAME) -> str:
    """``name`` with its middle replaced by an ellipsis when it is longer than ``limit``: both ends tell sites apart."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def apart(names: Sequence[str], limit: int = MAX_NAME) -> list[str]:
    """Names shortened, those that would read the same without what they begin with instead of their middle.

    >>> apart(["clip every step at 0.1 of the size", "clip every step at 0.2 of the size"], 20)
    ['…0.1 of the size', '…0.2 of the size']
    """
    told = {name: shorten(name, limit) for name in names}
    for same in alike(told):
        told |= without_beginning(same, limit)
    return [told[name] for name in names]


def alike(told: Mapping[str, str]) -> list[list[str]]:
    """Groups of names that read the same."""
    of: dict[str, list[str]] = {}
    for name, text in told.items():
        of.setdefault(text, []).append(name)
    return [names for names in of.values() if len(names) > 1]


def without_beginning(names: Sequence[str], limit: int) -> dict[str, str]:
    """Different names from the word in which they first differ; those that would still read the same from later on."""
    at = next(i for i, letters in enumerate(zip_longest(*names)) if len(set(letters)) > 1)
    word = max(names[0].rfind(mark, 0, at) for mark in " :_/") + 1
    told = {name: _tail(name, word, limit) for name in names}
    if alike(told):
        told = {name: _tail(name, at, limit) for name in names}
    for same in alike(told):
        told |= without_beginning(same, limit)
    return told


def _tail(name: str, start: int, limit: int) -> str:
    rest = name[start:]
    return f"…{rest}" if len(rest) < limit else f"…{rest[: max(1, limit - 2)]}…"


def label(name: str, limit: int = MAX_NAME) -> str:
    """``name`` as text that matplotlib draws literally: ``$`` is not mathematics, a leading ``_`` hides no legend."""
    text = shorten(visible(name), limit).replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


#: A number of its own in the notation of a program: 1e-05, 2.5e+06.
_PROGRAM = re.compile(r"(?<![^\s(=–])(\d+(?:\.\d+)?)e([-+]?\d+)(?=[\s,)–]|$)")


def powers(words: str) -> str:
    """Numbers as a program writes them, ``1e-05``, as a paper does; within a name they stay.

    >>> powers("c = 1e-05")
    'c = $10^{-5}$'
    """
    return _PROGRAM.sub(lambda found: _power(found[1], int(found[2])), words)


def _power(mantissa: str, exponent: int) -> str:
    times = "" if float(mantissa) == 1 else rf"{mantissa}\cdot"
    return f"${times}10^{{{exponent}}}$"


def metric_words(name: str) -> str:
    """The name of a logged scalar as one reads it: ``held_out_accuracy`` is the held-out accuracy."""
    return label(name.replace("held_out", "held-out").replace("_", " "))


def symbol(quantity: str) -> str:
    """Mathematical symbol of a quantity, in mathtext with its dollar signs; unknown names literally."""
    known = QUANTITIES.get(quantity)
    return f"${known.symbol}$" if known else label(quantity)


def norm_symbol(quantity: str) -> str:
    """Symbol of the 2-norm of a quantity."""
    known = QUANTITIES.get(quantity)
    return rf"$\Vert {known.symbol} \Vert$" if known else label(quantity)
