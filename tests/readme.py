"""The blocks of code in README, for the tests that run them."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def blocks(language: str, word: str = "", without: bool = False) -> list[str]:
    """Return the blocks in a language that hold a word, or those without it."""
    return [code for kind, code in BLOCKS if kind == language and (word in code) != without]
