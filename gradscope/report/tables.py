"""Tables of the page, as values without markup."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Column:
    """Head of a column; ``kind`` holds ``text`` (left) and ``wrap``."""

    title: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, smaller lines below it, what it is sorted by; ``name`` sets it as code."""

    text: str
    small: tuple[str, ...] = ()
    sort: float | None = None
    name: bool = False


@dataclass(frozen=True)
class Table:
    """A table; ``title`` is for those who do not see it.

    Raises
    ------
    ValueError
        A row of another length than the columns.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    sortable: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row has {len(row)} cells for {len(self.columns)} columns.")


def data_table(title: str, caption: str, data: pd.DataFrame) -> Table:
    """A chapter's table; what follows a line break in a cell is printed smaller."""
    columns = tuple(Column(str(name), "text" if i == 0 else "") for i, name in enumerate(data.columns))
    rows = tuple(tuple(map(_cell, row)) for row in data.itertuples(index=False))
    return Table(title, columns, rows, caption)


def _cell(value: object) -> Cell:
    first, *rest = str(value).split("\n")
    return Cell(first, tuple(rest))
