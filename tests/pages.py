"""The pages of docs/ as programs: their blocks run from top to bottom, and what they print is what the page shows.

``python -m tests.pages`` (``scripts/docs --write``) runs every guide and notebook and writes what it printed there.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from gradscope.cli import main

DOCS = Path(__file__).parents[1] / "docs"
#: Pages that are programs: whoever copies their blocks, in order, gets what they show.
NOTEBOOKS = tuple(sorted(f"notebooks/{page.name}" for page in (DOCS / "notebooks").glob("*.ipynb")))
PROGRAMS = ("start.md", *sorted(f"guides/{page.name}" for page in (DOCS / "guides").glob("*.md")))
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+−]?(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code on a page, and what the page says it prints."""

    language: str
    code: str
    shown: str | None
    start: int
    end: int

    @property
    def needs(self) -> str | None:
        """The trainer that it needs, which may not be installed."""
        found = re.search(r"^import (lightning|transformers|accelerate)\b", self.code, re.MULTILINE)
        return found and found[1]


def text(page: str) -> str:
    """The page."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The blocks of a page; a block of text that follows one is what it prints."""
    return [Block(m[1], m[2], m[3], m.start(), m.end()) for m in _BLOCK.finditer(text(page))]


def programs(page: str) -> list[list[Block]]:
    """The programs on a page: itself, or each of its sections where they say that they stand alone."""
    if "Each section stands alone" not in text(page):
        return [blocks(page)]
    ends = [m.start() for m in re.finditer(r"^## ", text(page), re.MULTILINE)] + [len(text(page))]
    sections = itertools.pairwise(ends)
    return [[block for block in blocks(page) if start <= block.start < end] for start, end in sections]


def run(program: list[Block]) -> Iterator[tuple[Block, str]]:
    """Run blocks in the current directory; each with what it printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in program:
        if block.language not in ("python", "bash"):
            continue
        with contextlib.redirect_stdout(io.StringIO()) as said:
            if block.language == "python":
                exec(compile(block.code, "<page>", "exec"), names)
            else:
                print("".join(command(line) for line in block.code.splitlines()), end="")
        yield block, said.getvalue()


def command(line: str) -> str:
    """Run a line of shell that calls gradscope; what it printed."""
    program, *words = shlex.split(line, comments=True)
    assert program == "gradscope", line
    if words[0] == "demo":
        return ""  # tests/cli/test_demo.py
    expanded = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
    result = CliRunner().invoke(main, expanded, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def same(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: words to the letter, numbers to one in the last digit shown."""
    (words, numbers), (other_words, others) = _parts(shown), _parts(printed)
    return words == other_words and all(_close(a, b) for a, b in zip(numbers, others, strict=True))


def executed(notebook: str, folder: str | os.PathLike[str]) -> Any:
    """A notebook as it is after it was run in a folder by a kernel of its own."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(DOCS / notebook, as_version=4)
    NotebookClient(content, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # when each cell was run
    return content


def outputs(notebook: Any) -> list[tuple[list[str], list[str], str]]:
    """Of every cell of code: its tags, the kinds of its outputs, and their text."""
    told = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            data = [output.get("data", {"text/plain": output.get("text", "")}) for output in cell.outputs]
            words = "\n".join(of["text/plain"] for of in data)
            told.append((cell.metadata.get("tags", []), [kind for of in data for kind in sorted(of)], words))
    return told


def _parts(said: str) -> tuple[list[str], list[str]]:
    return _NUMBER.sub("#", said).split(), _NUMBER.findall(said)


def _close(one: str, other: str) -> bool:
    (a, unit), (b, other_unit) = _value(one), _value(other)
    return abs(a - b) <= 1.01 * max(unit, other_unit)


def _value(number: str) -> tuple[float, float]:
    """A number as it is printed, and one in its last digit."""
    mantissa, _, exponent = number.replace("−", "-").partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(f"{mantissa}e{exponent or 0}"), 10.0 ** (int(exponent or 0) - decimals)


def _write(page: str) -> None:
    """Put what the blocks of a page print into the page, where it shows something."""
    parts, end = [], 0
    for program in programs(page):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for block, printed in run(program):
                if block.shown is not None:
                    parts += [text(page)[end : block.start], f"```{block.language}\n{block.code}```\n"]
                    parts += [f"\n```text\n{printed.rstrip()}\n```\n"]
                    end = block.end
    (DOCS / page).write_text("".join([*parts, text(page)[end:]]), encoding="utf-8")


if __name__ == "__main__":
    import sys

    import nbformat

    os.environ["MPLBACKEND"] = "Agg"
    torch.set_num_threads(1)
    for name in sys.argv[1:] or (*PROGRAMS, *NOTEBOOKS):
        print(name)
        if name in NOTEBOOKS:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(executed(name, folder), DOCS / name)
        else:
            _write(name)
