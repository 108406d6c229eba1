"""The blocks of code in README, for the tests that run them."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = _BLOCK.findall(README)
CHINESE = _BLOCK.findall((Path(__file__).parents[1] / "README.zh.md").read_text(encoding="utf-8"))


def blocks(language: str, word: str = "", without: bool = False) -> list[str]:
    """Return the blocks in a language that hold a word, or those without it."""
    return [code for kind, code in BLOCKS if kind == language and (word in code) != without]


def statements(code: str) -> list[str]:
    """Lines of code without what is said beside them."""
    return [bare for line in code.splitlines() if (bare := re.sub(r"\s*#.*", "", line))]
